"""Metrics of masks through videos: J, F and their mean by the definitions of DAVIS, and the accuracy and robustness of ReVOS.

J is the region's IoU, F the boundary's F-measure (Perazzi et al., CVPR 2016; davis2017-evaluation). The unit is one expression: the mean
over all frames of its video, first and last included, and a data set's value is the mean over expressions, whatever the lengths of their
videos. A and R are ReVOS's (cilinyan/VISA, `metrics.py`): the share of pixels that are right, and one less the falsely predicted pixels
as a share of the foreground's, at least 0. Its script adds the masks of a video's objects up in 8 bits, so that pixels which two of them
share count as wrong; here they are united. An expression without a prediction counts as empty masks, never left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import ceil, hypot

import numpy as np

from ans.evaluation.metrics import bootstrap_interval, intersection_union, iou, paired_bootstrap

TOLERANCE = 0.008
"""How far from the true boundary a predicted one may lie, as a share of the image's diagonal; rounded up to whole pixels."""


def boundary(mask: np.ndarray) -> np.ndarray:
    """Return (h, w) bool: the pixels of a mask (h, w) that differ from the one to the right, below, or below to the right.

    The last row looks to the right only, the last column down only, and the corner nowhere: a mask that fills the image has no boundary.
    """
    mask = mask.astype(bool)
    found = np.zeros_like(mask)
    found[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    found[:-1] |= mask[:-1] ^ mask[1:]
    found[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return found


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return (h, w) bool: the pixels whose centre is at most `radius` pixels from one of the mask's."""
    height, width = mask.shape
    found = np.zeros_like(mask, bool)
    sums = np.zeros((height, width + 1), np.int64)
    np.cumsum(mask, axis=1, out=sums[:, 1:])
    columns = np.arange(width)
    for down in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        across = int((radius**2 - down**2) ** 0.5)
        near = sums[:, np.minimum(columns + across + 1, width)] > sums[:, np.maximum(columns - across, 0)]
        if down >= 0:
            found[down:] |= near[: height - down]
        else:
            found[:down] |= near[-down:]
    return found


def boundary_f(pred: np.ndarray, gt: np.ndarray) -> float:
    """Return f in [0, 1] of two (h, w) masks: of the shares of each boundary that lie near the other. 1 where neither has a boundary, 0
    where one has none."""
    ours, theirs = boundary(pred), boundary(gt)
    mine, true = np.count_nonzero(ours), np.count_nonzero(theirs)
    if not mine or not true:
        return float(mine == true)
    radius = ceil(TOLERANCE * hypot(*ours.shape))
    precision = np.count_nonzero(ours & dilate(theirs, radius)) / mine
    recall = np.count_nonzero(theirs & dilate(ours, radius)) / true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(frozen=True)
class VideoScore:
    """One expression: means over its frames, in [0, 1]. `a` and `r` are NaN where the video's foreground was not given."""

    j: float
    f: float
    a: float = float("nan")
    r: float = float("nan")

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2


class Scorer:
    """The score of one expression, frame by frame, so that a video of any length takes no more memory."""

    def __init__(self) -> None:
        self._sums = np.zeros(4)
        self._frames = 0

    def add(self, pred: np.ndarray | None, gt: np.ndarray, foreground: np.ndarray | None = None) -> None:
        """Count a frame: masks (h, w), `pred` None where nothing was predicted, `foreground` the union of all of the video's objects.

        Raises `ValueError` where the shapes differ.
        """
        pred = np.zeros_like(gt, bool) if pred is None else pred
        values = [iou(*intersection_union(pred, gt)), boundary_f(pred, gt)]
        if foreground is None:
            values += [float("nan")] * 2
        else:
            pred, gt = pred.astype(bool), gt.astype(bool)
            wrong = np.count_nonzero(pred & ~gt)
            values += [float(np.mean(pred == gt)), max(1 - wrong / (np.count_nonzero(foreground) + 1e-6), 0.0)]
        self._sums += values
        self._frames += 1

    def score(self) -> VideoScore:
        """Return means over the frames. Raises `ValueError` if there are none."""
        if not self._frames:
            raise ValueError("score: no frames, so there is nothing to average")
        return VideoScore(*(self._sums / self._frames).tolist())


def score(
    preds: Iterable[np.ndarray | None] | None, gts: Sequence[np.ndarray], foreground: Sequence[np.ndarray] | None = None
) -> VideoScore:
    """Score one expression: `gts` (n, h, w), and as many predictions; None where there is none at all."""
    scorer = Scorer()
    for number, (pred, gt) in enumerate(zip([None] * len(gts) if preds is None else preds, gts, strict=True)):
        scorer.add(pred, gt, None if foreground is None else foreground[number])
    return scorer.score()


def summarise(scores: Sequence[VideoScore]) -> dict[str, float]:
    """Return `j`, `f`, `jf` over all expressions, x 100 as in every publication, and `n`. Raises `ValueError` if there are none."""
    if not scores:
        raise ValueError("summarise: no expressions, so there is nothing to average")
    j, f = (100 * float(np.mean([getattr(one, key) for one in scores])) for key in "jf")
    return {"j": j, "f": f, "jf": (j + f) / 2, "n": len(scores)}


REVOS_KINDS = {0: "referring", 1: "reasoning"}
"""Its `type_id`s; of 2, expressions of absent objects, there is no result."""


def summarise_revos(scores: Sequence[tuple[int, VideoScore]]) -> dict[str, float]:
    """Summarise ReVOS's expressions with their `type_id`: `j`, `f`, `jf`, `a`, `r` of each kind (`j_referring`, ...), and over all, the
    mean of the two kinds whatever their numbers. As its script does, each expression's values are rounded to hundredths of a
    percent.

    Raises `ValueError` where one of the two kinds is not there.
    """
    found: dict[str, float] = {}
    for number, kind in REVOS_KINDS.items():
        own = [one for type_id, one in scores if type_id == number]
        if not own:
            raise ValueError(f"summarise_revos: no expression of type_id {number} ({kind})")
        for key in (field.name for field in fields(VideoScore)):
            found[f"{key}_{kind}"] = float(np.mean([round(100 * getattr(one, key), 2) for one in own]))
        found[f"jf_{kind}"] = (found[f"j_{kind}"] + found[f"f_{kind}"]) / 2
        found[f"n_{kind}"] = len(own)
    for key in ("j", "f", "jf", "a", "r"):
        found[key] = (found[f"{key}_referring"] + found[f"{key}_reasoning"]) / 2
    return found


def merged(scores: np.ndarray) -> np.ndarray:
    """Return (N, h, w) bool: objects without overlap, from probabilities (N, h, w). A pixel belongs to the most probable object, the first
    of several, where that is at least a half."""
    best = scores.argmax(0)
    return (np.arange(len(scores))[:, None, None] == best) & (scores.max(0) >= 0.5)


class MergedScorer:
    """The scores of N objects of one video that are predicted together, as ReferFormer evaluates Ref-DAVIS17: their masks are merged, and
    predicted and true objects are then matched for the highest sum of J&F, as DAVIS's unsupervised evaluation does."""

    def __init__(self, count: int) -> None:
        self._pairs = [[Scorer() for _ in range(count)] for _ in range(count)]

    def add(self, scores: np.ndarray, gts: Sequence[np.ndarray]) -> None:
        """Count a frame: probabilities (N, h, w), and the N true masks (h, w)."""
        for pred, row in zip(merged(scores), self._pairs, strict=True):
            for gt, scorer in zip(gts, row, strict=True):
                scorer.add(pred, gt)

    def score(self) -> list[VideoScore]:
        """Return the score of each true object. Raises `ValueError` without frames."""
        pairs = [[scorer.score() for scorer in row] for row in self._pairs]
        return [pairs[pred][true] for true, pred in enumerate(_matched([[one.jf for one in row] for row in pairs]))]


def _matched(values: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Return of each column the row that it is matched with, for the highest sum of `values` (N, N)."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        0: (0.0, ())
    }  # by the rows that are taken, as bits: sum, and row of each column
    for column in range(len(values)):
        further: dict[int, tuple[float, tuple[int, ...]]] = {}
        for taken, (total, rows) in best.items():
            for row in range(len(values)):
                if taken >> row & 1:
                    continue
                key, found = taken | 1 << row, (total + values[row][column], (*rows, row))
                if key not in further or found[0] > further[key][0]:
                    further[key] = found
        best = further
    ((_, rows),) = best.values()
    return rows


def by_clip(clips: Sequence[str], scores: Sequence[VideoScore]) -> tuple[np.ndarray, np.ndarray]:
    """Return (clips,) sums of J&F and numbers of expressions, of each clip, in order of the clips' names."""
    names = sorted(set(clips))
    place = {name: number for number, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for clip, one in zip(clips, scores, strict=True):
        sums[place[clip]] += one.jf
        counts[place[clip]] += 1
    return sums, counts


def interval(clips: Sequence[str], scores: Sequence[VideoScore], resamples: int, seed: int) -> tuple[float, float]:
    """Return 95 % bootstrap interval of J&F, in [0, 1], over clips: the expressions of one are not independent."""
    return bootstrap_interval(*by_clip(clips, scores), resamples, seed)


def difference(
    clips: Sequence[str], first: Sequence[VideoScore], second: Sequence[VideoScore], resamples: int, seed: int
) -> tuple[float, float, float]:
    """Return J&F of `first` less that of `second`, of the same expressions, with its 95 % interval over clips: (difference, low, high)."""
    return paired_bootstrap(by_clip(clips, first), by_clip(clips, second), resamples, seed)
