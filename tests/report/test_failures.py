"""Reasons of failures on masks drawn by hand: each is recognised, and of two that fit the first is taken."""

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco

from ans.evaluation.metrics import intersection_union, iou
from ans.report.failures import REASONS, VIDEO_REASONS, classify, classify_videos

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


FAR = box(30, 0, 9, 9)


def clip_row(found: list[np.ndarray], truth: list[np.ndarray], has_seg: bool = True, name: str = "clip") -> dict:
    pairs = [intersection_union(a, b) for a, b in zip(found, truth, strict=True)]
    counts = [[row(a)["counts"] for a in masks] for masks in (found, truth)]
    j = float(np.mean([iou(*pair) for pair in pairs]))
    return {"clip": name, "height": SIDE, "width": SIDE, "has_seg": has_seg, "j": j, "counts": counts[0], "true": counts[1]}


@pytest.mark.parametrize(
    ("found", "truth", "reason"),
    [
        ([THING] * 4, [THING] * 4, ""),
        ([NOTHING] * 4, [THING] * 4, "no mask"),
        ([NEIGHBOUR] * 4, [THING] * 4, "another object"),
        ([THING, NEIGHBOUR, NEIGHBOUR], [THING] * 3, "another object"),  # two frames of three
        ([THING, THING, NOTHING, NOTHING, NOTHING], [THING] * 5, "lost"),  # of the first three, two
        ([THING, NOTHING, NOTHING, NOTHING, THING], [THING] * 5, "found late"),  # of the last two, one
        ([THING, NOTHING, NOTHING, NOTHING, NOTHING, THING], [THING] * 6, "inexact"),
        ([THING, box(0, 0, 9, 9), NOTHING, NOTHING], [THING] * 4, "lost"),
        ([NOTHING, NOTHING, THING, box(0, 0, 9, 9)], [THING] * 4, "found late"),
        ([THING, FAR, FAR] * 2, [THING, NOTHING, NOTHING] * 2, "marked while away"),
        ([FAR] * 2, [THING] * 2, "inexact"),
    ],
)  # fmt: skip
def test_reasons_of_clips(found: list[np.ndarray], truth: list[np.ndarray], reason: str) -> None:
    other = clip_row([NOTHING] * len(found), [NEIGHBOUR] * len(found))
    elsewhere = clip_row(found, found, name="another clip")  # what is meant there is no object here
    assert classify_videos([clip_row(found, truth), other, elsewhere])[0] == reason
    silent = clip_row([NOTHING] * len(found), truth, has_seg=False) | {"j": 0.0}
    assert classify_videos([silent])[0] == "no [SEG]" and reason in ("", *VIDEO_REASONS)
