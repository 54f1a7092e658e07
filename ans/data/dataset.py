"""Index -> training samples. Which image comes when, and every random choice in it, is a pure function of seeds and positions, so
any number of processes, and a resumed run, see the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ans.data.images import open_image
from ans.data.index import Index
from ans.data.records import ImageRecord, Region
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.preprocess import normalise, sam_image, tiles
from ans.objectives.mask import point_candidates

TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class Batch:
    """The images of one forward on one process, and conversations about them.

    `ids`, `labels`, `mask`: (R, L), padded on the right. `image_index` (R,): image of each row. `targets` (N, S/4, S/4): soft
    masks in [0, 1], in the order in which `[SEG]` comes in the rows. `uniform` (N, M, 2): point candidates; M is 0 for
    whole-mask losses.
    """

    tile_pixels: list[Tensor]
    sam_pixels: Tensor
    sizes: list[tuple[int, int]]
    ids: Tensor
    labels: Tensor
    mask: Tensor
    image_index: list[int]
    targets: Tensor
    uniform: Tensor

    @property
    def language_tokens(self) -> int:
        """Labels that the language loss counts (the first position predicts nothing)."""
        return int((self.labels[:, 1:] != prompts.IGNORE).sum())


def keyed_rng(*key: int) -> np.random.Generator:
    """A generator that depends on its key alone: (seed, step, sample, purpose)."""
    return np.random.default_rng(list(key))


def training_rows(indexes: Sequence[Index]) -> tuple[list[tuple[int, int]], int]:
    """(index, row) of every image with training regions, and how many such rows were left out because their image is in an
    evaluated split (any split but `train`) of one of the indexes. The published sets share COCO's images."""
    evaluated: set[str] = set()
    candidates: list[tuple[int, int, str]] = []
    for number, index in enumerate(indexes):
        for row, record in enumerate(index.records()):
            splits = {region.split for region in record.regions}
            if splits - {TRAIN_SPLIT}:
                evaluated.add(record.path)
            if TRAIN_SPLIT in splits:
                candidates.append((number, row, record.path))
    kept = [(number, row) for number, row, path in candidates if path not in evaluated]
    return kept, len(candidates) - len(kept)


def region_mask(record: ImageRecord, region: Region) -> np.ndarray:
    """The region's mask, (height, width) uint8 in {0, 1}."""
    return coco.decode({"size": [record.height, record.width], "counts": region.counts.encode()})


def soft_target(mask: np.ndarray, side: int) -> Tensor:
    """(side, side) share of each cell that the mask covers."""
    return F.interpolate(torch.from_numpy(mask)[None, None].float(), size=(side, side), mode="area")[0, 0]


class ReferringDataset(Dataset):
    """Item `i` is the i-th micro-batch of this process: images in a seeded order, each with objects drawn from it.

    `batch` images per micro-batch and process; `process` of `processes` takes its slice of each global micro-batch.
    """

    def __init__(
        self,
        indexes: Sequence[Index],
        rows: Sequence[tuple[int, int]],
        root: Path,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        batches: int,
        batch: int,
        objects_per_image: int,
        objects_per_conversation: int,
        max_tiles: int,
        mask_points: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if not rows:
            raise ValueError(f"no image to train on: none of the indexed sources below {root} has a `{TRAIN_SPLIT}` region")
        self.indexes, self.rows, self.root, self.config, self.tokenizer = indexes, rows, root, config, tokenizer
        self.template = prompts.TEMPLATES[config.template]
        self.seed, self.batches, self.batch = seed, batches, batch
        self.objects_per_image, self.objects_per_conversation = objects_per_image, objects_per_conversation
        self.max_tiles, self.mask_points = min(max_tiles, config.max_tiles), mask_points
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, item: int) -> Batch:
        if not 0 <= item < self.batches:
            raise IndexError(item)
        first = (item * self.processes + self.process) * self.batch
        positions = range(first, first + self.batch)
        return self._collate([(self._row(position), position) for position in positions])

    def _row(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, len(self.rows))
        return self.rows[keyed_rng(self.seed, epoch).permutation(len(self.rows))[offset]]

    def _collate(self, chosen: list[tuple[tuple[int, int], int]]) -> Batch:
        config, side = self.config, self.config.sam2.image_size // 4
        tile_pixels, sam_pixels, sizes, encoded, image_index, targets, uniform = [], [], [], [], [], [], []
        for place, ((number, row), position) in enumerate(chosen):
            record = self.indexes[number].record(row)
            image = open_image(self.root, record.path)
            parts = tiles(image, config.image_size, config.min_tiles, self.max_tiles, config.use_thumbnail)
            tile_pixels.append(normalise(parts))
            sam_pixels.append(sam_image(image, config.sam2.image_size))
            sizes.append((image.height, image.width))
            rng = keyed_rng(self.seed, position, 1)
            regions = [region for region in record.regions if region.split == TRAIN_SPLIT and region.expressions]
            picked = [regions[i] for i in rng.permutation(len(regions))[: self.objects_per_image]]
            targets += [soft_target(region_mask(record, region), side) for region in picked]
            uniform += [self._points(rng) for _ in picked]
            for start in range(0, len(picked), self.objects_per_conversation):
                turns = self._turns(picked[start : start + self.objects_per_conversation], len(parts), rng)
                encoded.append(prompts.encode_conversation(self.tokenizer, self.template, turns))
                image_index.append(place)
        ids, labels, mask = pad_right(encoded)
        return Batch(
            tile_pixels, normalise(sam_pixels), sizes, ids, labels, mask, image_index, torch.stack(targets), torch.stack(uniform)
        )

    def _turns(self, regions: Sequence[Region], tile_count: int, rng: np.random.Generator) -> list[prompts.Turn]:
        turns = []
        for region in regions:
            expression = region.expressions[rng.integers(len(region.expressions))]
            question = prompts.SEG_QUESTIONS[rng.integers(len(prompts.SEG_QUESTIONS))]
            text = question.format(prompts.expression_text(expression.sent))
            image = "" if turns else prompts.image_string(tile_count * self.config.tokens_per_tile)
            turns.append(prompts.Turn(image + text, prompts.SEG_ANSWERS[rng.integers(len(prompts.SEG_ANSWERS))]))
        return turns

    def _points(self, rng: np.random.Generator) -> Tensor:
        count = point_candidates(self.mask_points) if self.mask_points else 0
        return torch.from_numpy(rng.random((count, 2), dtype=np.float32))


def pad_right(encoded: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, labels) lists -> ids, labels and mask, each (R, L)."""
    length = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in encoded])
    labels = torch.tensor([row + [prompts.IGNORE] * (length - len(row)) for _, row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in encoded])
    return ids, labels, mask
