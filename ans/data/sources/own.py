"""Your own images: a folder with images, masks, and a line of JSON per object. docs/your-data.md explains it.

    images/             JPEG, PNG, ...; subfolders are fine
    masks/              one PNG per object, as large as its image; not zero is the object
    annotations.json    instead of PNGs, or beside them: COCO's format; its `annotations` are named by their `id`
    expressions.jsonl   {"image": "a.jpg", "mask": "a_cup.png", "text": "the red cup"}
                        {"image": "a.jpg", "annotation": 17, "text": ["the left cup", "cup by the door"], "split": "val"}

`text` may be left out: such an object is described and segmented, but never asked for. `split` is train where it is not given; it
has no `_`, since a split is asked for as `<source>_<split>`.
"""

import hashlib
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ans.data import masks
from ans.data.disk import below, spelled
from ans.data.images import BROKEN_IMAGE, SEPARATOR, content, decoded, read_bytes, see_through
from ans.data.mask_files import read_mask
from ans.data.matching import check_size
from ans.data.records import Expression, ImageRecord, Noted, Region, Skipped
from ans.data.sources.common import (
    by_id,
    class_names,
    class_of,
    clean,
    entry_of,
    field,
    parse_json,
    source_folder,
    split_name,
    whole,
)

EXPRESSIONS, ANNOTATIONS = "expressions.jsonl", "annotations.json"
KEYS = {"image", "mask", "annotation", "text", "split", "category"}


@dataclass(frozen=True)
class Object:
    """A line of expressions.jsonl: `line` is its number, from 1. Either `mask` or `segmentation` (of COCO) is there. `size` is
    the image's (width, height) in pixels, where annotations.json states it; so are `area` and `bbox`. `note`: on its class."""

    line: int
    texts: tuple[str, ...]
    split: str
    category: str
    mask: str = ""
    segmentation: Any = None
    size: tuple[int, int] | None = None
    area: Any = None
    bbox: Any = None
    note: str = ""


@dataclass(frozen=True)
class Unread:
    """One image, its position, and what the lines say of it."""

    folder: str
    image: str
    number: int
    objects: list[Object]


def plan(root: Path, folder: str, name: str) -> list[Unread | Skipped]:
    """Return every image that a line names, in the order of the lines; lines that cannot be used as `Skipped`.

    Raises `FileNotFoundError` without expressions.jsonl or images, `ValueError` naming an annotations.json that cannot be read.
    """
    base = source_folder(root, folder, name)
    if not (base / EXPRESSIONS).is_file() or not (base / "images").is_dir():
        raise FileNotFoundError(
            f"{base}: {EXPRESSIONS} and images/ must both be there; sources.{name} is not the name of a published data set, "
            "so it is read as your own data (docs/your-data.md)"
        )
    annotations = _read_annotations(base / ANNOTATIONS) if (base / ANNOTATIONS).is_file() else {}
    by_image: dict[str, list[Object]] = defaultdict(list)
    skipped = []
    with open(base / EXPRESSIONS, "rb") as file:
        for line, content in enumerate(file, start=1):
            if not content.strip():
                continue
            try:
                image, found = _read_line(content, line, annotations, base)
                by_image[image].append(found)
            except ValueError as error:
                skipped.append(Skipped(f"{EXPRESSIONS}:{line}", str(error)))
    return [*skipped, *(Unread(folder, image, number, objects) for number, (image, objects) in enumerate(by_image.items()))]


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return sha256 of every file. Own data is small, and it is edited: a redrawn mask keeps its name."""
    base = source_folder(root, folder, name)
    files = [path for path in (base / EXPRESSIONS, base / ANNOTATIONS) if path.is_file()]
    for kind in ("images", "masks"):
        found = sorted(Path(place) / name for place, _, names in os.walk(base / kind) for name in names)
        files += [path for path in found if path.is_file()]
    lines = []
    for path in files:
        with open(path, "rb") as file:
            lines.append(f"{path.relative_to(base).as_posix()}: {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return lines


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield the record of an image, and one `Skipped` per line that cannot be used.

    Lines of one object (the same mask) are joined. `image_id` is the image's position, `region_id` the line, and `sent_id` 1000
    times the line and the text's position. Images are opened whole: there are few, and a damaged one is named here.
    """
    path = f"{unread.folder}/images/{unread.image}"
    try:
        data = read_bytes(root, path)
        width, height = decoded(data).size
        if see_through(data):
            reason = "image with transparent pixels: training and evaluation see the colours that it has under them"
            yield Noted(f"{EXPRESSIONS}:{unread.objects[0].line}", f"images/{unread.image}: {reason}")
    except FileNotFoundError:
        yield from (Skipped(f"{EXPRESSIONS}:{one.line}", f"no such image: images/{unread.image}") for one in unread.objects)
        return
    except BROKEN_IMAGE as error:
        reason = f"images/{unread.image}: not a readable image: {error}"
        yield from (Skipped(f"{EXPRESSIONS}:{one.line}", reason) for one in unread.objects)
        return
    regions: dict[tuple[str, str], Region] = {}
    for one in unread.objects:
        try:
            region, notes = _region(root, unread, one, height, width)
        except (ValueError, FileNotFoundError) as error:
            yield Skipped(f"{EXPRESSIONS}:{one.line}", str(error))
            continue
        yield from (Noted(f"{EXPRESSIONS}:{one.line}", note) for note in notes)
        first = regions.get((region.counts, region.split), replace(region, expressions=()))
        texts: dict[str, Expression] = {}
        for expression in first.expressions + region.expressions:
            texts.setdefault(expression.sent, expression)
        if len(texts) < len(first.expressions) + len(region.expressions):
            yield Noted(f"{EXPRESSIONS}:{one.line}", f"text that line {first.region_id} has of the same mask, taken once")
        regions[region.counts, region.split] = replace(first, expressions=tuple(texts.values()))
    if regions:
        yield ImageRecord(unread.number, path, width, height, tuple(regions.values()), content=content(data))


