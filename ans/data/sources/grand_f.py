"""GranD-f (MBZUAI/GranD-f; GLaMM): captions of whole images whose phrases have masks, for grounded conversation.

    GranDf_HA_GCG_train.json                    [{"file_name", "caption", "groundings": {phrase: {"token_positives": [0, 9],
                                                "rle_masks": [...]}}}]; `token_positives` are characters of the caption
    {val,test}_gcg_coco_caption_gt.json         images and, of each, {"image_id", "caption", "labels": [phrase, ...]}
    {val,test}_gcg_coco_mask_gt.json            of each image one mask per phrase, in their order

They lie as GLaMM has them or as the official Sa2VA has (`LISTINGS`, `IMAGES`). Every phrase becomes a region: its expression has the
phrase as `sent`, the caption as `raw`, and as `sent_id` the place of its first character in the caption (in `val` and `test`, where
this is not said, its number). OpenPSG's and Flickr30k's parts and that of RefCOCOg, which GLaMM trains on too, are not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ans.data import masks
from ans.data.images import BROKEN_IMAGE, image_size
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources.common import clean, field, parse_json, source_folder

LISTINGS = {
    "train": ("annotations/GranDf_HA_GCG_train.json", "GranDf/annotations/train/GranDf_HA_GCG_train.json"),
    "val": ("annotations/gcg_val_test/val_gcg_coco_caption_gt.json", "GranDf/annotations/val_test/val_gcg_coco_caption_gt.json"),
    "test": (
        "annotations/gcg_val_test/test_gcg_coco_caption_gt.json",
        "GranDf/annotations/val_test/test_gcg_coco_caption_gt.json",
    ),
}
IMAGES = {
    "train": ("images/grandf/train", "GranDf_HA_images/train"),
    "val": ("images/grandf/val_test", "GranDf_HA_images/val_test"),
    "test": ("images/grandf/val_test", "GranDf_HA_images/val_test"),
}


@dataclass(frozen=True)
class Unread:
    """An image: its split, locator, number, and caption; of each phrase its text, its first character (None: not said), its RLEs."""

    split: str
    path: str
    number: int
    caption: Any
    phrases: list[tuple[Any, Any, list[Any]]]


def plan(root: Path, folder: str, name: str) -> list[Unread | Skipped]:
    """Return every image, split by split in the order of its listing.

    Raises `FileNotFoundError` if no listing is found, `ValueError` naming one that cannot be read.
    """
    found: list[Unread | Skipped] = []
    for split, listing in _listings(root, folder, name).items():
        place = next((place for place in IMAGES[split] if (root / folder / place).is_dir()), IMAGES[split][0])
        rows = _annotated(listing) if split == "train" else _evaluated(listing)
        for file_name, caption, phrases in rows:
            if isinstance(caption, str):
                found.append(Unread(split, f"{folder}/{place}/{file_name}", len(found), caption.strip('"').strip(), phrases))
            else:
                found.append(Skipped(f"{split}/{file_name}", "image without a caption"))
    return found


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return names and sizes of the listings."""
    files = [part for listing in _listings(root, folder, name).values() for part in (listing, _masks_of(listing))]
    return [f"{path.name}: {path.stat().st_size} bytes" for path in files if path.is_file()]


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield the record of an image, with a region for each phrase; one `Skipped` for each that cannot be used."""
    key = unread.path.rpartition("/")[2]
    try:
        width, height = image_size(root, unread.path)
        if clean(unread.caption) != unread.caption:
            raise ValueError("caption with line breaks, in which places are not those that are stated")
    except BROKEN_IMAGE as error:
        yield Skipped(key, "missing image" if isinstance(error, FileNotFoundError) else str(error).partition(": ")[0])
        return
    regions: list[Region] = []
    end = 0
    for place, (phrase, span, rles) in enumerate(sorted(unread.phrases, key=_start)):
        try:
            start, text = (
                (place, clean(field({"phrase": phrase}, "phrase", str))) if span is None else _within(unread.caption, span)
            )
            if span is not None and start < end:
                raise ValueError("phrase that overlaps with another")
            counts = _union(rles, height, width)
        except ValueError as error:
            yield Skipped(f"{key}[{place}]", str(error))
            continue
        end = start + len(text) if span is not None else 0
        area, bbox = masks.measure(counts, height, width)
        number = 1000 * unread.number + place
        regions.append(Region(number, unread.split, "", area, bbox, counts, (Expression(start, text, unread.caption),)))
    if regions:
        yield ImageRecord(unread.number, unread.path, width, height, tuple(regions))


def _listings(root: Path, folder: str, name: str) -> dict[str, Path]:
    base = source_folder(root, folder, name)
    found = {
        split: next((base / place for place in places if (base / place).is_file()), None) for split, places in LISTINGS.items()
    }
    if not any(found.values()):
        wanted = ", ".join(places[0] for places in LISTINGS.values())
        raise FileNotFoundError(f"{base}: none of {wanted}; sources.{name} ({folder}) names the folder that they lie in")
    return {split: path for split, path in found.items() if path is not None}


def _masks_of(listing: Path) -> Path:
    return listing.with_name(listing.name.replace("caption_gt", "mask_gt"))


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _annotated(listing: Path) -> Iterator[tuple[str, Any, list[tuple[Any, Any, list[Any]]]]]:
    """Yield file name, caption and phrases of each image of the training listing."""
    rows = _read(listing)
    try:
        for row in rows if isinstance(rows, list) else [rows]:
            groundings = field(row, "groundings", dict)
            phrases = [
                (phrase, field(one, "token_positives", list), field(one, "rle_masks", list)) for phrase, one in groundings.items()
            ]
            yield field(row, "file_name", str), row.get("caption"), phrases
    except ValueError as error:
        raise ValueError(f"{listing}: {error}") from error


def _evaluated(listing: Path) -> Iterator[tuple[str, Any, list[tuple[Any, Any, list[Any]]]]]:
    """Yield the same of val or test; an image's file is named by its id. Of several captions the first counts, as GLaMM has it."""
    captions, drawn = _read(listing), _read(_masks_of(listing))
    try:
        rles: dict[Any, list[Any]] = {}
        for row in field(drawn, "annotations", list):
            rles.setdefault(row["image_id"], []).append(row["segmentation"])
        first: dict[Any, Any] = {}
        for row in field(captions, "annotations", list):
            first.setdefault(row["image_id"], row)
        places: dict[Any, int] = {}
        for place, image in enumerate(field(captions, "images", list)):
            if (before := places.setdefault(image["id"], place)) != place:
                raise ValueError(f"id {image['id']} occurs twice: images[{before}] and images[{place}]")
            said = first.get(image["id"], {})
            labels, found = said.get("labels", []), rles.get(image["id"], [])
            if len(labels) != len(found):
                raise ValueError(f"image {image['id']}: {len(labels)} phrases and {len(found)} masks")
            phrases = [(label, None, [segmentation]) for label, segmentation in zip(labels, found, strict=True)]
            yield f"{image['id']}.jpg", said.get("caption"), phrases
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{listing}: not as published: {error!r:.200}") from error


def _start(phrase: tuple[Any, Any, list[Any]]) -> int:
    span = phrase[1]
    return span[0] if span and type(span[0]) is int else 0


def _within(caption: str, span: Any) -> tuple[int, str]:
    """Return where a phrase begins, and its text. Raises `ValueError`."""
    if len(span) != 2 or not all(type(end) is int for end in span) or not 0 <= span[0] < span[1] <= len(caption):
        raise ValueError("phrase whose place is not within the caption")
    text = caption[span[0] : span[1]]
    if clean(text) != text:
        raise ValueError("phrase that begins or ends with a space")
    return span[0], text


def _union(rles: list[Any], height: int, width: int) -> str:
    """Return the masks of a phrase as one. Raises `ValueError` for one that is damaged, or without a pixel."""
    parts = [masks.decode(masks.from_segmentation(rle, height, width), height, width) for rle in rles]
    if not any(part.any() for part in parts):
        raise ValueError("phrase without a pixel")
    return masks.from_array(np.any(parts, axis=0))
