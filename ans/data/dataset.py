"""Index -> training samples: micro-batches of one process.

Every random choice is keyed by the seed and the sample's position, so any number of processes, and a resumed run, see the same.

`item` is the number of a micro-batch, the same on all processes; process p of P takes the p-th of P slices of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ans.data.arrow import Index
from ans.data.matching import record_image, region_mask
from ans.data.mixing import Pool, interleaved, keyed_rng
from ans.data.records import ImageRecord, Region
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.visual_prompt import region_cells
from ans.objectives.batches import CaptionBatch, Images, MaskBatch, ReferringBatch, Targets, pad_right
from ans.objectives.mask import point_candidates

TRAIN_SPLIT = "train"
REFERRING, MASKS, CAPTIONS = 0, 1, 2
"""Streams of samples: the second part of every key."""


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn; see `params.yaml`. Lengths in tokens."""

    seed: int
    batch: int
    max_tiles: int
    mask_points: int
    objects_per_image: int
    masks_per_image: int
    objects_per_conversation: int
    caption_len: int
    top_k: int
    description_prompts: int


def training_rows(indexes: Sequence[Index]) -> tuple[list[tuple[int, int]], int]:
    """(index, row) of every image with training regions, and how many such rows were left out because their image is in an
    evaluated split (any split but `train`) of one of the indexes. The published sets share COCO's images."""
    evaluated: set[str] = set()
    candidates: list[tuple[int, int, str]] = []
    for number, index in enumerate(indexes):
        for row, record in enumerate(index.records()):
            photograph = _photograph(record.path)
            if {region.split for region in record.regions} - {TRAIN_SPLIT}:
                evaluated.add(photograph)
            if any(map(_taught, record.regions)):
                candidates.append((number, row, photograph))
    kept = [(number, row) for number, row, photograph in candidates if photograph not in evaluated]
    return kept, len(candidates) - len(kept)


def _photograph(path: str) -> str:
    """What an image is known by. A COCO photograph has one name wherever it lies: each RefCOCO set may have its own folder."""
    name = path.rpartition("/")[2]
    return name if name.startswith("COCO_") else path


def _taught(region: Region) -> bool:
    """Whether a region is for supervised training. An expression of nothing (gRefCOCO) is not: `[SEG]` promises an object."""
    return region.split == TRAIN_SPLIT and bool(region.expressions) and region.area > 0


@dataclass(frozen=True)
class Referring:
    """Images with expressions: (index, row) of each, as `training_rows` gives them. One sample is one image."""

    indexes: Sequence[Index]
    rows: Sequence[tuple[int, int]]


class Regions:
    """Regions of one source. One sample is one region with a pixel, and of no evaluated split; if `described`, with a text.
    `max_samples` keeps the first in the index's order."""

    SPLITS = ("", TRAIN_SPLIT)

    def __init__(self, name: str, index: Index, max_samples: int | None, described: bool = False) -> None:
        self.name, self.index, self.described = name, index, described
        self.ends = np.cumsum(index.region_counts(self.SPLITS, described))
        self.count = min(int(self.ends[-1]) if len(self.ends) else 0, max_samples or int(1e18))

    def sample(self, i: int) -> tuple[ImageRecord, Region]:
        row = int(np.searchsorted(self.ends, i, side="right"))
        record = self.index.record(row)
        return record, self.usable(record)[i - (int(self.ends[row - 1]) if row else 0)]

    def usable(self, record: ImageRecord) -> list[Region]:
        """The regions of an image of this source that are samples."""
        of_splits = [region for region in record.regions if region.area and region.split in self.SPLITS]
        return [region for region in of_splits if region.expressions or not self.described]


