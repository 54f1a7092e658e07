"""What the objectives are fed: micro-batches of the three kinds, as tensors and texts. `ans/data/dataset.py` makes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ans.model import prompts


@dataclass(frozen=True)
class Images:
    """Pixels of one micro-batch. `tiles`: per image (T_i, 3, S, S). `sam` (n, 3, S', S'): of the first n images, those that are
    segmented; the others are only described. `sizes`: (height, width) of each image in pixels."""

    tiles: list[Tensor]
    sam: Tensor
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class Targets:
    """Of N objects: `soft` (N, S/4, S/4) masks in [0, 1]; `share` (N, 2), how far to the right and down these show the image
    (1 where nothing is padded); `uniform` (N, M, 2) point candidates, x and y in [0, 1). M is 0 for whole-mask losses."""

    soft: Tensor
    share: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class ReferringBatch:
    """Conversations about images. `ids`, `labels`, `mask`: (R, L), padded on the right; `image_index` (R,): image of each row.
    `targets` in the order in which `[SEG]` comes in the rows."""

    images: Images
    ids: Tensor
    labels: Tensor
    mask: Tensor
    image_index: list[int]
    targets: Targets

    @property
    def counts(self) -> tuple[int, int]:
        """Objects, and labels that the language loss counts (the first position predicts nothing)."""
        return len(self.targets.soft), int((self.labels[:, 1:] != prompts.IGNORE).sum())


@dataclass(frozen=True)
class MaskBatch:
    """R objects without text, each on one image to describe and one to segment (two frames of a video, or the same image).

    `describe_index`, `segment_index` (R,): their images. `cells` (R, G, G): grid cells of the objects on the former. `questions`
    hold `{}` for the expression. `corruption` (R, T, 2) in [0, 1): where and by what the caption is corrupted. `noise` (R, T, k):
    Gumbel noise. `answer_tokens`: labels of the answers.
    """

    images: Images
    describe_index: list[int]
    segment_index: list[int]
    cells: Tensor
    describe_questions: list[str]
    questions: list[str]
    answers: list[str]
    answer_tokens: int
    corruption: Tensor
    noise: Tensor
    targets: Targets
    where: list[tuple[str, str]]
    """(locator of the segmented image, source) of each object, for what people look at."""

    @property
    def counts(self) -> tuple[int, int]:
        """Objects and labels of the answers."""
        return len(self.describe_index), self.answer_tokens


@dataclass(frozen=True)
class CaptionBatch:
    """R captioned regions, one per image, in image order. `captions`: ids as they are learnt, with the end token unless the
    caption is longer than T. `texts`: the captions as expressions. `targets`: the true masks, for optional supervision only."""

    images: Images
    captions: list[list[int]]
    texts: list[str]
    describe_questions: list[str]
    questions: list[str]
    answers: list[str]
    answer_tokens: int
    targets: Targets
    where: list[tuple[str, str]]
    """As in `MaskBatch`."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Objects, labels of the answers, and labels of the captions."""
        return len(self.captions), self.answer_tokens, sum(len(ids) for ids in self.captions)


Batch = ReferringBatch | MaskBatch | CaptionBatch


def pad_right(encoded: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, labels) lists -> ids, labels and mask, each (R, L)."""
    length = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in encoded])
    labels = torch.tensor([row + [prompts.IGNORE] * (length - len(row)) for _, row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in encoded])
    return ids, labels, mask
