"""ReasonSeg as published (dvlab-research/LISA): `{train,val,test}/<stem>.jpg` with `<stem>.json`, outlines and questions.

    {"text": ["the thing to sit on", ...], "is_sentence": true, "shapes": [{"label": "target", "points": [[x, y], ...]}, ...]}

Shapes are drawn by falling area, outline and inside, so a smaller one lies on a larger one; all targets are one mask. Pixels
labelled `ignore` count neither way; `flag` is not drawn. The files are UTF-8 or, some, Windows' cp1252.
"""

import base64
import math
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ans.data import masks
from ans.data.disk import read_file
from ans.data.images import BROKEN_IMAGE, SUFFIXES, drawn, image_size, open_mask
from ans.data.matching import check_size
from ans.data.records import QUERY_KINDS, Expression, ImageRecord, Noted, Region, Skipped
from ans.data.sources.common import clean, field, is_junk, parse_json, source_folder, whole

SPLITS = ("train", "val", "test")
TARGET, IGNORED = 1, 255
ALL = "-all"
"""Behind the name of a split: with every question, not only the first."""

Unread = tuple[str, str, str, int]
"""Folder below the root, names of the image and of the JSON (`TWICE`: there are two that it may be), and position."""

TWICE = ""


def plan(root: Path, folder: str, name: str) -> list[Unread | Skipped]:
    """Return every image, split by split in order of their names, and a JSON without its image as `Skipped`. Raises `FileNotFoundError`
    without the folder or any split."""
    places = [(f"{folder}/{split}", *_pairs(root / folder / split)) for split in _splits(root, folder, name)]
    pairs = [(place, pair) for place, found, _ in places for pair in found]
    alone = [Skipped(f"{place}/{listing}", "JSON without image") for place, _, without in places for listing in without]
    return [*alone, *((place, *pair, number) for number, (place, pair) in enumerate(pairs))]


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return the number of images per split, and of JSONs without an image where there are any."""
    found = [(split, *_pairs(root / folder / split)) for split in _splits(root, folder, name)]
    return [f"{split}: {len(pairs)} jpg" + (f", {len(alone)} json alone" if alone else "") for split, pairs, alone in found]


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield, in `train`, one record per question, with one region: they are different wordings. In `val` and `test` one record; its
    region has the first question, the only one that LISA evaluates, and a second region of the split `val-all` or `test-all` has
    all of them. `image_id` and `region_id` are the image's position."""
    place, image, listing, number = unread
    path = f"{place}/{image}"
    key = os.path.splitext(path)[0]
    texts = []
    if listing == TWICE:
        yield Skipped(key, "two images or two JSONs of this name")
        return
    try:
        content = field({"JSON": _parse(root / place / listing)}, "JSON", dict)
        width, height = image_size(root, path)
        if content.get("imageWidth") is not None or content.get("imageHeight") is not None:
            check_size(path, (width, height), (whole(content, "imageWidth"), whole(content, "imageHeight")), listing)
        drawn = draw(field(content, "shapes", list), height, width)
        for text in field(content, "text", list):
            try:
                texts.append(clean(field({"text": text}, "text", str)))
            except ValueError as error:
                yield Noted(key, f"question left out: {error}")
        kind = QUERY_KINDS[field(content, "is_sentence", bool)]
    except FileNotFoundError:
        yield Skipped(key, "image without JSON")
        return
    except ValueError as error:
        yield Skipped(key, str(error).removeprefix(f"{root / path}").lstrip(": "))
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
        yield ImageRecord(number, path, width, height, tuple(regions))


def draw(shapes: list[Any], height: int, width: int) -> np.ndarray:
    """Return (height, width) uint8: `TARGET`, `IGNORED` or 0. Raises `ValueError` for a shape that is not as published."""
    drawn = []
    for shape in shapes:
        label = field(shape, "label", str).lower()
        if label == "flag":
            continue
        drawn.append((draw_shape(shape, height, width), IGNORED if "ignore" in label else TARGET))
    mask = np.zeros((height, width), np.uint8)
    for outline, value in sorted(drawn, key=lambda item: -int(item[0].sum())):
        mask[outline] = value
    return mask