def _read_line(content: bytes, line: int, annotations: "dict[int, Annotation]", base: Path) -> tuple[str, Object]:
    """Return the image and what is said of it. Raises `ValueError` that says what is wrong with the line."""
    try:
        record = parse_json(content)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    image = field(record, "image", str)
    if unknown := set(record) - KEYS:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}; known are {', '.join(sorted(KEYS))}")
    image = _path(base, "images", image)
    texts = record.get("text", [])
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("text is neither a text nor a list of texts, or one is empty")
    texts = tuple(clean(field({"text": text}, "text", str)) for text in texts)
    split, category = (field({"split": "train", "category": ""} | record, key, str) for key in ("split", "category"))
    category = clean(category) if category.strip() else ""
    split_name(split)
    if ("mask" in record) == ("annotation" in record):
        raise ValueError("needs either a mask (a PNG below masks/) or an annotation (an id in annotations.json)")
    if "mask" in record:
        mask = _path(base, "masks", field(record, "mask", str))
        return image, Object(line, texts, split, category, mask=mask)
    number = field(record, "annotation", int)
    if number not in annotations:
        raise ValueError(f"annotation {number} is not in {ANNOTATIONS}")
    file_name, size, annotation, (its_category, note) = annotations[number]
    if _path(base, "images", file_name) != image:
        raise ValueError(f"annotation {number} is of {file_name}, not of {image}")
    stated: dict[str, Any] = {key: annotation.get(key) for key in ("segmentation", "area", "bbox")}
    return image, Object(line, texts, split, category or its_category, size=size, note="" if category else note, **stated)


def _path(base: Path, kind: str, name: str) -> str:
    """Return a path below images/ or masks/ in the one spelling that stands for the file, so that one photograph has one name."""
    below(kind, name)
    if SEPARATOR in name:
        raise ValueError(f"{name}: a name with `{SEPARATOR}`, which parts a file from what is in it")
    return spelled(base, posixpath.normpath(f"{kind}/{name}")).removeprefix(f"{kind}/")


Annotation = tuple[str, tuple[int, int] | None, dict[str, Any], tuple[str, str]]
"""The image's file name and stated (width, height), the annotation, and its class name with what is wrong about that."""


def _read_annotations(path: Path) -> dict[int, Annotation]:
    """Return id -> annotation."""
    try:
        content = parse_json(path.read_bytes())
        listed = by_id(field(content, "images", list), "images")
        images = {number: _image(number, image) for number, image in listed.items()}
        names = class_names(field({"categories": []} | content, "categories", list))
        annotations = by_id(field(content, "annotations", list), "annotations")
        found: dict[int, Annotation] = {}
        for number, a in annotations.items():
            file_name, size = entry_of(images, a.get("image_id")) or ("no image", None)
            found[number] = file_name, size, a, class_of(a, names)
        return found
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a COCO listing: {error}") from error


def _image(number: int, image: Any) -> tuple[str, tuple[int, int] | None]:
    """Return the file name and the (width, height) that a listing states of an image; some tools leave both sides out."""
    try:
        sized = image.get("width") is not None or image.get("height") is not None
        return field(image, "file_name", str), (whole(image, "width"), whole(image, "height")) if sized else None
    except ValueError as error:
        raise ValueError(f"image {number}: {error}") from error


def _region(root: Path, unread: Unread, one: Object, height: int, width: int) -> tuple[Region, list[str]]:
    """Return the region, and notes on it. Raises `ValueError` or `FileNotFoundError` with a reason."""
    notes: list[str] = []
    if one.size is not None:
        check_size(f"images/{unread.image}", (width, height), one.size, ANNOTATIONS)
    if one.mask:
        inside, notes = read_mask(root / unread.folder / "masks" / one.mask, f"masks/{one.mask}")
        if inside.shape != (height, width):
            raise ValueError(f"masks/{one.mask} is {inside.shape[1]} x {inside.shape[0]}, its image {width} x {height}")
        counts = masks.from_array(inside)
    else:
        counts = masks.from_segmentation(one.segmentation, height, width)
        if left_out := masks.degenerate(one.segmentation):
            notes = [f"outline of fewer than three points, left out beside sound ones ({left_out})"]
        notes += filter(None, [masks.compare_stated(one.area, one.bbox, counts, height, width), one.note])
    area, bbox = masks.measure(counts, height, width)
    if area == 0:
        raise ValueError("mask without a pixel")
    expressions = tuple(Expression(1000 * one.line + i, text, text) for i, text in enumerate(one.texts))
    notes += masks.suspicions(masks.decode(counts, height, width) > 0)
    return Region(one.line, one.split, one.category, area, bbox, counts, expressions), notes
