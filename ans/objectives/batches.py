"""The parts of a micro-batch that tasks share: images, masks, and encoded texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ans.data.matching import record_image, region_mask
from ans.data.records import ImageRecord, Region
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.family import Grid, Pixels
from ans.objectives.mask import point_candidates


@dataclass(frozen=True)
class Images:
    """Pixels of one micro-batch. `pixels`: of each image, as the vision encoder takes it. `sam` (n, 3, S, S): of the first n images,
    those that are segmented, as the mask decoder's image encoder takes them; the others are only described. `sizes`: (height, width)
    of each image in pixels."""

    pixels: list[Pixels]
    sam: Tensor
    sizes: list[tuple[int, int]]


class ImagesOf:
    """Collects the images of one micro-batch."""

    def __init__(self, root: Path, model: ModelConfig, max_tiles: int) -> None:
        self.root, self.model, self.max_tiles = root, model, max_tiles
        self.pixels: list[Pixels] = []
        self.sam: list[Tensor] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, record: ImageRecord, second: bool = False) -> Grid:
        """Open an image that is segmented, or its second frame, and return the grid of its image tokens."""
        return self.add_image(record_image(self.root, record, second))

    def add_image(self, image: Image.Image) -> Grid:
        """Add an open image that is segmented, and return the grid of its image tokens."""
        self.sam.append(self.model.decoder.pixels(image))
        return self._add(image)

    def opened(self, record: ImageRecord) -> Image.Image:
        """Return an image that is only described, to be added behind those that are segmented."""
        return record_image(self.root, record)

    def add_described(self, image: Image.Image) -> int:
        """Add what `opened` gave and return its number among the images."""
        self._add(image)
        return len(self.pixels) - 1

    def pack(self) -> Images:
        return Images(self.pixels, torch.stack(self.sam) if self.sam else torch.empty(0), self.sizes)

    def _add(self, image: Image.Image) -> Grid:
        self.pixels.append(self.model.family.pixels(image, self.max_tiles))
        self.sizes.append((image.height, image.width))
        return self.pixels[-1].grid


@dataclass(frozen=True)
class Targets:
    """Of N objects: `soft` (N, S/4, S/4) masks in [0, 1]; `share` (N, 2), how far to the right and down these show the image
    (1 where nothing is padded); `uniform` (N, M, 2) point candidates, x and y in [0, 1). M is 0 for whole-mask losses."""

    soft: Tensor
    share: Tensor
    uniform: Tensor


class TargetsOf:
    """Collects the masks of one micro-batch, and the points on which they may be compared (0: the whole mask)."""

    def __init__(self, model: ModelConfig, mask_points: int) -> None:
        self.model = model
        self.points = point_candidates(mask_points) if mask_points else 0
        self.soft: list[Tensor] = []
        self.share: list[tuple[float, float]] = []
        self.uniform: list[np.ndarray] = []

    def add(self, record: ImageRecord, region: Region, rng: np.random.Generator, second: bool = False) -> None:
        """Add the region's mask in the record's image, or in its second frame."""
        self.add_mask(region_mask(record, region, second), rng)

    def add_mask(self, mask: np.ndarray, rng: np.random.Generator) -> None:
        """Add a mask (h, w), bool or 0 and 1, at its image's size."""
        self.soft.append(self.model.decoder.soft_target(torch.from_numpy(mask)))
        self.share.append(self.model.decoder.image_share(*mask.shape))
        self.uniform.append(rng.random((self.points, 2), dtype=np.float32))

    def pack(self) -> Targets:
        return Targets(torch.stack(self.soft), torch.tensor(self.share), torch.from_numpy(np.stack(self.uniform)))


def draw_questions(rng: np.random.Generator, description_prompts: int) -> tuple[str, str, str]:
    """Return a description question, a segmentation question with `{}`, and its answer."""
    describe = prompts.DESCRIBE_PROMPTS[rng.integers(description_prompts)]
    question = prompts.SEG_QUESTIONS[rng.integers(len(prompts.SEG_QUESTIONS))]
    return describe, question, prompts.SEG_ANSWERS[rng.integers(len(prompts.SEG_ANSWERS))]


def pad_right(encoded: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Map (ids, labels) lists to ids, labels and mask, each (R, L)."""
    length = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in encoded])
    labels = torch.tensor([row + [prompts.IGNORE] * (length - len(row)) for _, row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in encoded])
    return ids, labels, mask


def labels_of(labels: Tensor) -> int:
    """Return labels (R, L) that the language loss counts; the first position of a row predicts nothing."""
    return int((labels[:, 1:] != prompts.IGNORE).sum())
