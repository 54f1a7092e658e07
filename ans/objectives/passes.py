"""Loop 1's micro-batch, objects without text, and the passes of the model over it: describe, read a caption, segment by a caption."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ans.model import prompts
from ans.model.host import sent
from ans.model.segmenter import Conversations, Features, Forward, Segmenter
from ans.objectives.batches import Images, Targets, pad_right
from ans.objectives.captions import cross_entropy


@dataclass(frozen=True)
class Batch:
    """R objects without text, each on one image to describe and one to segment (two frames of a video, or the same image), or with
    `frames` on all images `frames[n]` to segment, the first of which is that of `segment_index`. `targets`: object by object, image by
    image.

    `describe_index`, `segment_index` (R,): their images. `cells`, (rows, columns) each: grid cells of the objects on the former.
    `questions` hold `{}` for the expression. `corruption` (R, T, 2) in [0, 1): where and by what the caption is corrupted. `noise`
    (R, T, k): Gumbel noise. `answer_tokens`: labels of the answers. `where`: locator of the segmented image, and source, of each
    object. `known`: locator of the described image, and true caption, of each object whose truth is known, else None. `given`: the
    data's own text of each object, with the bridge of that name. `views`: image and cells of each object's further views, one object
    behind the other. `others`: of each object the masks (m, S/4, S/4) of the image's other objects, where captions are rewarded, and
    `chances` (R, K, T, k), Gumbel noise of K captions.
    """

    images: Images
    describe_index: list[int]
    segment_index: list[int]
    cells: list[Tensor]
    describe_questions: list[str]
    questions: list[str]
    answers: list[str]
    answer_tokens: int
    corruption: Tensor
    noise: Tensor
    targets: Targets
    where: list[tuple[str, str]]
    known: list[tuple[str, str] | None]
    given: list[str]
    views: list[tuple[int, Tensor]]
    frames: list[list[int]] | None = None
    others: list[Tensor] = field(default_factory=list)
    chances: Tensor | None = None

    @property
    def counts(self) -> dict[str, int]:
        known = sum(truth is not None for truth in self.known)
        return {
            "objects": len(self.describe_index),
            "masks": len(self.targets.soft),
            "tokens": self.answer_tokens,
            "known": known,
        }

    @property
    def shown(self) -> list[list[int]]:
        """Of each object the images in which it is segmented."""
        return [[place] for place in self.segment_index] if self.frames is None else self.frames

    def rows(self, index: list[int]) -> "Batch":
        """Return a batch whose n-th object is this one's `index[n]`, for passes of the model: of the rest it has what is this one's."""
        taken = ("describe_index", "segment_index", "cells", "describe_questions", "questions", "answers", "frames", "others")
        lists = {name: getattr(self, name) for name in taken}
        soft = self.targets.soft.split([len(images) for images in self.shown])
        return replace(
            self,
            **{name: value and [value[n] for n in index] for name, value in lists.items()},
            targets=replace(self.targets, soft=torch.cat([soft[n] for n in index])),
        )

    def of_masks(self, values: Tensor) -> Tensor:
        """Return one value per mask from one per object."""
        each = sent(torch.tensor([len(images) for images in self.shown]), values.device)
        return values.repeat_interleave(each, output_size=len(self.targets.soft))


def describe(
    model: Segmenter, features: Features, batch: Batch, views: list[tuple[int, Tensor]]
) -> tuple[list[list[int]], list[bool], list[float]]:
    """Return greedy captions of the objects, by the mean of their image and its further `views`: their tokens, whether they came to
    an end, and their confidence."""
    count, each = len(batch.cells), len(views) // len(batch.cells)
    rows = [row for n in range(count) for row in ((batch.describe_index[n], batch.cells[n]), *views[n * each : (n + 1) * each])]
    index, cells = (list(column) for column in zip(*rows, strict=True))
    questions = [question for question in batch.describe_questions for _ in range(1 + each)]
    return model.caption_ids(features, index, cells, questions, batch.noise.shape[1], 1 + each)


def say(model: Segmenter, features: Features, batch: Batch, read: list[list[int]], true: list[list[int]]) -> Forward:
    """Run teacher-forced descriptions: image, region, question and the captions `read` are the input, the tokens of `true` are learnt."""
    encoded = []
    for image, cells, question, ids, labels in zip(
        batch.describe_index, batch.cells, batch.describe_questions, read, true, strict=True
    ):
        text = model.template.image_string(features.visual[image].grid.tokens) + model.region_question(cells[None], question)
        prompt = prompts.encode_prompt(model.tokenizer, model.template, text)
        encoded.append((prompt + ids, [prompts.IGNORE] * len(prompt) + labels))
    regions: list[Tensor | None] = [cells[None] for cells in batch.cells]
    return model(features, Conversations(*pad_right(encoded), batch.describe_index, regions))


def imitate(
    model: Segmenter, features: Features, batch: Batch, captions: list[list[int]], learnt: list[bool], objects: int
) -> Tensor:
    """Return the language loss by which the student learns to say the `learnt` ones of these captions about the image as it is: the mean
    over each caption's tokens and its end, divided by the step's objects."""
    end = model.tokenizer.encode(model.template.suffix, add_special_tokens=False)
    said = [ids + end for ids in captions]
    lengths = [len(ids) for ids in said]
    out = say(model, features, batch, said, said)
    counted = torch.tensor(learnt).repeat_interleave(torch.tensor(lengths))
    return cross_entropy(out.logits, out.labels, counted, lengths, objects)


def segment(
    model: Segmenter, features: Features, batch: Batch, captions: list[list[int]], embeds: Tensor | None
) -> tuple[Forward, Tensor]:
    """Return teacher-forced answers about the second images, the captions (or their `embeds`) in the expression's place; mask logits."""
    encoded, marks = [], []
    for shown, question, answer, caption in zip(batch.shown, batch.questions, batch.answers, captions, strict=True):
        text = "".join(model.template.image_string(features.visual[place].grid.tokens) for place in shown) + question
        before, after = prompts.encode_gap(model.tokenizer, model.template, text)
        target = model.tokenizer.encode(answer + model.template.suffix, add_special_tokens=False)
        encoded.append((before + caption + after + target, [prompts.IGNORE] * len(before + caption + after) + target))
        marks.append((len(before), len(caption)))
    ids, labels, attention = pad_right(encoded)
    at = None
    if embeds is not None:
        at = torch.zeros_like(ids, dtype=torch.bool)
        for row, (start, length) in zip(at, marks, strict=True):
            row[start : start + length] = True
    index, frames = batch.segment_index, batch.frames
    out = model(features, Conversations(ids, labels, attention, index, [None] * len(ids), embeds, at, frames=frames))
    if batch.frames is not None:
        return out, model.masks_in(features, batch.frames, out.seg_embeds).low_res
    return out, model.masks(features, out.seg_image, out.seg_embeds).low_res