def draw_shape(shape: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Return (height, width) bool of a shape by its type, as labelme has it; without one it is a polygon.

    Polygons and rectangles have whole-numbered corners, cut off towards zero as the original does. Raises `ValueError` for shapes
    without an inside and for types that are unknown.
    """
    points = _points(field(shape, "points", list))
    if points.min() >= 0 and points.max() <= 1 and (points % 1).any():
        raise ValueError(masks.SHARES)
    kind = shape.get("shape_type") or "polygon"
    if kind in ("line", "linestrip", "point", "points"):
        raise ValueError(f"shape of type {kind}, which has no inside")
    if kind == "mask":
        return _stored(shape, points, height, width)
    if kind == "circle":
        if len(points) != 2:
            raise ValueError(f"circle of {len(points)} points, expected its centre and a point on its rim")
        canvas = Image.new("1", (width, height))
        radius = math.dist(*points)
        ImageDraw.Draw(canvas).ellipse((*(points[0] - radius).tolist(), *(points[0] + radius).tolist()), fill=1, outline=1)
        return np.asarray(canvas)
    corners = points.astype(np.int64)
    if kind == "rectangle":
        if len(corners) not in (2, 4):
            raise ValueError(f"rectangle of {len(corners)} points, expected two corners")
        if len(corners) == 2:
            (left, top), (right, bottom) = corners.tolist()
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind not in ("polygon", "oriented_rectangle"):
        raise ValueError(f"shape of the unknown type {kind!r:.40}")
    return masks.polygon(corners, height, width)


def _stored(shape: dict[str, Any], points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a shape of type `mask`: a PNG in base64, and the first and last pixel, x and y, of where it lies."""
    try:
        data = base64.b64decode(field(shape, "mask", str), validate=True)
        inside = drawn(open_mask(data))
    except BROKEN_IMAGE as error:
        said = str(error) if "mask is a" in str(error) else "mask of a shape that cannot be read"
        raise ValueError(said) from error
    whole = np.zeros((height, width), bool)
    if len(points) != 2:
        raise ValueError(f"mask of {len(points)} points, expected two corners")
    (left, top), (right, bottom) = points.astype(np.int64).tolist()
    if inside.shape != (bottom - top + 1, right - left + 1) or min(left, top) < 0 or right >= width or bottom >= height:
        raise ValueError("mask of a shape that is not as large as its corners say, or not within the image")
    whole[top : bottom + 1, left : right + 1] = inside
    return whole


def _points(points: list[Any]) -> np.ndarray:
    """Return (points, 2)."""
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(type(value) in (int, float) for value in point):
            raise ValueError("shape with a point that is not x and y")
        if not all(abs(value) <= 2 * masks.MAX_SIDE for value in point):  # also for a NaN
            raise ValueError("shape far outside the image")
    if not points:
        raise ValueError("shape without points")
    return np.array(points, np.float64)


def _parse(path: Path) -> Any:
    content = read_file(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252")  # a UnicodeDecodeError is a ValueError
    return parse_json(text.encode())


def _splits(root: Path, folder: str, name: str) -> list[str]:
    base = source_folder(root, folder, name)
    found = [split for split in SPLITS if (base / split).is_dir()]
    if not found:
        raise FileNotFoundError(f"{base}: none of {', '.join(SPLITS)} is there; sources.{name} ({folder}) names their parent")
    return found


def _pairs(place: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return names of every image and of its JSON, which need not be there, in order, and those of the JSONs without an image; suffixes in
    any case, letters with accents in either form. A JPEG is the image that is published: what is drawn from it beside it is not."""
    names = sorted(os.path.splitext(entry.name) for entry in os.scandir(place) if not is_junk(entry.name))
    listings, images = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for stem, suffix in names:
        found = listings if suffix.lower() == ".json" else images if suffix.lower() in SUFFIXES else None
        if found is not None:
            found[unicodedata.normalize("NFC", stem)].append(stem + suffix)
    pairs = []
    for stem, of in images.items():
        published = [image for image in of if image.lower().endswith((".jpg", ".jpeg"))]
        of = published if len(published) == 1 else of
        its = listings.pop(stem, [f"{stem}.json"])
        # nothing says which image a JSON is of, or which JSON is an image's, where there are two of a name
        pairs += [(image, TWICE if len(of) > 1 or len(its) > 1 else its[0]) for image in of]
    return pairs, [listing for of in listings.values() for listing in of]
