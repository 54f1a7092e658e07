"""SA-1B as published (facebookresearch/segment-anything): `sa_<id>.jpg` with `sa_<id>.json`, lying about in four ways.

Flat in the folder; in subfolders `sa_XXXXXX/`; apart in `img/` and `js/`; in tar shards, whose members are found by offset.
Listing opens no JSON: the whole set has 11 million.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from ans.config.schema import SubsetSa1b
from ans.data import masks
from ans.data.arrow import ENTRY
from ans.data.disk import is_text
from ans.data.images import read_bytes
from ans.data.parts import ordered
from ans.data.records import Noted, Skipped
from ans.data.sources.common import field, is_junk, source_folder, tar_members

SUBFOLDER = re.compile(r"sa_\d{6}")
SHARD = re.compile(r"sa_\d{6}\.tar")
"""As in the published list of links, which has other tars too (`sa_co_gold.tar`)."""
SUFFIXES = (".jpg", ".json")
ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".zst", ".xz", ".bz2", ".7z")
ASIDE = "folder or archive beside the shards that is none of them, left aside"
EMPTY = "shard without an image"

SCHEMA = ENTRY
"""What the index holds: names and locators. `ans/data/subset_sa1b.py` opens those that are used."""


@dataclass(frozen=True)
class ImageFiles:
    """One image and its annotations, not opened: `name` is their common stem, `image` and `annotation` are locators."""

    name: str
    image: str
    annotation: str


@dataclass(frozen=True)
class MaskColumns:
    """One image's masks, column by column: `id`, `area` and `edges` in pixels, `counts` (RLE).

    `edges` are x, y, width and height of the first box, then those of the next.
    """

    image_id: int
    path: str
    width: int
    height: int
    id: list[int]
    area: list[int]
    edges: list[float]
    counts: list[str]


def plan(root: Path, folder: str, name: str) -> list[Path | Noted]:
    """Return the shards: folders and tars, in order of their names; and what may hold images, but is no shard, as `Noted`. Raises
    `FileNotFoundError` without the folder, and `ValueError` where nothing but that is there."""
    base = source_folder(root, folder, name)
    folders, tars, found = _contents(base)
    apart = ["img", "js"] if {"img", "js"} <= set(folders) else []
    shards = sorted([base / name for name in folders if SUBFOLDER.fullmatch(name)] + [base / name for name in tars])
    known = {*tars, *apart}
    archives = [entry.name for entry in os.scandir(base) if entry.name not in known and entry.name.lower().endswith(ARCHIVES)]
    aside = [Noted(name, ASIDE) for name in sorted({*folders, *archives} - known) if base / name not in shards]
    if aside and not shards and not apart and not found.total():
        raise ValueError(
            f"{base}: no image and no shard (sa_000000.tar, sa_000000/), only {', '.join(one.key for one in aside[:5])}"
        )
    return [*aside, base, *([base / "img"] if apart else []), *shards]


def read_one(root: Path, shard: Path) -> Iterator[ImageFiles | Skipped]:
    """Yield every image of a shard. An image or a JSON without its partner is a `Skipped`.

    Raises `ValueError` naming a tar that cannot be read.
    """
    empty = True
    for found in _images(root, shard):
        empty = False
        yield found
    if empty and (shard.suffix == ".tar" or SUBFOLDER.fullmatch(shard.name)):
        yield Noted(shard.name, EMPTY)


def _images(root: Path, shard: Path) -> Iterator[ImageFiles | Skipped]:
    if shard.suffix == ".tar":
        return _pair(tar_members(root, shard, SUFFIXES))
    if shard.name == "img":
        return _pair(ordered(chain(_files(root, shard), _files(root, shard.with_name("js")))))
    return _pair(ordered(_files(root, shard)))


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return what changes when the listing does: the number of images and of JSONs per folder, name and size of every tar."""
    base = source_folder(root, folder, name)
    folders, tars, images = _contents(base)
    counts = [(base.name, images), *((name, _contents(base / name)[2]) for name in sorted(folders))]
    lines = [f"{name}: {found['.jpg']} jpg, {found['.json']} json" for name, found in counts]
    return [*lines, *(f"{name}: {(base / name).stat().st_size} bytes" for name in sorted(tars))]


def _contents(place: Path) -> tuple[list[str], list[str], Counter[str]]:
    """Return names of the folders and of the tars directly in a folder, and how many files of each suffix of `SUFFIXES` are there."""
    folders, tars, suffixes = [], [], Counter[str]()  # one list of 22 million would take gigabytes
    for entry in os.scandir(place):
        suffix = os.path.splitext(entry.name)[1].lower()
        if is_junk(entry.name):
            continue
        if suffix in SUFFIXES:
            suffixes[suffix] += 1
        elif entry.is_dir():
            folders.append(entry.name)
        elif SHARD.fullmatch(entry.name):
            tars.append(entry.name)
    return folders, tars, suffixes


