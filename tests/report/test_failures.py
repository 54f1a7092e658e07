"""Reasons of failures on masks drawn by hand: each is recognised, and of two that fit the first is taken."""

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco

from ans.evaluation.metrics import intersection_union, iou
from ans.report.failures import REASONS, classify

SIDE = 40


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


THING, NEIGHBOUR, NOTHING = box(0, 0, 10, 10), box(20, 20, 10, 10), box(0, 0, 0, 0)


def row(found: np.ndarray, has_seg: bool = True, region: int = 1, truth: np.ndarray = THING, image: str = "a.png") -> dict:
    intersection, union = intersection_union(found, truth)
    counts = [coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() for mask in (found, truth)]
    about = {"image_path": image, "region_id": region, "height": SIDE, "width": SIDE, "has_seg": has_seg}
    measured = {"iou": iou(intersection, union), "intersection": intersection, "union": union}
    return about | {"counts": counts[0], "gt_counts": counts[1], **measured}


@pytest.mark.parametrize(
    ("found", "has_seg", "reason"),
    [
        (THING, True, ""),
        (box(0, 0, 10, 5), True, ""),  # IoU 0.5 exactly is no failure
        (NOTHING, False, "no [SEG]"),
        (NOTHING, True, "empty mask"),
        (box(20, 20, 10, 9), True, "another object"),
        (box(0, 0, 30, 30), True, "object and more"),  # covers the neighbour too, but is not it
        (box(20, 20, 10, 4), True, "elsewhere"),  # IoU 0.4 with the neighbour
        (box(0, 0, 5, 4), True, "part of it"),
        (box(5, 3, 10, 10), True, "inexact"),  # 35 of 165
    ],
)
def test_each_reason(found: np.ndarray, has_seg: bool, reason: str) -> None:
    table = pd.DataFrame([row(found, has_seg), row(NEIGHBOUR, region=2, truth=NEIGHBOUR)])
    assert list(classify(table)) == [reason, ""]
    assert reason in ("", *REASONS)


def test_where_nothing_is_meant() -> None:
    """gRefCOCO: no pixel is right, with or without [SEG]; any is a failure of its own, whatever it covers."""
    found = [row(NOTHING, False, truth=NOTHING), row(NOTHING, truth=NOTHING), row(NEIGHBOUR, truth=NOTHING)]
    assert list(classify(pd.DataFrame([*found, row(NEIGHBOUR, region=2, truth=NEIGHBOUR)]))) == ["", "", "nothing meant", ""]


def test_ignored_pixels_are_not_part_of_the_answer() -> None:
    """20 of 100 pixels found, and 80 marked beside them that do not count."""
    part = row(box(0, 0, 10, 2)) | {"counts": row(box(0, 0, 10, 10))["counts"]}
    assert list(classify(pd.DataFrame([part]))) == ["part of it"]


def test_objects_of_other_images_do_not_count() -> None:
    table = pd.DataFrame([row(NEIGHBOUR), row(NEIGHBOUR, region=2, truth=NEIGHBOUR, image="b.png")], index=[7, 3])
    assert classify(table).to_dict() == {7: "elsewhere", 3: ""}
