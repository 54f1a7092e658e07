"""Grounded conversation, as Sa2VA learns GranD-f: image -> caption with several phrases, each followed by a `[SEG]` of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from ans.config.fields import NonEmpty
from ans.config.tasks import TaskSettings
from ans.data.mixing import Pool
from ans.data.records import ImageRecord, Region
from ans.data.samples import is_taught, training_rows
from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives.batches import Images, ImagesOf, Targets, labels_of, pad_right
from ans.objectives.losses import mask_terms, seg_rate
from ans.tasks import base
from ans.tasks.base import Losses, Now, Panel, Setting


class Settings(TaskSettings):
    """Captions whose phrases have masks (GranD-f)."""

    enabled: bool = Field(False, description="true: train this task")
    sources: NonEmpty[str] = Field(("grand_f",), description="indexes of reader grand_f")

    def indexes(self) -> tuple[str, ...]:
        return self.sources

    def labelled(self) -> tuple[str, ...]:
        return self.sources


@dataclass(frozen=True)
class Batch:
    """One conversation per image. `ids`, `labels`, `mask`: (B, L), padded on the right. `targets` in the order of the phrases."""

    images: Images
    ids: Tensor
    labels: Tensor
    mask: Tensor
    targets: Targets

    @property
    def counts(self) -> dict[str, int]:
        return {"objects": len(self.targets.soft), "tokens": labels_of(self.labels)}


class Task(base.Task[Settings, Batch]):
    role = "primary"
    stream = 6
    counted = ("objects", "tokens")
    title, prefix = "grounded conversation", "grounded"
    # no `_seg_rate`, below which a run stops: a base that never saw such answers begins at 0
    panels = (Panel("[SEG] behind each phrase", {"grounded_seg_learnt": "would be said"}, share=True),)

    def __init__(self, settings: Settings, setting: Setting) -> None:
        super().__init__(settings, setting)
        self.indexes = [setting.open_index(name) for name in settings.sources]
        self.rows, self.left_out = training_rows(self.indexes, setting.evaluated)
        if not self.rows:
            raise ValueError(
                f"no image to train on: train.grounded.sources ({', '.join(settings.sources)}) has no `train` region"
            )
        self.bad = self.bad_images(len(self.rows))
        self.pool = Pool([len(self.rows)], [1.0], setting.train.seed, self.stream, "train.grounded")

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self) -> dict[str, int]:
        return {"grounded captions": len(self.rows)}

    def batch(self, positions: range) -> Batch:
        setting = self.setting
        images, targets, encoded = ImagesOf(setting.root, setting.model, setting.train.max_tiles), setting.targets(), []
        for position in positions:
            record, tokens = self.bad.instead(self.pool, position, lambda _, row: self._open(row, images))
            rng = self.rng(position)
            regions = [region for region in record.regions if is_taught(region)]
            for region in regions:
                targets.add(record, region, rng)
            question = prompts.GROUNDED_QUESTIONS[rng.integers(len(prompts.GROUNDED_QUESTIONS))]
            turn = prompts.Turn(setting.template.image_string(tokens) + question, answer(regions))
            encoded.append(prompts.encode_conversation(setting.tokenizer, setting.template, [turn]))
        return Batch(images.pack(), *pad_right(encoded), targets.pack())

    def _open(self, sample: int, images: ImagesOf) -> tuple[ImageRecord, int]:
        number, row = self.rows[sample]
        record = self.indexes[number].record(row)
        return record, images.add(record).tokens

    def losses(self, model: Segmenter, features: Features, batch: Batch, counts: Mapping[str, int], now: Now) -> Losses:
        train = self.setting.train
        rows = len(batch.ids)
        out = model(features, Conversations(batch.ids, batch.labels, batch.mask, list(range(rows)), [None] * rows))
        logits = model.masks(features, out.seg_image, out.seg_embeds).low_res
        loss, values = mask_terms(logits, batch.targets, train.loss, train.mask_points, counts["objects"])
        language = out.language_loss / counts["tokens"]
        values |= {"language": language.detach(), "seg_learnt": seg_rate(model, out, counts["objects"])}
        return Losses(loss + train.loss.language * language, {f"grounded_{name}": value for name, value in values.items()})


def answer(regions: list[Region]) -> str:
    """Return the caption of an image's phrases with their marks: see `ans/data/sources/grand_f.py` for what their expressions hold."""
    phrases = [region.expressions[0] for region in regions]
    caption = {phrase.raw for phrase in phrases}
    if len(caption) != 1:
        raise ValueError(
            f"train.grounded.sources: an image with {len(caption)} captions; these indexes are not of reader grand_f"
        )
    spans = [(phrase.sent_id, phrase.sent_id + len(phrase.sent)) for phrase in phrases]
    return prompts.grounded_answer(caption.pop(), spans)
