"""Describe Anything's data set (nvidia/describe-anything-dataset): regions with captions; images in WebDataset shards.

    <SPLIT>/annotations.json    image id -> list of regions, or one region: {"image", "mask_rle", "caption", ...}
    <SPLIT>/images/*.tar        <image id>.jpg, or <image id>.0.jpg, <image id>.1.jpg, ... for frames of a video

Images are read from the shards by offset. The shards' `.pickle` members repeat annotations.json and are never opened.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ans.data import masks
from ans.data.images import image_size
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources.common import field, source_folder, tar_members

SPLIT = "train"
"""The only one published; the folders (COCOStuff, LVIS, SAV, ...) are all of it."""


def read(root: Path, folder: str, name: str) -> Iterator[ImageRecord | Skipped]:
    """Every image with described regions, folder by folder in order of their names; one `Skipped` per region that cannot be used.

    Of a video the first frame and its mask are taken. Each region has its caption as its one expression. `image_id` and
    `region_id` (= `sent_id`) are positions, since published ids are text and only unique within a folder.
    Raises `FileNotFoundError` without the folder, `ValueError` naming an annotations.json or a shard that cannot be read.
    """
    image_number = region_number = 0
    for place in _splits(root, folder, name):
        shards = sorted((place / "images").glob("*.tar"))
        members = {stem: locator for shard in shards for stem, _, locator in tar_members(root, shard, (".jpg",))}
        for img_id, regions in _read_annotations(place / "annotations.json").items():
            yield from _image(root, f"{place.name}/{img_id}", regions, members, image_number, region_number)
            image_number += 1
            region_number += len(regions)


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Names and sizes of every annotations.json and shard."""
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
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with image ids as keys, found {content!r:.80}")
    return {img_id: regions if isinstance(regions, list) else [regions] for img_id, regions in content.items()}


def _image(
    root: Path, key: str, regions: list[Any], members: dict[str, str], image_number: int, region_number: int
) -> Iterator[ImageRecord | Skipped]:
    keys = [f"{key}[{i}]" for i in range(len(regions))]
    locator = _find(regions, members)
    if locator is None:
        yield from (Skipped(key, "image not in the shards") for key in keys)
        return
    try:
        width, height = image_size(root, locator)
    except (ValueError, FileNotFoundError):
        yield from (Skipped(key, "image that cannot be read") for key in keys)
        return
    found = []
    for i, (key, region) in enumerate(zip(keys, regions, strict=True)):
        try:
            found.append(_region(region, region_number + i, width, height))
        except ValueError as error:
            yield Skipped(key, str(error))
    if found:
        yield ImageRecord(image_number, locator, width, height, tuple(found))


def _find(regions: list[Any], members: dict[str, str]) -> str | None:
    """The image that the regions name. In some folders names are padded with zeros that the shards' members lack."""
    for region in regions:
        name = region.get("image") if isinstance(region, dict) else None
        if isinstance(name, str):
            stem = PurePosixPath(name).stem
            plain = stem.lstrip("0") or "0"
            return next((members[key] for key in (stem, f"{stem}.0", plain, f"{plain}.0") if key in members), None)
    return None


def _region(region: Any, number: int, width: int, height: int) -> Region:
    """Raises `ValueError` with one short reason."""
    try:
        field(region, "image", str)
        caption = field(region, "caption", str).strip()
        rle = region["mask_rle"]
    except (ValueError, KeyError):
        raise ValueError("region without image, mask_rle and caption") from None
    if isinstance(rle, list):
        rle = rle[0] if rle else None
    if not isinstance(rle, dict):
        raise ValueError("region without a mask in the first frame")
    if not caption:
        raise ValueError("empty caption")
    counts = masks.from_segmentation(rle, height, width)
    area, bbox = masks.measure(counts, height, width)
    if area == 0:
        raise ValueError("mask without a pixel")
    return Region(number, SPLIT, "", area, bbox, counts, (Expression(number, caption, caption),))
