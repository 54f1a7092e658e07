"""RefCOCO-M (moondream/refcoco-m): RefCOCO's val with new masks. Parquet files as published on the hub:

    data/validation-*.parquet    image_id, file_name, samples: [{"id", "category", "sentences": [...], "mask": {"counts", "size"}}]

The photographs in them are COCO's train2014, and are read from there (`common.coco_folders`), not from the parquet.
"""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ans.data import masks
from ans.data.images import BROKEN_IMAGE, image_size
from ans.data.records import Expression, ImageRecord, Noted, Region, Skipped
from ans.data.sources.common import clean, coco_folders, field, source_folder

SPLIT = "val"

Unread = tuple[str, dict[str, Any]]
"""Locator of the image, and its row."""


def plan(root: Path, folder: str, name: str) -> list[Unread]:
    """Return every image, in the order of the files. Raises `FileNotFoundError` without them or without COCO's photographs,
    `ValueError` naming a file that cannot be read."""
    place = next((place for place in coco_folders(folder) if (root / place).is_dir()), None)
    if place is None:
        raise FileNotFoundError(f"no images for sources.{name}: looked below {root} in {', '.join(coco_folders(folder))}")
    found: list[Unread] = []
    known: set[int] = set()
    for path in _files(root, folder, name):
        try:
            rows = pq.read_table(path, columns=["image_id", "file_name", "samples"]).to_pylist()
            found += [(f"{place}/{field(row, 'file_name', str)}", row) for row in rows]
            for sample in (sample for row in rows for sample in row["samples"] or []):
                if (number := field(sample, "id", int)) in known:
                    raise ValueError(f"sample id {number} occurs twice")
                known.add(number)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a parquet of RefCOCO-M: {error}") from error
    return found


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return names and sizes of the files."""
    return [f"{path.name}: {path.stat().st_size} bytes" for path in _files(root, folder, name)]


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield the image with its regions, and one `Skipped` per sample that cannot be used. A sentence has no id of its own: it is the
    sample's, times 1000, and its place."""
    path, row = unread
    try:
        width, height = image_size(root, path)
        number = field(row, "image_id", int)
    except BROKEN_IMAGE as error:
        reason = "missing image" if isinstance(error, FileNotFoundError) else "image or row that cannot be read"
        yield Skipped(path.rpartition("/")[2], reason)
        return
    regions = []
    for sample in row["samples"] or []:
        key = f"sample {sample.get('id')}"
        try:
            sample_id = field(sample, "id", int)
            category = field({"category": sample.get("category") or ""}, "category", str)
            counts = masks.from_segmentation(sample["mask"], height, width)
            area, bbox = masks.measure(counts, height, width)
            if not area:
                raise ValueError("mask without a pixel")
            texts = []
            for text in field(sample, "sentences", list):
                try:
                    texts.append(clean(text))
                except ValueError as error:
                    yield Noted(key, f"text left out: {error}")
            if not texts:
                raise ValueError("sample without a text")
        except ValueError as error:
            yield Skipped(key, str(error))
            continue
        asked = tuple(Expression(1000 * sample_id + place, text, text) for place, text in enumerate(texts))
        regions.append(Region(sample_id, SPLIT, category, area, bbox, counts, asked))
    if regions:
        yield ImageRecord(number, path, width, height, tuple(regions))


def _files(root: Path, folder: str, name: str) -> list[Path]:
    base = source_folder(root, folder, name)
    found = [Path(path) for path in sorted(glob.glob(str(base / "**" / "validation-*.parquet"), recursive=True))]
    if not found:
        raise FileNotFoundError(f"{base}: no validation-*.parquet; sources.{name} ({folder}) names the data set's folder")
    return found
