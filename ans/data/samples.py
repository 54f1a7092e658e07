"""Which images and regions of the indexes are for training."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ans.data.arrow import Index
from ans.data.images import byte_size, content, read_bytes
from ans.data.records import ImageRecord, Region

TRAIN_SPLIT = "train"
FOR_TRAINING = ("", TRAIN_SPLIT)
"""Splits of regions: those of any other are evaluated."""

Size = tuple[int, int]


class Evaluated:
    """The photographs of the evaluated splits of some indexes, any split but `train`. None of them is trained on, by no task.

    A photograph is known by its path, and one of COCO by its name, since each RefCOCO set may have its own folder of them. Below `root`
    it is also known by its content, under whatever path or in whatever tar: what has as many pixels and as many bytes as an evaluated
    one is opened. Of the others the disk is not asked: a set may have millions.
    """

    def __init__(self, indexes: Iterable[Index] = (), root: Path | None = None) -> None:
        self._root = root
        self._names: set[str] = set()
        self._contents: set[str] = set()
        self._sizes: set[Size | None] = set()
        self._unopened: dict[int, list[str]] = {}  # size in bytes -> paths whose content is not known yet
        for index in indexes:
            for (path, known, size), evaluated in zip(index.photographs(), index.has_others(FOR_TRAINING), strict=True):
                if evaluated:
                    self.add(path, known, size)

    def add(self, path: str, known: str = "", size: Size | None = None) -> None:
        """Add one more photograph, with the `content` and the (width, height) of its record where those are known."""
        self._names.add(_photograph(path))
        self._sizes.add(size)
        if known:
            self._contents.add(known)
            self._unopened.setdefault(_bytes_of(known), [])
        elif self._root is not None and (of_file := byte_size(self._root, path)) is not None:
            self._unopened.setdefault(of_file, []).append(path)

    def holds(self, path: str, known: str, size: Size | None = None) -> bool:
        """Return whether the photograph at `path`, with the `content` of its record or "" and its (width, height), is one of them."""
        if _photograph(path) in self._names or known in self._contents:
            return True
        if not self._unopened or (size is not None and None not in self._sizes and size not in self._sizes):
            return False
        of_file = _bytes_of(known) if known else byte_size(self._root, path) if self._root is not None else None
        if of_file is None or of_file not in self._unopened:
            return False
        self._contents |= {self._content(other) for other in self._unopened[of_file]} - {""}
        self._unopened[of_file] = []
        return (known or self._content(path)) in self._contents

    def _content(self, path: str) -> str:
        if self._root is None:
            return ""
        try:
            return content(read_bytes(self._root, path))
        except (OSError, ValueError):  # is found where it is used
            return ""


def training_rows(indexes: Sequence[Index], evaluated: Evaluated) -> tuple[list[tuple[int, int]], int]:
    """Return (index, row) of every image with regions for supervised training, without those that are evaluated; how many these were."""
    kept, left_out = [], 0
    for number, index in enumerate(indexes):
        taught = index.region_counts((TRAIN_SPLIT,), described=True) > 0
        for row, photograph in enumerate(index.photographs()):
            if taught[row]:
                if evaluated.holds(*photograph):
                    left_out += 1
                else:
                    kept.append((number, row))
    return kept, left_out


def _bytes_of(known: str) -> int:
    return int(known.partition(":")[0])


def _photograph(path: str) -> str:
    """Return what an image is known by. A COCO photograph has one name wherever it lies: each RefCOCO set may have its own folder."""
    name = path.rpartition("/")[2]
    return name if name.startswith("COCO_") else path


def is_taught(region: Region, no_target: bool = False) -> bool:
    """Return whether a region is for supervised training. An expression of nothing (gRefCOCO) is so with `no_target` alone."""
    return region.split == TRAIN_SPLIT and bool(region.expressions) and (no_target or region.area > 0)


class Regions:
    """Regions of one source. One sample is one region with a pixel, of no evaluated split and on no evaluated photograph; if
    `described`, with a text. `max_samples` keeps the first in the index's order. `left_out`: images that are evaluated."""

    def __init__(self, name: str, index: Index, evaluated: Evaluated, max_samples: int | None, described: bool = False) -> None:
        self.name, self.index, self.described = name, index, described
        counts = index.region_counts(FOR_TRAINING, described)
        held = [bool(n) and evaluated.holds(*photograph) for n, photograph in zip(counts, index.photographs(), strict=True)]
        self.left_out = sum(held)
        counts[held] = 0
        self.ends = np.cumsum(counts)
        total = int(self.ends[-1]) if len(self.ends) else 0
        self.count = total if max_samples is None else min(total, max_samples)

    def sample(self, i: int) -> tuple[ImageRecord, Region]:
        row = int(np.searchsorted(self.ends, i, side="right"))
        record = self.index.record(row)
        return record, self.usable(record)[i - (int(self.ends[row - 1]) if row else 0)]

    def usable(self, record: ImageRecord) -> list[Region]:
        """Return the regions of an image of this source that are samples."""
        of_splits = [region for region in record.regions if region.area and region.split in FOR_TRAINING]
        return [region for region in of_splits if region.expressions or not self.described]