def read_masks(root: Path, entry: ImageFiles, limits: SubsetSa1b) -> MaskColumns | Skipped:
    """Open one JSON and keep the masks within `limits`; an image without such a mask is a `Skipped`, and so is a JSON that is not as
    published.

    Areas and boxes are those that the file states, the areas compared with the masks': to find the boxes takes longer than all else
    together.
    """
    try:
        content = orjson.loads(read_bytes(root, entry.annotation))
        image = field(content, "image", dict)
        image_id, width, height = (field(image, key, int) for key in ("image_id", "width", "height"))
        if not (1 <= width <= masks.MAX_SIDE and 1 <= height <= masks.MAX_SIDE):
            raise ValueError("image of a size that no image has")
        if "file_name" in image and os.path.splitext(field(image, "file_name", str))[0] != entry.name:
            raise ValueError("JSON of another image")
        columns = _columns(field(content, "annotations", list), height, width)
        kept = _within(columns, content["annotations"], limits, height * width)
    except FileNotFoundError:
        return Skipped(entry.name, "no such file")
    except ValueError as error:  # orjson's errors are ValueErrors, too
        return Skipped(entry.name, f"not an SA-1B annotation: {error}")
    if not kept[0]:
        return Skipped(entry.name, "no mask within the limits" if any(columns[1]) else "no mask with a pixel")
    return MaskColumns(image_id, entry.image, width, height, *kept)


Columns = tuple[list[int], list[int], list[float], list[str]]
"""`id`, `area`, `edges` and `counts` of `MaskColumns`."""


def _columns(annotations: list[Any], height: int, width: int) -> Columns:
    """Raise `ValueError` where an annotation is not as published. Column by column, since there are a hundred per image."""
    try:
        masks_of = [annotation["segmentation"] for annotation in annotations]
        counts = [mask["counts"] for mask in masks_of]
        sizes = [mask["size"] for mask in masks_of]
        areas = [annotation["area"] for annotation in annotations]
        numbers = [annotation["id"] for annotation in annotations]
        boxes = [annotation["bbox"] for annotation in annotations]
    except (KeyError, TypeError):
        raise ValueError("an annotation without id, area, bbox, or segmentation with size and counts") from None
    if sizes.count([height, width]) != len(sizes):
        raise ValueError("RLE of another size than the image")
    if not set(map(type, areas + numbers)) <= {int} or max(numbers, default=0) >= 2**63:  # orjson has none below -(2**63)
        raise ValueError("id and area must be integers")
    if max(areas, default=0) > height * width or min(areas, default=0) < 0:
        raise ValueError("area that the image does not have")
    if not (set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4}):
        raise ValueError("bbox that is not four numbers")
    edges = list(chain.from_iterable(boxes))
    if not set(map(type, edges)) <= {int, float} or not math.isfinite(sum(edges)):
        raise ValueError("bbox that is not four numbers")
    if len(set(numbers)) < len(numbers):
        raise ValueError("duplicate id")
    for found, area in zip(masks.check_counts(counts, height, width), areas, strict=True):
        if not found / 2 - 4 <= area <= 2 * found + 4:
            raise ValueError("mask that is not as large as the file states")
    return numbers, areas, edges, counts


def _within(columns: Columns, annotations: list[Any], limits: SubsetSa1b, pixels: int) -> Columns:
    """Return the masks that have pixels and lie within the limits."""
    low, high = max(limits.min_area_share * pixels, 1), limits.max_area_share * pixels
    chosen = [i for i, area in enumerate(columns[1]) if low <= area <= high]
    for key, least in (("predicted_iou", limits.min_predicted_iou), ("stability_score", limits.min_stability_score)):
        if least > 0:
            if not all(type(annotation.get(key)) in (int, float) for annotation in annotations):
                raise ValueError(f"an annotation without {key}")
            chosen = [i for i in chosen if annotations[i][key] >= least]
    chosen = chosen[: limits.max_masks]
    if len(chosen) == len(annotations):
        return columns
    numbers, areas, edges, counts = columns
    edges = [edge for i in chosen for edge in edges[4 * i : 4 * i + 4]]
    return [numbers[i] for i in chosen], [areas[i] for i in chosen], edges, [counts[i] for i in chosen]


def _files(root: Path, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (stem, suffix, locator) of the images and JSONs directly in a folder."""
    below = folder.relative_to(root).as_posix()
    for entry in os.scandir(folder):
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() in SUFFIXES and not is_junk(stem):
            yield stem, suffix.lower(), f"{below}/{entry.name}"


def _pair(files: Iterable[tuple[str, str, str]]) -> Iterator[ImageFiles | Skipped]:
    waiting: dict[str, tuple[str, str]] = {}
    for stem, suffix, locator in files:
        if not is_text(f"{stem}{locator}"):
            yield Skipped(ascii(stem), "name with a control character, or with bytes that are not valid text")
            continue
        other = waiting.pop(stem, None)
        if other is None:
            waiting[stem] = (suffix, locator)
        elif suffix == other[0]:
            waiting[stem] = other
            yield Skipped(f"{stem}{suffix}", "duplicate name; the first one is used")
        elif suffix == ".jpg":
            yield ImageFiles(stem, locator, other[1])
        else:
            yield ImageFiles(stem, other[1], locator)
    for stem, (suffix, _) in waiting.items():
        yield Skipped(stem, "image without JSON" if suffix == ".jpg" else "JSON without image")
