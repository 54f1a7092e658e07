"""ReasonSeg as published (dvlab-research/LISA): `{train,val,test}/<stem>.jpg` with `<stem>.json`, outlines and questions.

    {"text": ["the thing to sit on", ...], "is_sentence": true, "shapes": [{"label": "target", "points": [[x, y], ...]}, ...]}

Shapes are drawn by falling area, outline and inside, so a smaller one lies on a larger one; all targets are one mask. Pixels
labelled `ignore` count neither way; `flag` is not drawn. The files are UTF-8 or, some, Windows' cp1252.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ans.data import masks
from ans.data.images import image_size
from ans.data.records import QUERY_KINDS, Expression, ImageRecord, Region, Skipped
from ans.data.sources.common import field, source_folder

SPLITS = ("train", "val", "test")
TARGET, IGNORED = 1, 255
ALL = "-all"
"""Behind the name of a split: with every question, not only the first."""

Task = tuple[str, str, int]
"""Folder below the root, stem, and position."""


def plan(root: Path, folder: str, name: str) -> list[Task]:
    """Every image, split by split in order of their names. Raises `FileNotFoundError` without the folder or any split."""
    stems = [(f"{folder}/{split}", stem) for split in _splits(root, folder, name) for stem in _stems(root / folder / split)]
    return [(place, stem, number) for number, (place, stem) in enumerate(stems)]


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """The number of images per split."""
    return [f"{split}: {len(_stems(root / folder / split))} jpg" for split in _splits(root, folder, name)]


def read_one(root: Path, task: Task) -> Iterator[ImageRecord | Skipped]:
    """In `train` one record per question, with one region: they are different wordings. In `val` and `test` one record; its
    region has the first question, the only one that LISA evaluates, and a second region of the split `val-all` or `test-all` has
    all of them. `image_id` and `region_id` are the image's position."""
    place, stem, number = task
    key = f"{place}/{stem}"
    try:
        content = _parse(root / place / f"{stem}.json")
        width, height = image_size(root, f"{key}.jpg")
        drawn = draw(field(content, "shapes", list), height, width)
        texts = [field({"text": text}, "text", str).strip() for text in field(content, "text", list)]
        kind = QUERY_KINDS[field(content, "is_sentence", bool)]
    except FileNotFoundError:
        yield Skipped(key, "image without JSON")
        return
    except ValueError as error:
        yield Skipped(key, str(error).removeprefix(f"{root / key}").lstrip(": "))
        return
    counts = masks.from_array(drawn == TARGET)
    area, bbox = masks.measure(counts, height, width)
    if area == 0:
        yield Skipped(key, "no target that is drawn")
        return
    ignored = masks.from_array(drawn == IGNORED) if (drawn == IGNORED).any() else ""
    split = Path(place).name
    asked = tuple(Expression(1000 * number + position, text, text) for position, text in enumerate(texts))
    if not asked:
        yield Skipped(key, "no question")
        return
    evaluated = [[(split, asked[:1]), (f"{split}{ALL}", asked)]]
    for parts in [[(split, (one,))] for one in asked] if split == "train" else evaluated:
        regions = (Region(number, name, kind, area, bbox, counts, part, ignore_counts=ignored) for name, part in parts)
        yield ImageRecord(number, f"{key}.jpg", width, height, tuple(regions))


def draw(shapes: list[Any], height: int, width: int) -> np.ndarray:
    """(height, width) uint8: `TARGET`, `IGNORED` or 0. Raises `ValueError` for a shape that is not as published."""
    drawn = []
    for shape in shapes:
        label = field(shape, "label", str).lower()
        if label == "flag":
            continue
        outline = masks.polygon(_points(field(shape, "points", list)), height, width)
        drawn.append((outline, IGNORED if "ignore" in label else TARGET))
    mask = np.zeros((height, width), np.uint8)
    for outline, value in sorted(drawn, key=lambda item: -int(item[0].sum())):
        mask[outline] = value
    return mask


def _points(points: list[Any]) -> np.ndarray:
    """(points, 2) whole numbers, cut off towards zero as the original does."""
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(isinstance(value, int | float) for value in point):
            raise ValueError("shape with a point that is not x and y")
        if not all(math.isfinite(value) and abs(value) <= 2 * masks.MAX_SIDE for value in point):
            raise ValueError("shape far outside the image")
    if not points:
        raise ValueError("shape without points")
    return np.array(points, np.float64).astype(np.int64)


def _parse(path: Path) -> Any:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252")  # a UnicodeDecodeError is a ValueError
    try:
        return json.loads(text)
    except RecursionError as error:  # brackets without end
        raise ValueError(f"not JSON: {error}") from error


def _splits(root: Path, folder: str, name: str) -> list[str]:
    base = source_folder(root, folder, name)
    found = [split for split in SPLITS if (base / split).is_dir()]
    if not found:
        raise FileNotFoundError(f"{base}: none of {', '.join(SPLITS)} is there; sources.{name} ({folder}) names their parent")
    return found


def _stems(place: Path) -> list[str]:
    return sorted(entry.name.removesuffix(".jpg") for entry in os.scandir(place) if entry.name.endswith(".jpg"))
