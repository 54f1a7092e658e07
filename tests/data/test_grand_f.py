"""GranD-f: phrases at their places in the caption, masks united, and what cannot be used named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.data.records import ImageRecord, Skipped
from ans.data.sources import grand_f
from ans.data.sources.common import read
from ans.toy.world_loops import rle


def square(x: int, y: int) -> np.ndarray:
    drawn = np.zeros((12, 16), np.uint8)
    drawn[y : y + 3, x : x + 4] = 1
    return drawn


def train(root: Path, *rows: dict[str, Any]) -> list[ImageRecord | Skipped]:
    folder = root / "glamm_data"
    (folder / "images" / "grandf" / "train").mkdir(parents=True)
    Image.new("RGB", (16, 12)).save(folder / "images" / "grandf" / "train" / "sa_1.jpg")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "GranDf_HA_GCG_train.json").write_text(json.dumps(rows), encoding="utf-8")
    return list(read(grand_f, root, "glamm_data", "grand_f"))


def grounding(start: int, stop: int, *masks: np.ndarray) -> dict[str, Any]:
    return {"token_positives": [start, stop], "rle_masks": [rle(mask) for mask in masks]}


def test_phrases_lie_where_the_listing_says_in_order(tmp_path: Path) -> None:
    groundings = {
        "two cats": grounding(16, 24, square(0, 0), square(2, 1)),
        "cats": grounding(2, 6, square(9, 6)),
    }
    quoted = {"file_name": "sa_1.jpg", "caption": '"A cats dog near two cats."', "groundings": groundings}
    (record,) = train(tmp_path, quoted)
    assert isinstance(record, ImageRecord)
    first, second = record.regions
    assert [(region.expressions[0].sent_id, region.expressions[0].sent) for region in record.regions] == [
        (2, "cats"),
        (16, "two cats"),
    ]
    assert {region.expressions[0].raw for region in record.regions} == {"A cats dog near two cats."}
    united = coco.decode({"size": [12, 16], "counts": second.counts.encode()})
    assert np.array_equal(united, square(0, 0) | square(2, 1)) and second.area == 12 + 12 - 4 and first.split == "train"


@pytest.mark.parametrize(
    ("groundings", "reason"),
    [
        ({"a": grounding(0, 40, square(0, 0))}, "not within the caption"),
        ({"a": grounding(1, 4, square(0, 0))}, "begins or ends with a space"),
        ({"a": grounding(0, 5, square(0, 0)), "b": grounding(2, 5, square(0, 0))}, "overlaps"),
        ({"a": grounding(0, 1, np.zeros((12, 16)))}, "without a pixel"),
        ({"a": {"token_positives": [0, 1], "rle_masks": [rle(np.ones((3, 3)))]}}, "another size"),
    ],
)
def test_phrases_that_cannot_be_used_are_named(tmp_path: Path, groundings: dict[str, Any], reason: str) -> None:
    found = train(tmp_path, {"file_name": "sa_1.jpg", "caption": "A cat and a dog", "groundings": groundings})
    assert [one.reason for one in found if isinstance(one, Skipped)] and reason in next(
        one.reason for one in found if isinstance(one, Skipped)
    )


def test_an_image_or_a_caption_that_is_not_there(tmp_path: Path) -> None:
    rows = [{"file_name": "sa_2.jpg", "caption": "A", "groundings": {}}, {"file_name": "sa_1.jpg", "groundings": {}}]
    assert [one.reason for one in train(tmp_path, *rows) if isinstance(one, Skipped)] == [
        "missing image",
        "image without a caption",
    ]


def test_a_folder_without_a_listing_says_what_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "glamm_data").mkdir()
    with pytest.raises(FileNotFoundError, match=r"GranDf_HA_GCG_train\.json.*sources\.grand_f"):
        grand_f.plan(tmp_path, "glamm_data", "grand_f")


def test_val_pairs_phrases_and_masks_by_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "glamm_data"
    images, listings = folder / "GranDf_HA_images" / "val_test", folder / "GranDf" / "annotations" / "val_test"
    images.mkdir(parents=True)
    listings.mkdir(parents=True)
    Image.new("RGB", (16, 12)).save(images / "sa_7.jpg")
    captions = {"images": [{"id": "sa_7"}], "annotations": [{"image_id": "sa_7", "caption": "a b", "labels": ["b", "a"]}]}
    drawn = {"annotations": [{"image_id": "sa_7", "segmentation": rle(square(x, 0))} for x in (0, 8)]}
    (listings / "val_gcg_coco_caption_gt.json").write_text(json.dumps(captions), encoding="utf-8")
    (listings / "val_gcg_coco_mask_gt.json").write_text(json.dumps(drawn), encoding="utf-8")
    (record,) = read(grand_f, tmp_path, "glamm_data", "grand_f")
    assert isinstance(record, ImageRecord) and record.path.endswith("val_test/sa_7.jpg")
    assert [(r.split, r.expressions[0].sent, r.bbox[0]) for r in record.regions] == [("val", "b", 0), ("val", "a", 8)]
    captions["annotations"][0]["labels"].pop()
    (listings / "val_gcg_coco_caption_gt.json").write_text(json.dumps(captions), encoding="utf-8")
    with pytest.raises(ValueError, match="1 phrases and 2 masks"):
        grand_f.plan(tmp_path, "glamm_data", "grand_f")
    captions["images"] *= 2
    (listings / "val_gcg_coco_caption_gt.json").write_text(json.dumps(captions | {"annotations": []}), encoding="utf-8")
    (listings / "val_gcg_coco_mask_gt.json").write_text(json.dumps({"annotations": []}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"caption_gt.json: .*id sa_7 occurs twice: images\[0\] and images\[1\]"):
        grand_f.plan(tmp_path, "glamm_data", "grand_f")
