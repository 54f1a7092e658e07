"""Loop 2: caption -> mask -> caption. From a caption the model segments, and from that mask it must give the caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ans.config.fields import Count, Weight
from ans.config.tasks import TaskSettings
from ans.data.mixing import Pool
from ans.data.records import ImageRecord, Region
from ans.data.samples import Regions
from ans.model import prompts
from ans.model.host import Fetched
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives.batches import Images, ImagesOf, Targets, draw_questions, pad_right
from ans.objectives.losses import mask_terms, seg_rate
from ans.shown import Panel
from ans.tasks import base
from ans.tasks.base import Example, Losses, Now, Setting, Wordings


class Settings(TaskSettings):
    """Caption -> mask -> caption, on described regions."""

    source: str = Field("describe", description="index whose captions are used")
    max_samples: Count | None = Field(None, description="use only the first N regions; none: all")
    description_prompts: Wordings = 1
    soft_region: bool = Field(
        False, description="true: the caption's loss reaches the mask decoder, by straight-through region weights"
    )
    mask_supervision: Weight = Field(
        0.0, description="weight of the mask loss on the true mask, which the cycle itself does not use"
    )

    def indexes(self) -> tuple[str, ...]:
        return (self.source,)


@dataclass(frozen=True)
class Batch:
    """R captioned regions, one per image, in image order. `captions`: ids as they are learnt, with the end token unless the
    caption is longer than T. `texts`: the captions as expressions. `targets`: the true masks, for optional supervision only.
    `where`: locator of the image, and source."""

    images: Images
    captions: list[list[int]]
    texts: list[str]
    describe_questions: list[str]
    questions: list[str]
    answers: list[str]
    answer_tokens: int
    targets: Targets
    where: list[tuple[str, str]]

    @property
    def counts(self) -> dict[str, int]:
        return {
            "objects": len(self.captions), "tokens": self.answer_tokens, "caption_tokens": sum(len(ids) for ids in self.captions),
        }  # fmt: skip


class Task(base.Task[Settings, Batch]):
    role = "auxiliary"
    stream = 2
    counted = ("objects", "tokens", "caption_tokens")
    title, prefix = "loop 2", "loop2"
    examples = (
        "An object, the data's caption, the mask that the model predicts from it, and the model's own caption of that mask (words "
        "that differ are marked). The true mask is not used in this loop."
    )
    panels = (Panel("caption loss", {"loop2_caption": "loop 2"}),)

    def __init__(self, settings: Settings, setting: Setting) -> None:
        super().__init__(settings, setting)
        setting.model.ask_for_regions("train.loop2", "; else set train.loop2.enabled=false")
        index = setting.open_index(settings.source)
        self.source = Regions(settings.source, index, setting.evaluated, settings.max_samples, described=True)
        self.left_out = self.source.left_out
        name = f"train.loop2.source: {settings.source}"
        self.bad = self.bad_images(len(self.source.index))
        self.pool = Pool([self.source.count], [1.0], setting.train.seed, self.stream, name)

    def __len__(self) -> int:
        return len(self.pool)

    def sizes(self) -> dict[str, int]:
        return {self.source.name: self.source.count}

    def batch(self, positions: range) -> Batch:
        setting = self.setting
        images, targets = ImagesOf(setting.root, setting.model, max_tiles=1), setting.targets()
        learnt, texts, questions, where = [], [], [], []
        for position in positions:
            record, region = self.bad.instead(self.pool, position, lambda _, sample: self._open(sample, images))
            rng = self.rng(position)
            caption = region.expressions[rng.integers(len(region.expressions))].sent
            ids = prompts.encode(setting.tokenizer, prompts.quoted(caption) + setting.template.suffix, start=False)
            learnt.append(ids[: setting.train.caption_len])
            texts.append(prompts.expression_text(caption))
            where.append((record.path, self.source.name))
            targets.add(record, region, rng)
            questions.append(draw_questions(rng, self.settings.description_prompts))
        to_describe, to_segment, answers = (list(column) for column in zip(*questions, strict=True))
        return Batch(
            images.pack(), learnt, texts, to_describe, to_segment, answers, setting.answer_tokens(answers), targets.pack(), where
        )  # fmt: skip

    def _open(self, sample: int, images: ImagesOf) -> tuple[ImageRecord, Region]:
        record, region = self.source.sample(sample)
        images.add(record)
        return record, region

    def losses(self, model: Segmenter, features: Features, batch: Batch, counts: Mapping[str, int], now: Now) -> Losses:
        train, index = self.setting.train, list(range(len(batch.captions)))
        grids = [one.grid for one in features.visual]
        images = [model.template.image_string(grid.tokens) for grid in grids]
        encoded = []
        for image, question, text, answer in zip(images, batch.questions, batch.texts, batch.answers, strict=True):
            prompt = prompts.encode_prompt(model.tokenizer, model.template, image + question.format(prompts.quoted(text)))
            said = prompts.encode(model.tokenizer, answer + model.template.suffix, start=False)
            encoded.append((prompt + said, [prompts.IGNORE] * len(prompt) + said))
        ids, labels, attention = pad_right(encoded)
        segmented = model(features, Conversations(ids, labels, attention, index, [None] * len(ids)))
        logits = model.masks(features, segmented.seg_image, segmented.seg_embeds).low_res

        shares = region_shares(logits, [grid.region for grid in grids])
        # how long the prompts are depends on the masks: the one place in the loop at which the host has to wait for the device, which
        # has the true masks to compare with in the meantime (why not on the device alone: docs/dual-loop.md)
        found = Fetched(torch.cat([share.flatten() for share in shares]))
        supervision, values = mask_terms(logits, batch.targets, train.loss, train.mask_points, counts["objects"])
        flat = found.get()
        cells = [
            part.view(share.shape) > 0.5 for part, share in zip(flat.split([s.numel() for s in shares]), shares, strict=True)
        ]
        # the weights are one; only their gradient, which reaches the mask, is not that of a constant
        weights = [(1 + share - share.detach())[None] for share in shares] if self.settings.soft_region else None
        encoded = []
        for image, question, inside, caption in zip(images, batch.describe_questions, cells, batch.captions, strict=True):
            text = image + model.region_question(inside[None], question)
            prompt = prompts.encode_prompt(model.tokenizer, model.template, text)
            encoded.append((prompt + caption, [prompts.IGNORE] * len(prompt) + caption))
        ids, labels, attention = pad_right(encoded)
        regions: list[Tensor | None] = [inside[None] for inside in cells]
        described = model(features, Conversations(ids, labels, attention, index, regions, weights=weights))

        caption = described.language_loss / counts["caption_tokens"]
        answer = segmented.language_loss / counts["tokens"]
        loss = train.loss.language * (caption + answer)
        if self.settings.mask_supervision:
            loss = loss + self.settings.mask_supervision * supervision
        with torch.no_grad():
            values |= {
                "caption": caption.detach(),
                "language": answer.detach(),
                "seg_rate": seg_rate(model, segmented, counts["objects"]),
                "non_empty": torch.tensor(sum(bool(inside.any()) for inside in cells) / counts["objects"]),
            }
        example = None
        if now.examples:
            with model.evaluating():
                free, *_ = model.caption_ids(features, index, cells, batch.describe_questions, max(map(len, batch.captions)))
            texts = {"data": batch.texts, "model": [str(model.tokenizer.decode(ids)) for ids in free]}
            example = Example(batch.where, texts, logits.detach(), batch.targets.soft)
        return Losses(loss, {f"loop2_{name}": value for name, value in values.items()}, example)


def region_shares(logits: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Map (N, S/4, S/4) mask logits to for each, (rows, columns) of its own region grid: the mean of the mask's probability over a
    cell."""
    probabilities = logits.float().sigmoid()
    return [F.adaptive_avg_pool2d(one[None], grid)[0] for one, grid in zip(probabilities, grids, strict=True)]
