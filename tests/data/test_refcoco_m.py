"""RefCOCO-M: the published parquet, its photographs in COCO's folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ans.data.records import ImageRecord, Skipped
from ans.data.sources import refcoco_m
from ans.data.sources.common import read
from ans.toy.world_loops import rle

NAME = "COCO_train2014_000000000009.jpg"


def published(root: Path, samples: list[dict[str, Any]], name: str = NAME) -> list[ImageRecord | Skipped]:
    (root / "coco2014" / "train2014").mkdir(parents=True)
    Image.new("RGB", (16, 12)).save(root / "coco2014" / "train2014" / NAME)
    (root / "refcoco-m" / "data").mkdir(parents=True)
    row = {"image": {"bytes": b"", "path": None}, "image_id": 9, "file_name": name, "samples": samples}
    pq.write_table(pa.Table.from_pylist([row]), root / "refcoco-m" / "data" / "validation-00000-of-00001.parquet")
    return list(read(refcoco_m, root, "refcoco-m", "refcoco_m"))


def sample(number: int, mask: np.ndarray, *sentences: str) -> dict[str, Any]:
    about = {"id": number, "image_id": 9, "category": "cup", "supercategory": "kitchen", "label": "cup", "bbox": [0.0] * 4}
    return about | {"sentences": list(sentences), "mask": rle(mask)}


def test_a_row_is_an_image_with_its_regions(tmp_path: Path) -> None:
    mask = np.zeros((12, 16))
    mask[3:5, 2:7] = 1
    empty = np.zeros((12, 16))
    turned = np.ones((16, 12))
    samples = [sample(5, mask, "left cup", " the cup ", ""), sample(6, empty, "x"), sample(7, mask), sample(8, turned, "y")]
    record, *others = sorted(published(tmp_path, samples), key=lambda one: isinstance(one, Skipped))
    assert isinstance(record, ImageRecord) and record.image_id == 9 and record.path == f"coco2014/train2014/{NAME}"
    (region,) = record.regions
    assert (region.region_id, region.split, region.category, region.area, region.bbox) == (5, "val", "cup", 10, (2, 3, 5, 2))
    assert [(one.sent_id, one.sent) for one in region.expressions] == [(5000, "left cup"), (5001, "the cup")]
    reasons = [one.reason for one in others if isinstance(one, Skipped)]
    assert reasons == [
        "text left out: empty text", "mask without a pixel", "sample without a text",
        "RLE of another size than the image: height and width are swapped",
    ]  # fmt: skip


def test_a_photograph_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parquet: .*sample id 5 occurs twice"):
        published(tmp_path / "twice", [sample(5, np.ones((12, 16)), "cup")] * 2)
    (found,) = published(tmp_path, [sample(5, np.ones((12, 16)), "cup")], "COCO_train2014_000000000010.jpg")
    assert isinstance(found, Skipped) and found.reason == "missing image"


def test_what_is_no_such_parquet_is_named(tmp_path: Path) -> None:
    published(tmp_path, [])
    pq.write_table(pa.table({"a": [1]}), tmp_path / "refcoco-m" / "data" / "validation-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"validation-00000.*not a parquet of RefCOCO-M"):
        refcoco_m.plan(tmp_path, "refcoco-m", "refcoco_m")
    (tmp_path / "refcoco-m" / "data" / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"sources\.refcoco_m"):
        refcoco_m.plan(tmp_path, "refcoco-m", "refcoco_m")
