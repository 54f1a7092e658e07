"""SA-1B as published (facebookresearch/segment-anything): `sa_<id>.jpg` with `sa_<id>.json`, lying about in four ways.

Flat in the folder; in subfolders `sa_XXXXXX/`; apart in `img/` and `js/`; in tar shards, whose members are found by offset.
Listing opens no JSON: the whole set has 11 million.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ans.data import masks
from ans.data.images import read_bytes
from ans.data.records import ImageRecord, Region, Skipped
from ans.data.sources.common import field, source_folder, tar_members

SUBFOLDER = re.compile(r"sa_\d{6}")
SUFFIXES = (".jpg", ".json")


@dataclass(frozen=True)
class Entry:
    """One image and its annotations, not opened: `name` is their common stem, `image` and `annotation` are locators."""

    name: str
    image: str
    annotation: str


def list_entries(root: Path, folder: str) -> Iterator[Entry | Skipped]:
    """Every image below `root`/`folder`, shard by shard. An image or a JSON without its partner is a `Skipped`.

    Raises `FileNotFoundError` without the folder, `ValueError` naming a tar that cannot be read.
    """
    base = source_folder(root, folder, "sa1b")
    yield from _pair(_files(root, base))
    if (base / "img").is_dir() and (base / "js").is_dir():
        yield from _pair([*_files(root, base / "img"), *_files(root, base / "js")])
    for path in sorted(base.iterdir()):
        if path.is_dir() and SUBFOLDER.fullmatch(path.name):
            yield from _pair(_files(root, path))
        elif path.suffix == ".tar" and path.is_file():
            yield from _pair(tar_members(root, path, SUFFIXES))


def fingerprint(root: Path, folder: str) -> list[str]:
    """What changes when the listing does: the number of images and of JSONs per folder, name and size of every tar."""
    base = source_folder(root, folder, "sa1b")
    lines = []
    for path in [base, *sorted(path for path in base.iterdir() if path.is_dir())]:
        suffixes = [os.path.splitext(entry.name)[1] for entry in os.scandir(path)]
        lines.append(f"{path.name}: {suffixes.count('.jpg')} jpg, {suffixes.count('.json')} json")
    lines += [f"{path.name}: {path.stat().st_size} bytes" for path in sorted(base.glob("*.tar"))]
    return lines


def read_image(root: Path, entry: Entry) -> ImageRecord:
    """Open one JSON: its masks, without expressions. Raises `ValueError` naming the file when it is not as published."""
    try:
        content = json.loads(read_bytes(root, entry.annotation))
        image = field(content, "image", dict)
        image_id, width, height = (field(image, key, int) for key in ("image_id", "width", "height"))
        regions = (_region(annotation, width, height) for annotation in field(content, "annotations", list))
        drawn = tuple(region for region in regions if region.area > 0)  # as SAM 2's own loader
        if not drawn:
            raise ValueError("no mask with a pixel")
        return ImageRecord(image_id, entry.image, width, height, drawn)
    except (ValueError, RecursionError) as error:  # a RecursionError: json, on brackets without end
        raise ValueError(f"{entry.annotation}: not an SA-1B annotation: {error}") from error


def _region(annotation: Any, width: int, height: int) -> Region:
    counts = masks.from_segmentation(field(annotation, "segmentation", dict), height, width)
    area, bbox = masks.measure(counts, height, width)
    return Region(field(annotation, "id", int), "", "", area, bbox, counts)


def _files(root: Path, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(stem, suffix, locator) of the images and JSONs directly in a folder."""
    below = folder.relative_to(root).as_posix()
    for entry in os.scandir(folder):
        stem, suffix = os.path.splitext(entry.name)
        if suffix in SUFFIXES:
            yield stem, suffix, f"{below}/{entry.name}"


def _pair(files: Iterable[tuple[str, str, str]]) -> Iterator[Entry | Skipped]:
    waiting: dict[str, tuple[str, str]] = {}
    for stem, suffix, locator in files:
        other = waiting.pop(stem, None)
        if other is None:
            waiting[stem] = (suffix, locator)
        elif suffix == ".jpg":
            yield Entry(stem, locator, other[1])
        else:
            yield Entry(stem, other[1], locator)
    for stem, (suffix, _) in waiting.items():
        yield Skipped(stem, "image without JSON" if suffix == ".jpg" else "JSON without image")
