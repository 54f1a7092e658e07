"""Supervised captioning, as Sa2VA learns regions: image and regions -> the data's captions, a turn for each region.

It teaches a base regions that it was never shown, which the loops take for granted. And it is what loop 2 is to be compared with: the
same captions, learnt as labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from ans.config.fields import Count, NonEmpty
from ans.config.tasks import TaskSettings
from ans.data.matching import region_mask
from ans.data.mixing import Pool
from ans.data.records import ImageRecord, Region
from ans.data.samples import Regions
from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.model.visual_prompt import region_cells
from ans.objectives.batches import Images, ImagesOf, draw_questions, labels_of, pad_right
from ans.shown import Panel
from ans.tasks import base
from ans.tasks.base import Example, Losses, Now, Setting, Wordings

GIVEN = 10.0
"""Logit of a mask that is given, where examples show predicted ones."""


class Settings(TaskSettings):
    """Image and regions -> captions, on described regions."""

    enabled: bool = Field(False, description="true: train this task")
    sources: NonEmpty[str] = Field(("describe",), description="indexes whose captions, or training expressions, are learnt")
    regions_per_conversation: Count = Field(5, description="most regions of an image in one conversation")
    description_prompts: Wordings = 1

    def indexes(self) -> tuple[str, ...]:
        return self.sources


@dataclass(frozen=True)
class Batch:
    """Conversations about regions, one for each image. `ids`, `labels`, `mask`: (R, L), padded on the right. `cells`: of each
    conversation its regions, (n, rows, columns) on its image's grid. Of all regions, in order: `questions`, `captions`, `truth`, the
    masks (N, S/4, S/4) as examples show them, and `where`, locator of the image, and source."""

    images: Images
    ids: Tensor
    labels: Tensor
    mask: Tensor
    cells: list[Tensor]
    questions: list[str]
    captions: list[str]
    truth: Tensor
    where: list[tuple[str, str]]

    @property
    def counts(self) -> dict[str, int]:
        return {"tokens": labels_of(self.labels)}


class Task(base.Task[Settings, Batch]):
    role = "primary"
    stream = 3
    counted = ("tokens",)
    title, prefix = "captioning", "captioning"
    examples = (
        "A region, which is given, the data's caption, and the model's own of the region alone (words that differ are marked)."
    )

    panels = (Panel("tokens of the data's captions", {"captioning_right": "predicted right"}, share=True),)

    def __init__(self, settings: Settings, setting: Setting) -> None:
        super().__init__(settings, setting)
        if not setting.model.region_tokens:
            name = setting.model.family.name
            raise ValueError(f"train.captioning: {name} has no tokens for regions; set train.captioning.enabled=false")
        self.sources = [
            Regions(name, setting.open_index(name), setting.evaluated, None, described=True) for name in settings.sources
        ]
        self.left_out = sum(of.left_out for of in self.sources)
        name = f"train.captioning.sources: {', '.join(settings.sources)}"
        self.bad = self.bad_images(sum(len(of.index) for of in self.sources))
        self.pool = Pool([of.count for of in self.sources], [1.0] * len(self.sources), setting.train.seed, self.stream, name)

    def __len__(self) -> int:
        return len(self.pool)

    def sizes(self) -> dict[str, int]:
        return {f"{source.name} (captions)": source.count for source in self.sources}

    def batch(self, positions: range) -> Batch:
        setting, settings = self.setting, self.settings
        images = ImagesOf(setting.root, setting.model, max_tiles=1)
        encoded, cells, asked, learnt, where, truth = [], [], [], [], [], []
        for position in positions:
            source, record, region = self.bad.instead(
                self.pool, position, lambda source, sample: self._open(source, sample, images)
            )
            rng = self.rng(position)
            others = [other for other in source.usable(record) if other != region]
            more = rng.permutation(len(others))[: settings.regions_per_conversation - 1]
            regions = [region, *(others[i] for i in more)]
            questions, captions = [], []
            for one in regions:
                questions.append(draw_questions(rng, settings.description_prompts)[0])
                captions.append(one.expressions[rng.integers(len(one.expressions))].sent)
                where.append((record.path, source.name))
            grid = images.pixels[-1].grid
            masks = [torch.from_numpy(region_mask(record, one)) for one in regions]
            cells.append(region_cells(torch.stack(masks), grid.region))
            truth += [setting.model.decoder.soft_target(mask) for mask in masks]
            turns = conversation(setting.template, grid.tokens, cells[-1], questions, captions)
            encoded.append(prompts.encode_conversation(setting.tokenizer, setting.template, turns, setting.train.caption_len))
            asked += questions
            learnt += captions
        return Batch(images.pack(), *pad_right(encoded), cells, asked, learnt, torch.stack(truth), where)

    def _open(self, number: int, sample: int, images: ImagesOf) -> tuple[Regions, ImageRecord, Region]:
        source = self.sources[number]
        record, region = source.sample(sample)
        images.add_described(images.opened(record))
        return source, record, region

    def losses(self, model: Segmenter, features: Features, batch: Batch, counts: Mapping[str, int], now: Now) -> Losses:
        index = list(range(len(batch.ids)))
        out = model(features, Conversations(batch.ids, batch.labels, batch.mask, index, list(batch.cells)))
        language = out.language_loss / counts["tokens"]
        right = (out.logits.argmax(-1) == out.labels).sum() / counts["tokens"]
        example = self._example(model, features, batch) if now.examples else None
        values = {"captioning_language": language.detach(), "captioning_right": right}
        return Losses(self.setting.train.loss.language * language, values, example)

    def _example(self, model: Segmenter, features: Features, batch: Batch) -> Example:
        index = [place for place, regions in enumerate(batch.cells) for _ in regions]
        alone = [region for regions in batch.cells for region in regions]
        with torch.no_grad(), model.evaluating():
            free, *_ = model.caption_ids(features, index, alone, batch.questions, self.setting.train.caption_len)
        texts = {"data": batch.captions, "model": [str(model.tokenizer.decode(ids)) for ids in free]}
        given = GIVEN * (2 * (batch.truth > 0.5).float() - 1)
        return Example(batch.where, texts, given, batch.truth)


def conversation(
    template: prompts.Template, image_tokens: int, cells: Tensor, questions: Sequence[str], captions: Sequence[str]
) -> list[prompts.Turn]:
    """Return a turn for each region (n, rows, columns) of an image. The first shows the image and all regions, as the official training
    writes it: one line break before the question, where the evaluation has two. The n-th question says `region<n>`."""
    shown = template.image_string(image_tokens) + template.region_string(cells.flatten(1).sum(1).tolist(), "\n")
    return [
        prompts.Turn(
            ("" if number else shown) + question.replace("region1", f"region{number + 1}"),
            prompts.quoted(caption),
            separated=True,
        )
        for number, (question, caption) in enumerate(zip(questions, captions, strict=True))
    ]