class TrainingData(Dataset):
    """Item i is the i-th micro-batch of this process: what loop 1 or the supervised objective reads, and what loop 2 does.

    `masks` with their `repeats` make up loop 1, `captions` loop 2; either may be absent. Steps (of `accumulation` items) on
    referring images are spread among the others in proportion to the numbers of samples, and the very first is one.
    """

    def __init__(
        self,
        referring: Referring,
        masks: Sequence[Regions],
        repeats: Sequence[float],
        captions: Regions | None,
        root: Path,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        items: int,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if not referring.rows:
            raise ValueError(f"no image to train on: none of the indexed sources below {root} has a `{TRAIN_SPLIT}` region")
        self.referring, self.masks, self.captions = referring, masks, captions
        self.root, self.config, self.tokenizer, self.sampling = root, config, tokenizer, sampling
        self.template = prompts.TEMPLATES[config.template]
        self.items, self.accumulation, self.process, self.processes = items, accumulation, process, processes
        self.referring_pool = Pool([len(referring.rows)], [1.0], sampling.seed, REFERRING, "referring")
        self.mask_pool = (
            Pool(
                [s.count for s in masks],
                repeats,
                sampling.seed,
                MASKS,
                f"train.loop1.sources: {', '.join(s.name for s in masks)}",
            )
            if masks
            else None
        )
        self.caption_pool = (
            Pool([captions.count], [1.0], sampling.seed, CAPTIONS, f"train.loop2.source: {captions.name}") if captions else None
        )
        whole = len(self.referring_pool) + (len(self.mask_pool) if self.mask_pool else 0)
        self.referring_share = len(self.referring_pool) / whole

    def __len__(self) -> int:
        return self.items

    def sizes(self) -> dict[str, int]:
        """Samples of each source, before repeats."""
        rows = self.referring.rows
        sizes = {"referring images": len(rows)}
        images = len({self.referring.indexes[number].record(row).path for number, row in rows})
        if images != len(rows):  # ReasonSeg has a row for each query, and the RefCOCO sets share images
            sizes["distinct referring images"] = images
        sizes |= {source.name: source.count for source in self.masks}
        return sizes | ({self.captions.name: self.captions.count} if self.captions else {})

    def is_referring(self, step: int) -> bool:
        """Whether loop 1's place is taken by the supervised objective in this step."""
        return interleaved(step, self.referring_share)

    def __getitem__(self, item: int) -> tuple[ReferringBatch | MaskBatch, CaptionBatch | None]:
        if not 0 <= item < self.items:
            raise IndexError(item)
        step, micro = divmod(item, self.accumulation)
        before = ceil(step * self.referring_share)  # steps on referring images
        if self.is_referring(step):
            first = self._referring(self._positions(before * self.accumulation + micro))
        else:
            first = self._masks(self._positions((step - before) * self.accumulation + micro))
        return first, self._captions(self._positions(item)) if self.captions else None

    def _positions(self, number: int) -> range:
        first = (number * self.processes + self.process) * self.sampling.batch
        return range(first, first + self.sampling.batch)

    def _rng(self, stream: int, position: int) -> np.random.Generator:
        return keyed_rng(self.sampling.seed, stream, position, 1)

    # ------------------------------------------------------------------------------------------ the three kinds

    def _referring(self, positions: range) -> ReferringBatch:
        sampling = self.sampling
        images, targets, encoded, image_index = _Loader(self, sampling.max_tiles), _Targets(self), [], []
        for place, position in enumerate(positions):
            number, row = self.referring.rows[self.referring_pool.at(position)[1]]
            record = self.referring.indexes[number].record(row)
            tokens = images.add(record) * self.config.tokens_per_tile
            rng = self._rng(REFERRING, position)
            regions = [region for region in record.regions if _taught(region)]
            picked = [regions[i] for i in rng.permutation(len(regions))[: sampling.objects_per_image]]
            for region in picked:
                targets.add(record, region, rng)
            for start in range(0, len(picked), sampling.objects_per_conversation):
                turns = self._turns(picked[start : start + sampling.objects_per_conversation], tokens, rng)
                encoded.append(prompts.encode_conversation(self.tokenizer, self.template, turns))
                image_index.append(place)
        ids, labels, mask = pad_right(encoded)
        return ReferringBatch(images.pack(), ids, labels, mask, image_index, targets.pack())

    def _masks(self, positions: range) -> MaskBatch:
        sampling, side = self.sampling, self.config.grid_side
        images, targets = _Loader(self, max_tiles=1), _Targets(self)
        described: dict[int, ImageRecord] = {}
        segment, cells, questions, corruption, noise, where = [], [], [], [], [], []
        for place, position in enumerate(positions):
            source, number = self.mask_pool.at(position)
            record, region = self.masks[source].sample(number)
            rng = self._rng(MASKS, position)
            two_views = bool(record.second and region.second_counts)
            images.add(record, second=two_views)
            if two_views:
                described[place] = record
            others = [o for o in self.masks[source].usable(record) if o != region and bool(o.second_counts) == two_views]
            picked = [others[i] for i in rng.permutation(len(others))[: sampling.masks_per_image - 1]]
            for one in [region, *picked]:
                segment.append(place)
                cells.append(region_cells(torch.from_numpy(region_mask(record, one))[None], side)[0])
                targets.add(record, one, rng, second=two_views)
                questions.append(self._questions(rng))
                corruption.append(rng.random((sampling.caption_len, 2), dtype=np.float32))
                noise.append(rng.gumbel(size=(sampling.caption_len, sampling.top_k)).astype(np.float32))
                where.append((record.second if two_views else record.path, self.masks[source].name))
        # frames that are only described come behind those that are segmented
        behind = {place: images.add_described(record) for place, record in described.items()}
        index = [behind.get(place, place) for place in segment]
        describe, ask, answers = (list(column) for column in zip(*questions, strict=True))
        return MaskBatch(
            images.pack(), index, segment, torch.stack(cells), describe, ask, answers,
            self._answer_tokens(answers), torch.from_numpy(np.stack(corruption)), torch.from_numpy(np.stack(noise)),
            targets.pack(), where,
        )  # fmt: skip

    def _captions(self, positions: range) -> CaptionBatch:
        images, targets, learnt, texts, questions, where = _Loader(self, max_tiles=1), _Targets(self), [], [], [], []
        for position in positions:
            record, region = self.captions.sample(self.caption_pool.at(position)[1])
            rng = self._rng(CAPTIONS, position)
            images.add(record)
            caption = region.expressions[rng.integers(len(region.expressions))].sent
            ids = self.tokenizer.encode(caption + self.template.suffix, add_special_tokens=False)
            learnt.append(ids[: self.sampling.caption_len])
            texts.append(prompts.expression_text(caption))
            where.append((record.path, self.captions.name))
            targets.add(record, region, rng)
            questions.append(self._questions(rng))
        describe, ask, answers = (list(column) for column in zip(*questions, strict=True))
        return CaptionBatch(
            images.pack(), learnt, texts, describe, ask, answers, self._answer_tokens(answers),
            targets.pack(), where,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ their parts

    def _turns(self, regions: Sequence[Region], image_tokens: int, rng: np.random.Generator) -> list[prompts.Turn]:
        turns = []
        for region in regions:
            expression = region.expressions[rng.integers(len(region.expressions))].sent
            questions = self.template.training_questions(expression)
            text = questions[rng.integers(len(questions))].format(self.template.expression(expression))
            image = "" if turns else self.template.image_string(image_tokens)
            turns.append(prompts.Turn(image + text, prompts.SEG_ANSWERS[rng.integers(len(prompts.SEG_ANSWERS))]))
        return turns

    def _questions(self, rng: np.random.Generator) -> tuple[str, str, str]:
        """A description question, a segmentation question with `{}`, and its answer."""
        describe = prompts.DESCRIBE_PROMPTS[rng.integers(self.sampling.description_prompts)]
        question = prompts.SEG_QUESTIONS[rng.integers(len(prompts.SEG_QUESTIONS))]
        return describe, question, prompts.SEG_ANSWERS[rng.integers(len(prompts.SEG_ANSWERS))]

    def _answer_tokens(self, answers: Sequence[str]) -> int:
        return sum(len(self.tokenizer.encode(a + self.template.suffix, add_special_tokens=False)) for a in answers)


class _Targets:
    """Collects the masks of one micro-batch, and the points on which they may be compared."""

    def __init__(self, data: TrainingData) -> None:
        self.config = data.config
        self.points = point_candidates(data.sampling.mask_points) if data.sampling.mask_points else 0
        self.soft: list[Tensor] = []
        self.share: list[tuple[float, float]] = []
        self.uniform: list[np.ndarray] = []

    def add(self, record: ImageRecord, region: Region, rng: np.random.Generator, second: bool = False) -> None:
        self.soft.append(self.config.soft_target(torch.from_numpy(region_mask(record, region, second))))
        self.share.append(self.config.image_share(record.height, record.width))
        self.uniform.append(rng.random((self.points, 2), dtype=np.float32))

    def pack(self) -> Targets:
        return Targets(torch.stack(self.soft), torch.tensor(self.share), torch.from_numpy(np.stack(self.uniform)))


class _Loader:
    """Collects the images of one micro-batch."""

    def __init__(self, data: TrainingData, max_tiles: int) -> None:
        self.data, self.max_tiles = data, max_tiles
        self.tiles: list[Tensor] = []
        self.sam: list[Tensor] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, record: ImageRecord, second: bool = False) -> int:
        """Open an image that is segmented, or its second frame, and return its number of tiles."""
        image = record_image(self.data.root, record, second)
        self.sam.append(self.data.config.sam_pixels(image))
        return self._cut(image)

    def add_described(self, record: ImageRecord) -> int:
        """Open an image that is only described and return its number among the images."""
        self._cut(record_image(self.data.root, record))
        return len(self.tiles) - 1

    def pack(self) -> Images:
        return Images(self.tiles, torch.stack(self.sam), self.sizes)

    def _cut(self, image: Image.Image) -> int:
        parts = self.data.config.tiles(image, self.max_tiles)
        self.tiles.append(parts)
        self.sizes.append((image.height, image.width))
        return len(parts)
