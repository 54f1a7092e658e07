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
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ans.data import masks
from ans.data.images import BROKEN_IMAGE, below, image_size
from ans.data.matching import check_size
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources.common import field, source_folder

EXPRESSIONS, ANNOTATIONS = "expressions.jsonl", "annotations.json"
KEYS = {"image", "mask", "annotation", "text", "split", "category"}


@dataclass(frozen=True)
class Object:
    """A line of expressions.jsonl: `line` is its number, from 1. Either `mask` or `segmentation` (of COCO) is there. `size` is
    the image's (width, height) in pixels, where annotations.json states it."""

    line: int
    texts: tuple[str, ...]
    split: str
    category: str
    mask: str = ""
    segmentation: Any = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Task:
    """One image, its position, and what the lines say of it."""

    folder: str
    image: str
    number: int
    objects: list[Object]


def plan(root: Path, folder: str, name: str) -> list[Task | Skipped]:
    """Every image that a line names, in the order of the lines; lines that cannot be used as `Skipped`.

    Raises `FileNotFoundError` without expressions.jsonl or images, `ValueError` naming an annotations.json that cannot be read.
    """
    base = source_folder(root, folder, name)
    if not (base / EXPRESSIONS).is_file() or not (base / "images").is_dir():
        raise FileNotFoundError(
            f"{base}: {EXPRESSIONS} and images/ not both there; sources.{name} is no published data set's name, "
            "so it is taken for your own data (docs/your-data.md)"
        )
    annotations = _read_annotations(base / ANNOTATIONS) if (base / ANNOTATIONS).is_file() else {}
    by_image: dict[str, list[Object]] = defaultdict(list)
    skipped = []
    with open(base / EXPRESSIONS, "rb") as file:
        for line, content in enumerate(file, start=1):
            if not content.strip():
                continue
            try:
                image, found = _read_line(content, line, annotations)
                by_image[image].append(found)
            except ValueError as error:
                skipped.append(Skipped(f"{EXPRESSIONS}:{line}", str(error)))
    return [*skipped, *(Task(folder, image, number, objects) for number, (image, objects) in enumerate(by_image.items()))]


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """sha256 of every file. Own data is small, and it is edited: a mask drawn anew has the same name."""
    base = source_folder(root, folder, name)
    files = [path for path in (base / EXPRESSIONS, base / ANNOTATIONS) if path.is_file()]
    for kind in ("images", "masks"):
        files += sorted(Path(place) / name for place, _, names in os.walk(base / kind) for name in names)
    lines = []
    for path in files:
        with open(path, "rb") as file:
            lines.append(f"{path.relative_to(base).as_posix()}: {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return lines


def read_one(root: Path, task: Task) -> Iterator[ImageRecord | Skipped]:
    """The record of an image, and one `Skipped` per line that cannot be used.

    Lines of one object (the same mask) are joined. `image_id` is the image's position, `region_id` the line, and `sent_id` 1000
    times the line and the text's position.
    """
    path = f"{task.folder}/images/{task.image}"
    try:
        width, height = image_size(root, path)
    except FileNotFoundError:
        yield from (Skipped(f"{EXPRESSIONS}:{one.line}", f"no such image: images/{task.image}") for one in task.objects)
        return
    except ValueError as error:
        reason = str(error).removeprefix(f"{root / path}: ")
        yield from (Skipped(f"{EXPRESSIONS}:{one.line}", f"images/{task.image}: {reason}") for one in task.objects)
        return
    regions: dict[tuple[str, str], Region] = {}
    for one in task.objects:
        try:
            region = _region(root, task, one, height, width)
        except (ValueError, FileNotFoundError) as error:
            yield Skipped(f"{EXPRESSIONS}:{one.line}", str(error))
            continue
        first = regions.get((region.counts, region.split))
        if first:
            region = replace(first, expressions=first.expressions + region.expressions)
        regions[region.counts, region.split] = region
    if regions:
        yield ImageRecord(task.number, path, width, height, tuple(regions.values()))


def _read_line(content: bytes, line: int, annotations: "dict[int, Annotation]") -> tuple[str, Object]:
    """The image and what is said of it. Raises `ValueError` that says what is wrong with the line."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    image = field(record, "image", str)
    if unknown := set(record) - KEYS:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}; known are {', '.join(sorted(KEYS))}")
    below("images", image)
    texts = record.get("text", [])
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("text is neither a text nor a list of texts, or one is empty")
    texts = tuple(field({"text": text}, "text", str).strip() for text in texts)
    split, category = (field({"split": "train", "category": ""} | record, key, str) for key in ("split", "category"))
    if "_" in split:
        raise ValueError(f"split {split}: a split's name has no `_`, which parts it from the source's")
    if ("mask" in record) == ("annotation" in record):
        raise ValueError("needs either a mask (a PNG below masks/) or an annotation (an id in annotations.json)")
    if "mask" in record:
        mask = field(record, "mask", str)
        below("masks", mask)
        return image, Object(line, texts, split, category, mask=mask)
    number = field(record, "annotation", int)
    if number not in annotations:
        raise ValueError(f"annotation {number} is not in {ANNOTATIONS}")
    file_name, size, segmentation, its_category = annotations[number]
    if file_name != image:
        raise ValueError(f"annotation {number} is of {file_name}, not of {image}")
    return image, Object(line, texts, split, category or its_category, segmentation=segmentation, size=size)


Annotation = tuple[str, tuple[int, int] | None, Any, str]
"""The image's file name and stated (width, height), segmentation, and class name."""


def _read_annotations(path: Path) -> dict[int, Annotation]:
    """id -> annotation."""
    try:
        content = json.loads(path.read_bytes())
        listed = field(content, "images", list)
        images = {field(image, "id", int): (field(image, "file_name", str), _size(image)) for image in listed}
        names = {field(entry, "id", int): field(entry, "name", str) for entry in content.get("categories", [])}
        return {
            field(a, "id", int): (
                *images.get(a.get("image_id"), ("no image", None)),
                a.get("segmentation"),
                names.get(a.get("category_id"), ""),
            )
            for a in field(content, "annotations", list)
        }
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a COCO listing: {error}") from error


def _size(image: Any) -> tuple[int, int] | None:
    """(width, height) that a listing states of an image; some tools leave both out."""
    if "width" not in image and "height" not in image:
        return None
    return field(image, "width", int), field(image, "height", int)


def _region(root: Path, task: Task, one: Object, height: int, width: int) -> Region:
    """Raises `ValueError` or `FileNotFoundError` with a reason."""
    if one.size is not None:
        check_size(f"images/{task.image}", (width, height), one.size, ANNOTATIONS)
    if one.mask:
        counts = masks.from_array(_read_mask(root / task.folder / "masks" / one.mask, one.mask, height, width))
    else:
        counts = masks.from_segmentation(one.segmentation, height, width)
    area, bbox = masks.measure(counts, height, width)
    if area == 0:
        raise ValueError("mask without a pixel")
    expressions = tuple(Expression(1000 * one.line + i, text, text) for i, text in enumerate(one.texts))
    return Region(one.line, one.split, one.category, area, bbox, counts, expressions)


def _read_mask(path: Path, name: str, height: int, width: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            mask = np.asarray(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such mask: masks/{name}") from None
    except BROKEN_IMAGE as error:
        raise ValueError(f"masks/{name}: not a readable image: {error}") from error
    if mask.shape[:2] != (height, width):
        raise ValueError(f"masks/{name} is {mask.shape[1]} x {mask.shape[0]}, its image {width} x {height}")
    # of colours any that is not black; an alpha channel says nothing of what is the object
    return mask if mask.ndim == 2 else np.asarray(mask[..., : {2: 1, 3: 3, 4: 3}[mask.shape[2]]].any(2))
