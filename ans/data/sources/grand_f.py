"""GranD-f (MBZUAI/GranD-f; GLaMM): captions of whole images whose phrases have masks, for grounded conversation.

It has four parts; which of them a source is, its name says (`PARTS`).

    grand_f             GranDf_HA_GCG_train.json, by people, on SA-1B's images
                            [{"file_name", "caption", "groundings": {phrase: {"token_positives": [0, 9], "rle_masks": [...]}}}]
                        {val,test}_gcg_coco_caption_gt.json: images and, of each, {"image_id", "caption", "labels": [phrase, ...]}
                        {val,test}_gcg_coco_mask_gt.json: of each image one mask per phrase, in their order
    grand_f_openpsg     OpenPsgGCG_{train,val}.json, on COCO's train2017, as the first
    grand_f_refcocog    RefCOCOg_GCG_{train,val}.json, on COCO's train2014
                            [{<any key>: {"img_file_name", "caption", "refs": [{"sentence": phrase, "segmentation": outlines}]}}]
    grand_f_flickr30k   flickr_mergedGT_GCG_{train,val}.json, COCO's form: an image has a "caption", an annotation
                            "tokens_positive" [[0, 9], ...] and "sam_mask"

Places are characters of the caption. The files lie as GLaMM has them or as the official Sa2VA has (`ANNOTATIONS`, `Part.images`). Every
phrase becomes a region: its expression has the phrase as `sent`, the caption as `raw`, and as `sent_id` the place of its first character in
the caption (in `val` and `test` of the first part, where this is not said, its number).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ans.data import masks
from ans.data.images import BROKEN_IMAGE, image_size
from ans.data.records import Expression, ImageRecord, Noted, Region, Skipped
from ans.data.sources.common import clean, coco_folders, field, parse_json, source_folder

ANNOTATIONS = ("annotations", "annotations/gcg_val_test", "GranDf/annotations/train", "GranDf/annotations/val_test")
"""Where listings may lie, below the source's folder."""

FEWEST_WORDS, SMALLEST_SIDE = 3, 32
"""Of an image of Flickr30k: with fewer words, or pixels, the published training leaves it out."""

Phrases = list[tuple[Any, Any, list[Any]]]
"""Of each phrase its text, first character and end (None: not said), segmentations."""


@dataclass(frozen=True)
class Row:
    """An image as a listing has it. `notes`: phrases that were left out or cut, a reason for each."""

    file_name: str
    caption: Any
    phrases: Phrases
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """`listings`: split -> file. `images`: where the photographs may lie, below `paths.root`, {folder} being the source's; {split}: see
    `_place`. `rows`: reads a listing that is not `_evaluated`."""

    listings: Mapping[str, str]
    images: tuple[str, ...]
    rows: Callable[[Any], Iterator[Row]]


@dataclass(frozen=True)
class Unread:
    """An image: its split, locator, number, caption and phrases."""

    split: str
    path: str
    number: int
    caption: Any
    phrases: Phrases


def plan(root: Path, folder: str, name: str) -> list[Unread | Skipped]:
    """Return every image, split by split in the order of its listing.

    Raises `FileNotFoundError` if no listing is found, `ValueError` naming one that cannot be read.
    """
    found: list[Unread | Skipped] = []
    for split, listing in _listings(root, folder, name).items():
        try:
            rows = list(_evaluated(listing) if _masks_of(listing) != listing else PARTS[name].rows(_read(listing)))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{listing}: {error if isinstance(error, ValueError) else f'not as published: {error!r:.200}'}"
            ) from error
        place = _place(root, folder, PARTS[name], split, rows)
        for row in rows:
            found += [Noted(f"{split}/{row.file_name}", note) for note in row.notes]
            if isinstance(row.caption, str):
                found.append(Unread(split, f"{place}/{row.file_name}", len(found), row.caption, row.phrases))
            else:
                found.append(Skipped(f"{split}/{row.file_name}", "image without a caption"))
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
    if name not in PARTS:
        raise ValueError(f"sources.{name}: reader grand_f knows the parts of GranD-f by the source's name: {', '.join(PARTS)}")
    listings = PARTS[name].listings
    places = {split: [base / place / file for place in ANNOTATIONS] for split, file in listings.items()}
    found = {split: next((path for path in paths if path.is_file()), None) for split, paths in places.items()}
    if not any(found.values()):
        raise FileNotFoundError(
            f"{base}: none of {', '.join(listings.values())} in {', '.join(ANNOTATIONS)}; sources.{name} ({folder}) names the folder that "
            "these lie in"
        )
    return {split: path for split, path in found.items() if path is not None}


def _place(root: Path, folder: str, part: Part, split: str, rows: list[Row]) -> str:
    """Return the first place, below `root`, that has the folder of the first photograph, whose name may have a part of the path; else the
    first of all. {split} in it: train, or val_test."""
    names = {"folder": folder, "split": "train" if split == "train" else "val_test"}
    places = [place.format(**names) for where in part.images for place in (coco_folders(folder) if where == COCO else (where,))]
    return next((place for place in places if rows and (root / place / rows[0].file_name).parent.is_dir()), places[0])


