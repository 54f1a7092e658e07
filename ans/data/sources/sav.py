"""Pairs of frames of SA-V's masklets: `**/masklet_data_<number>.npz`, each one object in two frames.

Arrays `frame1`, `frame2` (height, width, 3) and `mask1`, `mask2` (height, width) or (height, width, 1), uint8 or float, all of
one height and width; above zero is the object. Further arrays are ignored. The order of the colours is taken as RGB.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ans.data import masks
from ans.data.disk import below
from ans.data.images import array
from ans.data.npz import array_shapes, read_array
from ans.data.records import ImageRecord, Region, Skipped
from ans.data.sources.common import source_folder

NAME = re.compile(r"masklet_data_\d+\.npz")
ARRAYS = ("frame1", "mask1", "frame2", "mask2")


Unread = tuple[Path, int]
"""A file and its position."""


def plan(root: Path, folder: str, name: str) -> list[Unread]:
    """Return every file, in order of their paths. Raises `FileNotFoundError` without the folder."""
    paths = [place / file_name for place, names in _folders(source_folder(root, folder, name)) for file_name in names]
    return [(path, number) for number, path in enumerate(paths)]


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield one record with one region; `image_id` and `region_id` are the position among all files.

    An object that is gone in the second frame is kept without it. Of the frames only the headers are read here.
    """
    yield _pair(root, *unread)


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return the number of pairs per folder."""
    base = source_folder(root, folder, name)
    return [f"{place.relative_to(base).as_posix()}: {len(names)} npz" for place, names in _folders(base)]


def _folders(base: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder with pairs and their file names, both in order."""
    for place, subfolders, names in os.walk(base, followlinks=True):
        subfolders.sort()
        pairs = sorted(name for name in names if NAME.fullmatch(name))
        if pairs:
            yield Path(place), pairs


def _pair(root: Path, path: Path, number: int) -> ImageRecord | Skipped:
    locator = path.relative_to(root).as_posix()
    try:
        below(root, locator)
        shapes = array_shapes(path, ARRAYS)
        if len(shapes) < len(ARRAYS):
            return Skipped(locator, f"npz without all of {', '.join(ARRAYS)}")
        height, width = shapes["mask1"][:2] if len(shapes["mask1"]) >= 2 else (0, 0)
        expected = {"frame1": [(height, width, 3)], "frame2": [(height, width, 3)]}
        expected |= dict.fromkeys(("mask1", "mask2"), [(height, width), (height, width, 1)])
        if any(shapes[name] not in expected[name] for name in ARRAYS) or not 0 < max(height, width) <= masks.MAX_SIDE:
            return Skipped(locator, "frames and masks of different sizes")
        first, second = (_mask(read_array(path, name)) for name in ("mask1", "mask2"))
    except (ValueError, FileNotFoundError):
        return Skipped(locator, "not a readable npz")
    area, bbox = masks.measure(first, height, width)
    if area == 0:
        return Skipped(locator, "mask1 without a pixel")
    gone = masks.measure(second, height, width)[0] == 0
    region = Region(number, "", "", area, bbox, first, second_counts="" if gone else second)
    return ImageRecord(number, array(locator, "frame1"), width, height, (region,), "" if gone else array(locator, "frame2"))


def _mask(values: np.ndarray) -> str:
    if values.dtype.kind not in "uifb":
        raise ValueError(f"a mask of {values.dtype}")
    return masks.from_array(values.reshape(values.shape[:2]))
