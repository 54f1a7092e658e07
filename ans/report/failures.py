"""Why an expression failed: one reason for each whose IoU is below one half, from the masks alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pycocotools import mask as coco

from ans.report.results import KEY, Results, expressions_path

FAILED_BELOW = 0.5
"""IoU; from here on an answer counts as right, as in P@0.5."""

REASONS = {
    "no [SEG]": "the answer had no [SEG], so there is no mask",
    "empty mask": "[SEG] was said, but no pixel was marked",
    "nothing meant": "something is marked, but the expression is of nothing in the image",
    "another object": "the mask is another annotated object of the image (IoU at least 0.5 with that one)",
    "elsewhere": "IoU with the object below 0.1, and no other annotated object was hit",
    "object and more": "at least 80 % of the object is covered, and so is much else",
    "part of it": "at least 80 % of the mask lies on the object, but most of the object is missing",
    "inexact": "IoU 0.1 to 0.5: over 20 % of the object is missing, and over 20 % of the mask lies beside it",
}

VIDEO_REASONS = {
    "no [SEG]": "the answer had no [SEG], so there is no mask",
    "no mask": "[SEG] was said, but no pixel of any frame was marked",
    "another object": "over the frames, the mask is what another expression of the clip means (mean IoU at least 0.5)",
    "lost": "right in the first half of the frames (mean IoU at least 0.5), wrong in the second",
    "found late": "wrong in the first half of the frames, right in the second",
    "marked while away": "right where the object is seen (mean IoU at least 0.5), marked where it is not",
    "inexact": "none of the above",
}


def find_reasons(results: Results, data: Path, variant: str) -> pd.Series:
    """Return one of `REASONS` per expression, or "" where it did not fail; indexed by (split, *KEY), in the results' order."""
    found = []
    for split in results.splits:
        columns = [*KEY, "counts", "gt_counts", "height", "width", "iou", "intersection", "union", "has_seg"]
        table = pd.read_parquet(expressions_path(data, variant, split), columns=columns).sort_values(KEY, ignore_index=True)
        reasons = classify(table)
        reasons.index = pd.MultiIndex.from_frame(table[KEY].assign(split=split)[["split", *KEY]])
        found.append(reasons)
    return pd.concat(found)


def classify(table: pd.DataFrame) -> pd.Series:
    """Return the reason per row of one split's table, or "". Of several that fit, the first in the order of `REASONS` is taken.

    Other objects are those of the same image that have an expression in the table.
    """
    column = {
        name: table[name].tolist() for name in table.columns
    }  # a table of every image's rows would take longer than all else
    failed, images = np.asarray(column["iou"]) < FAILED_BELOW, defaultdict(list)
    for row, image in enumerate(column["image_path"]):
        images[image].append(row)
    reasons = [""] * len(table)
    for rows in images.values():
        wrong = [row for row in rows if failed[row]]
        if not wrong:
            continue
        objects = list({column["region_id"][row]: row for row in reversed(rows)}.values())  # of each the first row
        masks, truths = _rle(column, wrong, "counts"), _rle(column, objects, "gt_counts")
        overlap = coco.iou(masks, truths, [0] * len(truths))
        own = [[column["region_id"][row] == column["region_id"][other] for other in objects] for row in wrong]
        other = np.where(own, 0, overlap).max(1)
        common, union, ious, has_seg = (
            np.array([column[name][row] for row in wrong]) for name in ("intersection", "union", "iou", "has_seg")
        )
        wanted = coco.area(_rle(column, wrong, "gt_counts"))
        found = union - wanted + common  # pixels that count: without those to ignore
        fits = {
            "no [SEG]": ~has_seg.astype(bool),
            "empty mask": found == 0,
            "nothing meant": wanted == 0,
            "another object": other >= 0.5,
            "elsewhere": ious < 0.1,
            "object and more": common >= 0.8 * wanted,
            "part of it": common >= 0.8 * found,
        }
        for row, reason in zip(wrong, np.select(list(fits.values()), list(fits), "inexact").tolist(), strict=True):
            reasons[row] = reason
    return pd.Series(reasons, index=table.index, dtype="str")


def classify_videos(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the reason per row of a set of videos (`ans.evaluation.videos`), one of `VIDEO_REASONS`, or "" where J is at least one half.
    Of several that fit, the first is taken."""
    of_clip: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_clip.setdefault(row["clip"], []).append(row)
    return [_why(row, of_clip[row["clip"]]) if row["j"] < FAILED_BELOW else "" for row in rows]


def _why(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    marked, each = coco.area(_frames(row, "counts")) > 0, _ious(row, row)
    seen, half = coco.area(_frames(row, "true")) > 0, (len(each) + 1) // 2
    others = [_ious(row, other).mean() for other in rows if other["true"] != row["true"]]
    first, second = each[:half].mean() >= FAILED_BELOW, len(each) > 1 and each[half:].mean() >= FAILED_BELOW
    fits = {
        "no [SEG]": not row["has_seg"],
        "no mask": not marked.any(),
        "another object": max(others, default=0.0) >= 0.5,
        "lost": first,
        "found late": second,
        "marked while away": seen.any() and each[seen].mean() >= FAILED_BELOW,
    }
    return next((reason for reason, fit in fits.items() if fit), "inexact")


def _ious(row: Mapping[str, Any], meant: Mapping[str, Any]) -> np.ndarray:
    """(frames,) IoU of a row's masks with what another means; 1 where both are empty."""
    pairs = zip(_frames(row, "counts"), _frames(meant, "true"), strict=True)
    return np.array([coco.iou([one], [other], [0])[0, 0] if one["counts"] != other["counts"] else 1.0 for one, other in pairs])


def _frames(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    return [{"size": [row["height"], row["width"]], "counts": counts.encode()} for counts in row[column]]


def _rle(column: Mapping[str, Sequence[Any]], rows: Sequence[int], name: str) -> list[dict[str, object]]:
    return [{"size": [column["height"][row], column["width"][row]], "counts": column[name][row].encode()} for row in rows]