def _masks_of(listing: Path) -> Path:
    return listing.with_name(listing.name.replace("caption_gt", "mask_gt"))


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error


def _annotated(listing: Any) -> Iterator[Row]:
    """Yield the images of a listing of the first form."""
    for row in listing if isinstance(listing, list) else [listing]:
        groundings = field(row, "groundings", dict)
        phrases = [
            (phrase, field(one, "token_positives", list), field(one, "rle_masks", list)) for phrase, one in groundings.items()
        ]
        yield Row(field(row, "file_name", str), _unquoted(row.get("caption")), phrases)


def _refcocog(listing: Any) -> Iterator[Row]:
    """Yield the images of RefCOCOg's part. Its phrases are expressions that the caption was written around; their places are looked for in
    lower case. One that is not there, or begins where a longer one does, is left out; one that overlaps with the next ends before it."""
    for entry in listing if isinstance(listing, list) else [listing]:
        row = next(iter(entry.values()), {})
        caption, notes = _unquoted(row.get("caption")), []
        found: list[tuple[int, int, list[Any]]] = []
        if isinstance(caption, str):
            caption = caption.lower()
            for ref in field(row, "refs", list):
                phrase = field(ref, "sentence", str).lower().strip()
                if phrase and (start := caption.find(phrase)) >= 0:
                    found.append((start, start + len(phrase), [field(ref, "segmentation", list)]))
                else:
                    notes.append("phrase that is not in the caption: left out")
        found.sort(key=lambda one: one[:2])
        phrases: Phrases = []
        for place, (start, end, drawn) in enumerate(found):
            following = found[place + 1][0] if place + 1 < len(found) else end
            if following < end:
                end = start + len(caption[start:following].rstrip())
                notes.append("phrase that overlaps with the next: cut" if end > start else "phrase within another: left out")
            if end > start:
                phrases.append((caption[start:end], [start, end], drawn))
        yield Row(field(row, "img_file_name", str), caption, phrases, tuple(notes))


def _flickr30k(listing: Any) -> Iterator[Row]:
    """Yield the images of Flickr30k's part, without those that the published training leaves out; boxes of one place are one phrase."""
    drawn: dict[Any, list[Any]] = {}
    for one in field(listing, "annotations", list):
        drawn.setdefault(one["image_id"], []).append(one)
    for image in field(listing, "images", list):
        width, height, caption = int(image["width"]), int(image["height"]), image.get("caption")
        if min(width, height) < SMALLEST_SIDE or (isinstance(caption, str) and len(caption.split(" ")) < FEWEST_WORDS):
            continue
        spans: dict[tuple[Any, ...], list[Any]] = {}
        for one in drawn.get(image["id"], []):
            x, y, across, down = one["bbox"]
            outside = x >= width or y >= height or x + across <= 0 or y + down <= 0
            if not (one.get("ignore") or outside or one["area"] <= 0 or across < 1 or down < 1):
                spans.setdefault(tuple(one["tokens_positive"][0]), []).append(one["sam_mask"])
        phrases = [(None, list(span), masks_of) for span, masks_of in spans.items()]
        yield Row(field(image, "file_name", str), caption.rstrip() if isinstance(caption, str) else caption, phrases)


def _unquoted(caption: Any) -> Any:
    return caption.strip('"').strip() if isinstance(caption, str) else caption


def _evaluated(listing: Path) -> Iterator[Row]:
    """Yield the images of val or test; an image's file is named by its id. Of several captions the first counts, as GLaMM has it."""
    captions, drawn = _read(listing), _read(_masks_of(listing))
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
        yield Row(f"{image['id']}.jpg", _unquoted(said.get("caption")), phrases)


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


COCO = "{coco}"
"""Stands for the places where the photographs of COCO's train2014 are looked for."""

PARTS = {
    "grand_f": Part(
        {"train": "GranDf_HA_GCG_train.json", "val": "val_gcg_coco_caption_gt.json", "test": "test_gcg_coco_caption_gt.json"},
        ("{folder}/images/grandf/{split}", "{folder}/GranDf_HA_images/{split}"),
        _annotated,
    ),
    "grand_f_openpsg": Part(
        {"train": "OpenPsgGCG_train.json", "val": "OpenPsgGCG_val.json"},
        ("{folder}/images/coco2017/train2017", "{folder}/images/coco2017", "{folder}/coco_2017/train2017", "coco2017/train2017"),
        _annotated,
    ),
    "grand_f_refcocog": Part(
        {"train": "RefCOCOg_GCG_train.json", "val": "RefCOCOg_GCG_val.json"},
        ("{folder}/images/coco2014/train2014", "{folder}/coco_2014/train2014", COCO),
        _refcocog,
    ),
    "grand_f_flickr30k": Part(
        {"train": "flickr_mergedGT_GCG_train.json", "val": "flickr_mergedGT_GCG_val.json"},
        ("{folder}/images/flickr30k/Flickr30K", "{folder}/flikcr_30k/train", "flickr30k"),
        _flickr30k,
    ),
}
"""Name of a source -> its part."""
