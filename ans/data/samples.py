"""Which images and regions of the indexes are for training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ans.data.arrow import Index
from ans.data.images import byte_size, content, read_bytes
from ans.data.records import ImageRecord, Region

TRAIN_SPLIT = "train"


def training_rows(indexes: Sequence[Index], root: Path | None = None) -> tuple[list[tuple[int, int]], int]:
    """(index, row) of every image with training regions, and how many such rows were left out because their image is in an
    evaluated split (any split but `train`) of one of the indexes. The published sets share COCO's images; a photograph of your own
    data is known by its content, and with `root` also among published ones (only files of the same size are opened)."""
    own = {record.content for index in indexes if index.reader == "own" for record in index.records()}
    sizes = {int(known.partition(":")[0]) for known in own if known}
    evaluated: set[str] = set()
    candidates: list[tuple[int, int, set[str]]] = []
    for number, index in enumerate(indexes):
        for row, record in enumerate(index.records()):
            known = {_photograph(record.path)} | ({record.content} if record.content else set())
            if root and sizes and not record.content and byte_size(root, record.path) in sizes:
                known.add(content(read_bytes(root, record.path)))
            if {region.split for region in record.regions} - {TRAIN_SPLIT}:
                evaluated |= known
            if any(map(is_taught, record.regions)):
                candidates.append((number, row, known))
    kept = [(number, row) for number, row, known in candidates if not known & evaluated]
    return kept, len(candidates) - len(kept)


def _photograph(path: str) -> str:
    """What an image is known by. A COCO photograph has one name wherever it lies: each RefCOCO set may have its own folder."""
    name = path.rpartition("/")[2]
    return name if name.startswith("COCO_") else path


def is_taught(region: Region) -> bool:
    """Whether a region is for supervised training. An expression of nothing (gRefCOCO) is not: `[SEG]` promises an object."""
    return region.split == TRAIN_SPLIT and bool(region.expressions) and region.area > 0


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
