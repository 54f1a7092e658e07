"""Metrics of predicted masks, and their uncertainty: pure functions on numpy arrays.

Names follow `ciou`: cumulative IoU (Sa2VA, LISA), `miou`: mean of per-expression IoU (LISA's gIoU), `box_giou`: generalised IoU
against the enclosing box (Rezatofighi et al., CVPR 2019). The unit is one expression; one without a mask is scored as an empty
mask, never skipped. LISA, ReLA and others add 1e-5 to each union; here the division is exact,
which differs by less than 1e-5. Pixels that a data set marks as to ignore (ReasonSeg's 255) count neither in an intersection nor
in a union, whatever was predicted there (dvlab-research/LISA, `intersectionAndUnionGPU` with `ignore_index=255`).
Intervals are percentile bootstraps over images: expressions of one image are not independent.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

THRESHOLDS = (50, 60, 70, 80, 90)
"""Percent of IoU that an expression has to reach to count in `p50`..`p90`."""

FEWEST_IMAGES = 10
"""A bootstrap interval over fewer images says nothing, so nothing is marked as different by one."""


def intersection_union(pred: np.ndarray, gt: np.ndarray, ignore: np.ndarray | None = None) -> tuple[int, int]:
    """Return pixels of the intersection and of the union of two (height, width) masks, leaving out those marked in `ignore`.

    Masks are bool or 0/1. Raises `ValueError` where the shapes differ.
    """
    pred, gt = _counted(pred, gt, ignore)
    return int(np.count_nonzero(pred & gt)), int(np.count_nonzero(pred | gt))


def iou(intersection: int, union: int) -> float:
    """Return the IoU in [0, 1] of one expression, or of sums over many; 1 where both masks are empty."""
    return intersection / union if union else 1.0


def box_giou(pred: np.ndarray, gt: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Return the generalised IoU of two (height, width) masks, in (-1, 1]: IoU - (box - union) / box, all in pixels.

    IoU and union are those of the masks; the box is the smallest that encloses both. With one mask empty that is the other's box
    and IoU is 0, so the value is 0 for a filled box and falls as the mask fills less of it. Both empty: 1. Pixels of `ignore` are
    in no mask.
    Two equal masks give 1 only where they fill their box. Raises `ValueError` where the shapes differ.
    """
    pred, gt = _counted(pred, gt, ignore)
    intersection, union = intersection_union(pred, gt)
    if union == 0:
        return 1.0
    rows, columns = np.nonzero(pred | gt)
    box = int(np.ptp(rows) + 1) * int(np.ptp(columns) + 1)
    return intersection / union - (box - union) / box


class Totals:
    """Running sums over the expressions of one split, so that no number of them takes more memory.

    A record has `intersection` and `union` (pixels, of an empty mask where the answer had no `[SEG]`), `forced_intersection` and
    `forced_union` of the mask of a teacher-forced answer, `box_giou` and `has_seg`; and, for expressions that mean nothing,
    `no_target` (the true mask has no pixel) and `said_nothing` (the predicted one has none).
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = dict.fromkeys(("iou", "box_giou", "has_seg", *(f"p{t}" for t in THRESHOLDS)), 0)
        self._pixels = dict.fromkeys(("intersection", "union", "forced_intersection", "forced_union"), 0)
        self._absent = self._rejected = self._missed = 0
        self.n = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one expression. It counts in `p70` where its IoU is at least 0.7, compared in integers.

        Raises `ValueError` for one without a target whose union is not what was predicted.
        """
        intersection, union = int(record["intersection"]), int(record["union"])
        no_target, said_nothing = bool(record["no_target"]), bool(record["said_nothing"])
        if no_target and (intersection or bool(union) == said_nothing):
            raise ValueError(f"without a target, the union is the prediction; found {dict(record)}")
        self.n += 1
        self._absent += no_target
        self._rejected += no_target and said_nothing
        self._missed += said_nothing and not no_target
        for name in self._pixels:
            self._pixels[name] += int(record[name])
        self._sums["iou"] += iou(intersection, union)
        self._sums["box_giou"] += record["box_giou"]
        self._sums["has_seg"] += bool(record["has_seg"])
        for percent in THRESHOLDS:
            self._sums[f"p{percent}"] += 100 * intersection >= percent * union

    def summary(self) -> dict[str, float | int]:
        """Return all metrics of the split. Raises `ValueError` when nothing was added.

        Where expressions may mean nothing (gRefCOCO), `ciou` and `miou`, there called gIoU and so also given as `giou`, follow
        GRES (CVPR 2023; `refer_evaluation.py` of henghuiding/ReLA): nothing meant and nothing predicted is IoU 1 and adds nothing
        to cIoU, any predicted pixel is IoU 0 and adds to the union. "Nothing" is no pixel at all, not fewer than 50. `n_acc`:
        share of the expressions without a target that are answered by nothing. `t_acc`: share of those with one that are answered
        by something. `p50`..`p90`: over those with one (over all where none has).
        """
        if not self.n:
            raise ValueError("summary: no records, so there is nothing to average")
        mean = {name: value / self.n for name, value in self._sums.items()}
        present = self.n - self._absent
        if self._absent and present:  # what was rejected has IoU 1, and so reached every threshold
            mean |= {f"p{percent}": (self._sums[f"p{percent}"] - self._rejected) / present for percent in THRESHOLDS}
        summary: dict[str, float | int] = {
            "ciou": iou(self._pixels["intersection"], self._pixels["union"]),
            "miou": mean["iou"],
            "box_giou": mean["box_giou"],
            **{f"p{percent}": mean[f"p{percent}"] for percent in THRESHOLDS},
            "seg_rate": mean["has_seg"],
            "ciou_forced": iou(self._pixels["forced_intersection"], self._pixels["forced_union"]),
            "n": self.n,
        }
        if self._absent:
            summary |= {"giou": mean["iou"], "n_acc": self._rejected / self._absent}
            summary |= {"t_acc": (present - self._missed) / present} if present else {}
        return summary


