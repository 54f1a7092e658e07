"""Describe Anything's data set (nvidia/describe-anything-dataset): regions with captions; images in WebDataset shards.

    <SPLIT>/annotations.json    image id -> list of regions, or one region: {"image", "mask_rle", "caption", ...}
    <SPLIT>/images/*.tar        <image id>.jpg, or <image id>.0.jpg, <image id>.1.jpg, ... for frames of a video

Images are read from the shards by offset. The shards' `.pickle` members repeat annotations.json and are never opened.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from ans.data import masks
from ans.data.images import image_size, read_bytes
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources.common import clean, field, is_junk, parse_json, source_folder, tar_members

SPLIT = "train"
"""The only one published; the folders (COCOStuff, LVIS, SAV, ...) are all of it."""

TWICE = ""
"""In place of a locator: there are two images of that name."""


@dataclass(frozen=True)
class Unread:
    """One image: `key` names it for people, `regions` is what annotations.json says of it, `frames` where it lies (several of a
    video; nowhere: none). `image_number` and `region_number` count the images and regions before it.
    """

    key: str
    regions: list[Any]
    frames: list[str]
    image_number: int
    region_number: int


def plan(root: Path, folder: str, name: str) -> list[Unread]:
    """Return every image with described regions, folder by folder in order of their names.

    Raises `FileNotFoundError` without the folder, `ValueError` naming an annotations.json or a shard that cannot be read.
    """
    found: list[Unread] = []
    region_number = 0
    for place in _splits(root, folder, name):
        shards = sorted(shard for shard in (place / "images").glob("*.tar") if not is_junk(shard.name))
        members: dict[str, str] = {}
        for shard in shards:
            for stem, _, locator in tar_members(root, shard, (".jpg",)):
                if (first := members.setdefault(stem, locator)) != locator and not _same(root, first, locator):
                    members[stem] = TWICE
        for img_id, regions in _read_annotations(place / "annotations.json").items():
            found.append(Unread(f"{place.name}/{img_id}", regions, _find(regions, members), len(found), region_number))
            region_number += len(regions)
    return found


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return names and sizes of every annotations.json and shard."""
    files = [path for place in _splits(root, folder, name) for path in (place / "annotations.json", *place.glob("images/*.tar"))]
    return [f"{path.relative_to(root / folder).as_posix()}: {path.stat().st_size} bytes" for path in sorted(files)]


def _splits(root: Path, folder: str, name: str) -> list[Path]:
    base = source_folder(root, folder, name)
    places = sorted(path.parent for path in base.glob("*/annotations.json"))
    if not places:
        raise FileNotFoundError(f"{base}: no folder with an annotations.json in it; sources.{name} ({folder}) names their parent")
    return places


def _read_annotations(path: Path) -> dict[str, list[Any]]:
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with image ids as keys, found {content!r:.80}")
    return {img_id: regions if isinstance(regions, list) else [regions] for img_id, regions in content.items()}


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield the record of an image, and one `Skipped` per region that cannot be used.

    Of a video the first frame with a mask is taken, and the last frame as the second. Each region has its caption as its one
    expression. `image_id` and `region_id` (= `sent_id`) are positions: published ids are text and only unique within a folder.
    """
    keys = [f"{unread.key}[{i}]" for i in range(len(unread.regions))]
    if TWICE in unread.frames:
        yield from (Skipped(key, "the shards have two different images of this name") for key in keys)
        return
    if not unread.frames:
        yield from (Skipped(key, "image not in the shards") for key in keys)
        return
    rles = [_frame_masks(region) for region in unread.regions]
    described = [frame for frame in range(len(unread.frames)) if any(isinstance(_at(rle, frame), dict) for rle in rles)]
    first, last = (described or [0])[0], len(unread.frames) - 1
    try:
        width, height = image_size(root, unread.frames[first])
    except (ValueError, FileNotFoundError):
        yield from (Skipped(key, "image that cannot be read") for key in keys)
        return
    found = []
    for i, (key, region, rle) in enumerate(zip(keys, unread.regions, rles, strict=True)):
        try:
            later = _at(rle, last) if last > first else None
            found.append(_region(region, _at(rle, first), later, unread.region_number + i, width, height))
        except ValueError as error:
            yield Skipped(key, str(error))
    if found:
        second = unread.frames[last] if any(region.second_counts for region in found) else ""
        yield ImageRecord(unread.image_number, unread.frames[first], width, height, tuple(found), second)


def _same(root: Path, first: str, second: str) -> bool:
    return first != TWICE and read_bytes(root, first) == read_bytes(root, second)


def _find(regions: list[Any], members: dict[str, str]) -> list[str]:
    """Return the image, or the frames, that the regions name. In some folders names have zeros before them that the members lack."""
    for region in regions:
        name = region.get("image") if isinstance(region, dict) else None
        if isinstance(name, str):
            stem = PurePosixPath(name).stem
            for key in (stem, stem.lstrip("0") or "0"):
                if key in members:
                    return [members[key]]
                if f"{key}.0" in members:
                    return [members[frame] for frame in takewhile(members.__contains__, (f"{key}.{k}" for k in count()))]
    return []


def _frame_masks(region: Any) -> list[Any]:
    """Return the RLE of every frame, None where the object is not seen."""
    rle = region.get("mask_rle") if isinstance(region, dict) else None
    return rle if isinstance(rle, list) else [rle]


def _at(rles: list[Any], frame: int) -> Any:
    return rles[frame] if frame < len(rles) else None


def _region(region: Any, rle: Any, later: Any, number: int, width: int, height: int) -> Region:
    """Return the region. Raises `ValueError` with one short reason."""
    try:
        field(region, "image", str)
        caption = field(region, "caption", str)
        region["mask_rle"]
    except (ValueError, KeyError):
        raise ValueError("region without image, mask_rle and caption") from None
    if not isinstance(rle, dict):
        raise ValueError("region without a mask in the first frame")
    caption = clean(caption)
    counts = masks.from_segmentation(rle, height, width)
    area, bbox = masks.measure(counts, height, width)
    if area == 0:
        raise ValueError("mask without a pixel")
    second = masks.from_segmentation(later, height, width) if isinstance(later, dict) else ""
    if second and masks.measure(second, height, width)[0] == 0:
        second = ""  # gone by then
    return Region(number, SPLIT, "", area, bbox, counts, (Expression(number, caption, caption),), second)
