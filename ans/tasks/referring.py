"""Supervised referring segmentation (Sa2VA's recipe): image and expression -> mask, with the language loss on the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from torch import Tensor

from ans.config.fields import Count, NonEmpty
from ans.config.tasks import TaskSettings
from ans.data.mixing import Pool
from ans.data.records import ImageRecord, Region
from ans.data.samples import is_taught, training_rows
from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives.batches import Images, ImagesOf, Targets, labels_of, pad_right
from ans.objectives.losses import mask_terms, seg_rate
from ans.tasks import base
from ans.tasks.base import Losses, Now, Setting


class Settings(TaskSettings):
    """Expressions and their masks, of labelled images."""

    sources: NonEmpty[str] = Field(
        ("refcoco", "refcoco_plus", "refcocog"), description="indexes whose training expressions are used"
    )
    no_target: bool = Field(False, description="true: expressions of nothing (gRefCOCO) are learnt too, with an empty mask")
    max_images: Count | None = Field(None, description="use only the first N images; none: all")
    objects_per_image: Count = Field(5, description="most objects of an image in one sample")
    objects_per_conversation: Count = Field(5, description="objects asked for in one conversation, one after the other")

    def indexes(self) -> tuple[str, ...]:
        return self.sources

    def labelled(self) -> tuple[str, ...]:
        return self.sources


@dataclass(frozen=True)
class Batch:
    """Conversations about images. `ids`, `labels`, `mask`: (R, L), padded on the right; `image_index` (R,): image of each row.
    `targets` in the order in which `[SEG]` comes in the rows."""

    images: Images
    ids: Tensor
    labels: Tensor
    mask: Tensor
    image_index: list[int]
    targets: Targets

    @property
    def counts(self) -> dict[str, int]:
        return {"objects": len(self.targets.soft), "tokens": labels_of(self.labels)}


class Task(base.Task[Settings, Batch]):
    role = "primary"
    stream = 0
    counted = ("objects", "tokens")
    title, prefix = "referring", "ref"

    def __init__(self, settings: Settings, setting: Setting) -> None:
        super().__init__(settings, setting)
        self.indexes = [setting.open_index(name) for name in settings.sources]
        rows, self.left_out = training_rows(self.indexes, setting.evaluated)
        self.rows = rows[: settings.max_images]
        if not self.rows:
            raise ValueError(
                f"no image to train on: none of train.referring.sources ({', '.join(settings.sources)}) below {setting.root} has a "
                "`train` region"
            )
        self.bad = self.bad_images(len(self.rows))
        self.pool = Pool([len(self.rows)], [1.0], setting.train.seed, self.stream, "train.referring")

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self) -> dict[str, int]:
        sizes = {"images with expressions": len(self.rows)}
        images = len({self.indexes[number].record(row).path for number, row in self.rows})
        if images != len(self.rows):  # ReasonSeg has a row for each query, and the RefCOCO sets share images
            sizes["different images among them"] = images
        return sizes

    def batch(self, positions: range) -> Batch:
        setting, settings = self.setting, self.settings
        images, targets, encoded, image_index = (
            ImagesOf(setting.root, setting.model, setting.train.max_tiles),
            setting.targets(),
            [],
            [],
        )
        for place, position in enumerate(positions):
            record, tokens = self.bad.instead(self.pool, position, lambda _, row: self._open(row, images))
            rng = self.rng(position)
            regions = [region for region in record.regions if is_taught(region, settings.no_target)]
            picked = [regions[i] for i in rng.permutation(len(regions))[: settings.objects_per_image]]
            for region in picked:
                targets.add(record, region, rng)
            for start in range(0, len(picked), settings.objects_per_conversation):
                turns = self._turns(picked[start : start + settings.objects_per_conversation], tokens, rng)
                encoded.append(prompts.encode_conversation(setting.tokenizer, setting.template, turns))
                image_index.append(place)
        ids, labels, mask = pad_right(encoded)
        return Batch(images.pack(), ids, labels, mask, image_index, targets.pack())

    def _open(self, sample: int, images: ImagesOf) -> tuple[ImageRecord, int]:
        """Return the record of a sample, and how many tokens its image takes."""
        number, row = self.rows[sample]
        record = self.indexes[number].record(row)
        return record, images.add(record).tokens

    def _turns(self, regions: Sequence[Region], image_tokens: int, rng: np.random.Generator) -> list[prompts.Turn]:
        """Return one question and answer per object; the image comes before the first."""
        template = self.setting.template
        turns = []
        for region in regions:
            expression = region.expressions[rng.integers(len(region.expressions))].sent
            questions = template.training_questions(expression)
            text = questions[rng.integers(len(questions))].format(prompts.quoted(template.expression(expression)))
            image = "" if turns else template.image_string(image_tokens)
            answer = prompts.SEG_ANSWERS[rng.integers(len(prompts.SEG_ANSWERS))]
            turns.append(prompts.Turn(image + text, answer if region.area else prompts.REJECTION))
        return turns

    def losses(self, model: Segmenter, features: Features, batch: Batch, counts: Mapping[str, int], now: Now) -> Losses:
        train = self.setting.train
        out = model(features, Conversations(batch.ids, batch.labels, batch.mask, batch.image_index, [None] * len(batch.ids)))
        logits = model.masks(features, out.seg_image, out.seg_embeds).low_res
        loss, values = mask_terms(logits, batch.targets, train.loss, train.mask_points, counts["objects"])
        language = out.language_loss / counts["tokens"]
        values |= {"language": language.detach(), "seg_rate": seg_rate(model, out, counts["objects"])}
        return Losses(loss + train.loss.language * language, {f"ref_{name}": value for name, value in values.items()})
