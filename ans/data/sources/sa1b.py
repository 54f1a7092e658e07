"""SA-1B as published (facebookresearch/segment-anything): `sa_<id>.jpg` with `sa_<id>.json`, lying about in four ways.

Flat in the folder; in subfolders `sa_XXXXXX/`; apart in `img/` and `js/`; in tar shards, whose members are found by offset.
Listing opens no JSON: the whole set has 11 million.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ans.data import masks
from ans.data.images import member, read_bytes
from ans.data.records import ImageRecord, Region, Skipped

SUBFOLDER = re.compile(r"sa_\d{6}")


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
    base = _base(root, folder)
    yield from _pair(_files(root, base))
    if (base / "img").is_dir() and (base / "js").is_dir():
        yield from _pair([*_files(root, base / "img"), *_files(root, base / "js")])
    for path in sorted(base.iterdir()):
        if path.is_dir() and SUBFOLDER.fullmatch(path.name):
            yield from _pair(_files(root, path))
        elif path.suffix == ".tar" and path.is_file():
            yield from _pair(_members(root, path))


def fingerprint(root: Path, folder: str) -> list[str]:
    """What changes when the listing does: the number of images and of JSONs per folder, name and size of every tar."""
    base = _base(root, folder)
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
        image = content["image"]
        regions = (_region(annotation, image) for annotation in content["annotations"])
        drawn = tuple(region for region in regions if region.area > 0)  # as SAM 2's own loader
        return ImageRecord(image["image_id"], entry.image, image["width"], image["height"], drawn)
    except (ValueError, KeyError, TypeError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{entry.annotation}: not an SA-1B annotation: {detail}") from error


def _region(annotation: dict[str, Any], image: dict[str, Any]) -> Region:
    counts = masks.from_segmentation(annotation["segmentation"], image["height"], image["width"])
    area, bbox = masks.measure(counts, image["height"], image["width"])
    return Region(annotation["id"], "", "", area, bbox, counts)


def _base(root: Path, folder: str) -> Path:
    base = root / folder
    if not base.is_dir():
        raise FileNotFoundError(f"{base}: not found; it is looked for below paths.root ({root}), in sources.sa1b ({folder})")
    return base


def _files(root: Path, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(stem, suffix, locator) of the images and JSONs directly in a folder."""
    below = folder.relative_to(root).as_posix()
    for entry in os.scandir(folder):
        stem, suffix = os.path.splitext(entry.name)
        if suffix in (".jpg", ".json"):
            yield stem, suffix, f"{below}/{entry.name}"


def _members(root: Path, tar: Path) -> Iterator[tuple[str, str, str]]:
    below = tar.relative_to(root).as_posix()
    try:
        with tarfile.open(tar, "r:") as shard:
            for info in shard:
                stem, suffix = os.path.splitext(os.path.basename(info.name))
                if info.isfile() and suffix in (".jpg", ".json"):
                    yield stem, suffix, member(below, info.offset_data, info.size)
                shard.members = []  # tarfile keeps every header otherwise
    except tarfile.TarError as error:
        raise ValueError(f"{tar}: not a readable tar: {error}") from error


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