def summarise(records: Iterable[Mapping[str, Any]]) -> dict[str, float | int]:
    """Return all metrics of one split, from one record per expression as `Totals` takes them. Raises `ValueError` without records."""
    totals = Totals()
    for record in records:
        totals.add(record)
    return totals.summary()


@lru_cache(maxsize=1)
def resample_counts(images: int, resamples: int, seed: int) -> np.ndarray:
    """Return (resamples, images) float64: how often each image is drawn when as many as there are get drawn with replacement.

    Every variant of a split is scored with the same, which take longer to draw than all else.
    """
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)
    counts.flags.writeable = False
    return counts


def bootstrap_interval(
    intersections: np.ndarray, unions: np.ndarray, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of cIoU over resampled images.

    `intersections` and `unions` are sums of pixels per image, (images,) or, for the mean of the cIoU of several splits,
    (images, splits) with zeros where a split lacks the image. Raises `ValueError` where shapes differ or nothing is given.
    """
    intersections, unions = _per_image(intersections, unions)
    return _percentiles(_ciou(intersections, unions, resample_counts(len(unions), resamples, seed)), level)


def mean_interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of a value per image, (images,), over resampled images."""
    return _percentiles(resample_counts(len(values), resamples, seed) @ values / len(values), 0.95)


def paired_bootstrap(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return the cIoU of `first` minus that of `second`, and its percentile interval: (difference, low, high).

    Each is (intersections, unions) as in `bootstrap_interval`, row i of both being the same image: both see the same resamples.
    Raises `ValueError` where shapes differ.
    """
    first, second = _per_image(*first), _per_image(*second)
    if first[0].shape != second[0].shape:
        raise ValueError(f"paired_bootstrap: {first[0].shape} against {second[0].shape} images and splits; they must be the same")
    images = len(first[0])
    counts = resample_counts(images, resamples, seed)
    whole = np.ones((1, images))
    difference = _ciou(*first, whole)[0] - _ciou(*second, whole)[0]
    return (float(difference), *_percentiles(_ciou(*first, counts) - _ciou(*second, counts), level))


def _same_shape(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"masks must be of one (height, width), found {first.shape} and {second.shape}")
    return first.astype(bool), second.astype(bool)


def _counted(pred: np.ndarray, gt: np.ndarray, ignore: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return both masks without the pixels to ignore."""
    pred, gt = _same_shape(pred, gt)
    if ignore is None:
        return pred, gt
    ignore, _ = _same_shape(ignore, gt)
    return pred & ~ignore, gt & ~ignore


def _per_image(intersections: np.ndarray, unions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (images, splits) float64: exact for pixel counts, and the matrix product is fast."""
    if np.shape(intersections) != np.shape(unions) or np.size(unions) == 0:
        raise ValueError(f"bootstrap: sums per image of shapes {np.shape(intersections)} and {np.shape(unions)}")
    rows = np.shape(unions)[0]
    return np.asarray(intersections, np.float64).reshape(rows, -1), np.asarray(unions, np.float64).reshape(rows, -1)


def _ciou(intersections: np.ndarray, unions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (resamples,) cIoU, averaged over splits, of (images, splits) sums under (resamples, images) counts."""
    total = counts @ unions
    return np.where(total > 0, counts @ intersections / np.maximum(total, 1), 1.0).mean(axis=1)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
