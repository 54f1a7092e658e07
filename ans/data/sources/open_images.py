"""Open Images' instance segmentation: a CSV of masks, PNGs of another size than the images, class names in a second CSV.

    train-annotations-object-segmentation.csv    images/train/<ImageID>.jpg
    oidv7-class-descriptions.csv                 masks/train/<MaskPath>

Masks were drawn on larger copies of the images (long side 1600), so each side is off by up to a pixel after scaling; a mask is
brought to its image's own size here, by the nearest pixel. There are no expressions.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ans.data import masks
from ans.data.disk import spelled
from ans.data.images import BROKEN_IMAGE, drawn, image_size, open_mask
from ans.data.records import ImageRecord, Noted, Region, Skipped
from ans.data.sources.common import clean, source_folder

SPLIT = "train"
ANNOTATIONS = "train-annotations-object-segmentation.csv"
CLASSES = "oidv7-class-descriptions.csv"
COLUMNS = ("ImageID", "MaskPath", "LabelName", "BoxID")
IMAGE_ID = re.compile(r"[0-9a-f]{16}")
BOX_ID = re.compile(r"[0-9a-f]{1,15}")
MASK_PATH = re.compile(r"\w[\w.-]*\.png", re.ASCII)  # a plain name: no path leaves the folder
CLASS_CODE = re.compile(r"/[a-z]/")
NO_CLASS = f"class that {CLASSES} does not have; the object has none"


Unread = tuple[str, str, list[tuple[str, str | None, str]]]
"""Folder, ImageID, and for every mask of the image its MaskPath, class name (None: a class that is not listed) and BoxID."""


def plan(root: Path, folder: str, name: str) -> list[Unread]:
    """Return every image with masks, in order of ImageID.

    Raises `FileNotFoundError` without the listing or the folders, `ValueError` naming a CSV that cannot be read.
    """
    annotations_path, classes_path = _listing(root, folder, name)
    for kind in ("images", "masks"):
        source_folder(root, f"{folder}/{kind}/{SPLIT}", name)
    classes = _read_classes(classes_path)
    by_image: dict[str, list[tuple[str, str | None, str]]] = defaultdict(list)  # rows of one image need not be neighbours
    for image_id, mask_path, label, box_id in _read_rows(annotations_path):
        by_image[image_id].append((mask_path, classes.get(label.strip()), box_id))
    return [(folder, image_id, by_image[image_id]) for image_id in sorted(by_image)]


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return names and sizes of the two CSVs."""
    return [f"{path.name}: {path.stat().st_size} bytes" for path in _listing(root, folder, name)]


def _listing(root: Path, folder: str, name: str) -> list[Path]:
    base = source_folder(root, folder, name)
    for path in (base / ANNOTATIONS, base / CLASSES):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; sources.{name} ({folder}) needs it")
    return [base / ANNOTATIONS, base / CLASSES]


def _csv_rows(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # some tools begin a file with a mark
            yield from csv.reader(file, strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable CSV: {error}") from error


def _read_rows(path: Path) -> Iterator[list[str]]:
    """Yield `COLUMNS` of every row, empty where a row is too short."""
    rows = _csv_rows(path)
    header = next(rows, [])
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)} in its first line {header!r:.200}")
    positions = [header.index(column) for column in COLUMNS]
    for row in filter(None, rows):
        yield [row[position] if position < len(row) else "" for position in positions]


def _read_classes(path: Path) -> dict[str, str]:
    """Return code -> name. Some releases of the file begin with a header, others with the first class; further columns are ignored, but
    a line with more or fewer than the first is refused: a name with a comma in it that lacks its quotes would be cut. A header has no
    code in it."""
    classes: dict[str, str] = {}
    columns, first = 0, True
    for number, row in enumerate(_csv_rows(path), start=1):
        if not row:
            continue
        columns = columns or len(row)
        if len(row) != columns or columns < 2:
            raise ValueError(f"{path}, row {number}: {len(row)} columns ({','.join(row)!r:.80}), expected {max(columns, 2)}")
        if CLASS_CODE.match(code := row[0].strip()):
            try:
                name = clean(row[1])
            except ValueError as error:
                raise ValueError(f"{path}, row {number}: {error}") from None
            if classes.setdefault(code, name) != name:
                raise ValueError(f"{path}, row {number}: {code} is {name!r:.80} here, and {classes[code]!r:.80} above")
        elif not first or "/" in "".join(row):
            raise ValueError(f"{path}, row {number}: {row[0]!r:.80} is not a class code, such as /m/04yx4")
        first = False
    return classes


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield the record of an image, and one `Skipped` per mask that cannot be used.

    `image_id` is the ImageID as a signed 64-bit number, `region_id` the BoxID as a number.
    """
    folder, image_id, rows = unread
    path = f"{folder}/images/{SPLIT}/{image_id}.jpg"
    width = height = 0
    reason = "" if IMAGE_ID.fullmatch(image_id) else "ImageID that is not 16 hexadecimal digits"
    if not reason:
        path = spelled(root, path)
        try:
            width, height = image_size(root, path)
        except FileNotFoundError:
            reason = f"image file not in images/{SPLIT}"
        except ValueError:
            reason = "image that cannot be read"
    if reason:
        yield from (Skipped(mask_path, reason) for mask_path, _, _ in rows)
        return
    regions = []
    seen: set[str] = set()
    for mask_path, category, box_id in rows:
        if mask_path in seen:
            yield Noted(mask_path, "duplicate row")
            continue
        seen.add(mask_path)
        if not MASK_PATH.fullmatch(mask_path) or not BOX_ID.fullmatch(box_id):
            yield Skipped(mask_path, "row without a mask's file name and a BoxID")
            continue
        try:
            mask = _read_mask(root / folder / "masks" / SPLIT / mask_path, width, height)
        except FileNotFoundError:
            yield Skipped(mask_path, f"mask file not in masks/{SPLIT}")
        except ValueError as error:
            yield Skipped(mask_path, str(error))
        else:
            counts = masks.from_array(mask)
            area, bbox = masks.measure(counts, height, width)
            notes = masks.suspicions(mask > 0) + ([NO_CLASS] if category is None else [])
            yield from (Noted(mask_path, note) for note in notes)
            regions.append(Region(int(box_id, 16), SPLIT, category or "", area, bbox, counts))
    if regions:
        number = int.from_bytes(bytes.fromhex(image_id), signed=True)
        yield ImageRecord(number, path, width, height, tuple(regions))


def _read_mask(path: Path, width: int, height: int) -> np.ndarray:
    """Return (height, width) uint8, not zero on the object. Raises `ValueError` with one short reason, `FileNotFoundError`."""
    try:
        stored = Image.fromarray(drawn(open_mask(path)))
    except FileNotFoundError:
        raise
    except BROKEN_IMAGE as error:
        raise ValueError(reason if (reason := str(error)).startswith("mask is a") else "mask that cannot be read") from error
    wide, high = stored.size
    if abs(wide * height - high * width) > wide + high + width + height:  # every side may have been rounded by a pixel
        raise ValueError("mask of another aspect than the image")
    mask = np.asarray(stored.resize((width, height), Image.Resampling.NEAREST))
    if not mask.any():
        raise ValueError("mask without a pixel")
    return mask
