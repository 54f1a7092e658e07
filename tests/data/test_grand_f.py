"""GranD-f: phrases at their places in the caption, masks united, and what cannot be used named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.data.records import ImageRecord, Noted, Skipped, left_out
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


def part(root: Path, name: str, listing: str, content: Any, *images: str) -> list[ImageRecord | Skipped]:
    """Read a source of that name with one listing and these images, all below `root`."""
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36)).save(root / image)
    (root / listing).parent.mkdir(parents=True, exist_ok=True)
    (root / listing).write_text(json.dumps(content), encoding="utf-8")
    return list(read(grand_f, root, "glamm_data", name))


def said(record: ImageRecord) -> str:
    """Return the caption with its marks, as GLaMM's training has it."""
    caption = record.regions[0].expressions[0].raw
    for region in sorted(record.regions, key=lambda region: -region.expressions[0].sent_id):
        (phrase,) = region.expressions
        start, end = phrase.sent_id, phrase.sent_id + len(phrase.sent)
        caption = f"{caption[:start]}<p> {caption[start:end]} </p> [SEG]{caption[end:]}"
    return caption


def large(x: int, y: int) -> np.ndarray:
    drawn = np.zeros((36, 40), np.uint8)
    drawn[y : y + 3, x : x + 4] = 1
    return drawn


@pytest.mark.parametrize(
    ("listing", "image", "file_name"),
    [
        ("glamm_data/annotations/OpenPsgGCG_train.json", "glamm_data/images/coco2017/train2017/9.jpg", "9.jpg"),
        ("glamm_data/annotations/OpenPsgGCG_train.json", "glamm_data/images/coco2017/train2017/9.jpg", "train2017/9.jpg"),
        ("glamm_data/GranDf/annotations/train/OpenPsgGCG_train.json", "glamm_data/coco_2017/train2017/9.jpg", "9.jpg"),
    ],
)
def test_openpsg_has_the_form_of_the_first_part(tmp_path: Path, listing: str, image: str, file_name: str) -> None:
    """In the folders of both projects, and whether names have the folder or not."""
    groundings = {"a dog": grounding(0, 5, large(0, 0)), "grass": grounding(9, 14, large(9, 9), large(20, 9))}
    row = {"file_name": file_name, "caption": "A dog on grass.", "groundings": groundings}
    (record,) = part(tmp_path, "grand_f_openpsg", listing, [row], image)
    assert isinstance(record, ImageRecord) and record.path == image
    assert [region.area for region in record.regions] == [12, 24]
    assert said(record) == "<p> A dog </p> [SEG] on <p> grass </p> [SEG]."


def test_refcocog_finds_its_phrases_in_the_caption(tmp_path: Path) -> None:
    """In lower case; the second is cut where the third begins, and the fourth is nowhere."""
    outline = [[0.0, 0.0, 8.0, 0.0, 8.0, 6.0, 0.0, 6.0]]
    phrases = ("man in a hat", "A Tall Man in", "bench", "a bird", "a tall")
    entry = {
        "img_file_name": "COCO_train2014_1.jpg",
        "caption": '"A tall Man in a hat sits on a bench."',
        "refs": [{"sentence": phrase, "segmentation": outline, "bbox": []} for phrase in phrases],
    }
    listing, image = "glamm_data/annotations/RefCOCOg_GCG_train.json", "coco2014/train2014/COCO_train2014_1.jpg"
    found = part(tmp_path, "grand_f_refcocog", listing, [{"1": entry}], image)
    (record,) = (one for one in found if isinstance(one, ImageRecord))
    assert record.path == image and {region.area for region in record.regions} == {48} and not left_out(found)
    assert said(record) == "<p> a tall </p> [SEG] <p> man in a hat </p> [SEG] sits on a <p> bench </p> [SEG]."
    assert sorted(one.reason for one in found if isinstance(one, Noted)) == [
        "phrase that is not in the caption: left out",
        "phrase that overlaps with the next: cut",
        "phrase within another: left out",
    ]


def test_flickr30k_is_read_as_it_is_trained_on(tmp_path: Path) -> None:
    """Two boxes of one place are one phrase; what the published training leaves out is left out, without being counted as bad."""
    image = {"id": 1, "file_name": "7.jpg", "width": "40", "height": 36, "caption": "Two men and a dog . "}
    small, short = {"id": 2, "file_name": "8.jpg", "width": 31, "height": 36}, {"id": 3, "file_name": "9.jpg"}
    images = [image, small | {"caption": "a b c"}, image | short | {"caption": "Two men"}]

    def box(span: list[int], mask: np.ndarray, **more: Any) -> dict[str, Any]:
        return {
            "image_id": 1,
            "bbox": [1, 1, 9, 9],
            "area": 81.0,
            "tokens_positive": [span, [0, 1]],
            "sam_mask": rle(mask),
        } | more

    boxes = [
        box([12, 17], large(9, 9)),
        box([0, 7], large(0, 0)),
        box([0, 7], large(20, 0)),
        box([8, 11], large(0, 0), ignore=True),
    ]
    boxes += [box([8, 11], large(0, 0), area=0), box([8, 11], large(0, 0), bbox=[40, 1, 5, 5])]
    listing = "glamm_data/annotations/flickr_mergedGT_GCG_val.json"
    found = part(
        tmp_path,
        "grand_f_flickr30k",
        listing,
        {"images": images, "annotations": boxes},
        "glamm_data/images/flickr30k/Flickr30K/7.jpg",
    )
    (record,) = found
    assert isinstance(record, ImageRecord) and [(r.area, r.split) for r in record.regions] == [(24, "val"), (12, "val")]
    assert said(record) == "<p> Two men </p> [SEG] and <p> a dog </p> [SEG] ."


def test_a_part_that_does_not_exist_or_has_another_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sources\.grand_f_openpgs: .* grand_f, grand_f_openpsg, grand_f_refcocog, grand_f_fli"):
        part(tmp_path, "grand_f_openpgs", "glamm_data/annotations/OpenPsgGCG_train.json", [])
    for name, file, content in (
        ("refcocog", "RefCOCOg_GCG_train.json", [{}]),
        ("refcocog", "RefCOCOg_GCG_train.json", [{"1": {"caption": "a", "refs": []}}]),
        ("flickr30k", "flickr_mergedGT_GCG_train.json", {"images": [{"id": 1}], "annotations": []}),
        ("flickr30k", "flickr_mergedGT_GCG_train.json", []),
    ):
        with pytest.raises(ValueError, match=file):
            part(tmp_path, f"grand_f_{name}", f"glamm_data/annotations/{file}", content)
