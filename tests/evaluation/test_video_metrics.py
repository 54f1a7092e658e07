"""J and F against values of davis2017-evaluation and of the benchmarks' scripts, and against numbers counted by hand."""

import json
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco
from safetensors.numpy import load_file

from ans.evaluation.metrics import iou
from ans.evaluation.video_metrics import (
    MergedScorer,
    VideoScore,
    _matched,
    boundary,
    boundary_f,
    difference,
    dilate,
    interval,
    merged,
    score,
    summarise,
    summarise_revos,
)
from tests.golden_case import ROOT

EVAL = ROOT / "video" / "eval"
EXPECTED = json.loads((EVAL / "expected.json").read_text())
PAIRS = load_file(EVAL / "pairs.safetensors")


def read(name: str):
    return json.loads((EVAL / name).read_text())


@pytest.fixture(scope="module")
def expressions() -> dict[str, tuple[int, list[np.ndarray], list[np.ndarray], list[np.ndarray]]]:
    """Key of expected.json -> type, predictions, targets, foreground."""
    videos, masks, foreground, predictions = (
        read(f"{name}.json") for name in ("meta_expressions", "mask_dict", "mask_dict_foreground", "predictions")
    )
    found = {}
    for video, content in videos["videos"].items():
        size = content["height"], content["width"]

        def decoded(rle, size=size) -> np.ndarray:
            return np.zeros(size, bool) if rle is None else coco.decode(rle).astype(bool)

        whole = [decoded(rle) for rle in foreground[video]["masks_rle"]]
        for number, one in content["expressions"].items():
            objects = [[decoded(rle) for rle in masks[str(key)]] for key in one["anno_id"]]
            target = [np.any(frame, axis=0) for frame in zip(*objects, strict=True)]
            predicted = [decoded(rle) for rle in predictions[video][number]["prediction_masks"]]
            found[f"{video}_{number}"] = (one["type_id"], predicted, target, whole)
    return found


def test_the_golden_pairs() -> None:
    assert len(EXPECTED["pairs"]) > 10
    for name, expected in EXPECTED["pairs"].items():
        pred, gt = PAIRS[f"{name}/pred"], PAIRS[f"{name}/gt"]
        assert boundary(pred).sum() == expected["pred_boundary_pixels"], name
        assert boundary(gt).sum() == expected["gt_boundary_pixels"], name
        assert score([pred], [gt]).j == pytest.approx(expected["J"], abs=1e-6), name
        assert boundary_f(pred, gt) == pytest.approx(expected["F"], abs=1e-6), name


def test_the_golden_expressions(expressions) -> None:
    expected = EXPECTED["dataset"]
    assert expressions.keys() == expected["per_expression_J_F"].keys()
    for name, (_, preds, gts, foreground) in expressions.items():
        found = score(preds, gts, foreground)
        assert [found.j, found.f] == pytest.approx(expected["per_expression_J_F"][name], abs=1e-6), name
        assert [found.a, found.r] == pytest.approx(expected["per_expression_A_R_with_binary_targets"][name], abs=1e-6), name


def test_the_golden_summaries(expressions) -> None:
    summary = EXPECTED["dataset"]["summary"]
    found = summarise([score(preds, gts) for _, preds, gts, _ in expressions.values()])
    assert {key: round(found[key.lower().replace("&", "")], 2) for key in summary["mevis"]} == summary["mevis"]
    official = EXPECTED["dataset"]["per_expression_J_F_A_R_official_revos"]
    revos = summarise_revos([(expressions[name][0], VideoScore(*values)) for name, values in official.items()])
    for ours, theirs in (("referring", "referring"), ("reasoning", "reason")):
        for key in ("J", "F", "A", "R", "JF"):
            assert revos[f"{key.lower()}_{ours}"] == pytest.approx(summary["revos"][theirs][key], abs=1e-6)
    for key in ("J", "F", "A", "R", "JF"):
        assert revos[key.lower()] == pytest.approx(summary["revos"]["overall"][key], abs=1e-6)


def square(top: int, left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((50, 40), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_by_hand() -> None:
    """A square of 10 x 10 in 50 x 40 pixels, whose tolerance is one pixel."""
    holed = square(10, 10)
    holed[13:17, 13:17] = False
    for pred, j, f in (
        (square(10, 10), 1, 1),
        (square(10, 11), 90 / 110, 1),
        (square(10, 12), 80 / 120, 0.55),
        (square(13, 13), 49 / 151, 0.15),
        (holed, 0.84, 0.8333333333),
        (np.zeros((50, 40), bool), 0, 0),
        (np.ones((50, 40), bool), 100 / 2000, 0),
    ):
        found = score([pred], [square(10, 10)])
        assert (found.j, found.f) == pytest.approx((j, f), abs=1e-9)
    nothing = np.zeros((50, 40), bool)
    assert score([nothing], [nothing]).jf == score(None, [nothing]).jf == 1


def test_a_missing_prediction_is_an_empty_one() -> None:
    gts = [square(10, 10), np.zeros((50, 40), bool)]
    assert score(None, gts).jf == score([None, None], gts).jf == 0.5
    assert score([square(10, 10), None], gts).jf == 1.0
    with pytest.raises(ValueError, match="shorter|longer"):
        score([None], gts)
    with pytest.raises(ValueError, match="no frames"):
        score([], [])
    with pytest.raises(ValueError, match="no expressions"):
        summarise([])


def test_accuracy_and_robustness_by_hand() -> None:
    """Of 2000 pixels 100 are meant; predicted are these, 20 of the 100 of another object, and 10 of the background."""
    pred, both = square(10, 10), square(10, 10) | square(30, 20)
    pred[30:32, 20:30], pred[0, :10] = True, True
    found = score([pred], [square(10, 10)], [both])
    assert (found.a, found.r) == pytest.approx((1 - 30 / 2000, 1 - 30 / 200.000001), abs=1e-9)
    everything = np.ones_like(pred)
    assert score([everything], [square(10, 10)], [both]).r == 0


def test_revos_is_the_mean_of_its_kinds() -> None:
    kinds = [
        (0, VideoScore(0.5, 0.7, 1, 1)),
        (1, VideoScore(0.1, 0.1, 1, 1)),
        (1, VideoScore(0.20004, 0.1, 1, 1)),
        (2, VideoScore(0, 0, 0, 0)),
    ]
    found = summarise_revos(kinds)
    assert found["j"] == pytest.approx((50 + 15) / 2) and found["jf"] == pytest.approx((60 + 12.5) / 2)
    with pytest.raises(ValueError, match="type_id 1"):
        summarise_revos(kinds[:1])


def test_intervals_are_over_clips() -> None:
    """Two clips' worth of equal expressions say no more than two clips; a difference in every clip is one."""
    clips = [f"clip{number}" for number in range(12) for _ in range(3)]
    scores = [VideoScore(x, x) for x in np.repeat(np.linspace(0.2, 0.8, 12), 3)]
    low, high = interval(clips, scores, 2000, 0)
    alone = interval(clips[::3], scores[::3], 2000, 0)
    assert (low, high) == pytest.approx(alone) and low < 0.5 < high
    better = [VideoScore(one.j + 0.1, one.f + 0.1) for one in scores]
    assert difference(clips, better, scores, 2000, 0) == pytest.approx((0.1, 0.1, 0.1))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)), st.integers(0, 4))
def test_dilation_and_boundary_are_what_they_say(mask: np.ndarray, radius: int) -> None:
    height, width = mask.shape
    inside = np.argwhere(mask)
    for row, column in product(range(height), range(width)):
        near = any((row - r) ** 2 + (column - c) ** 2 <= radius**2 for r, c in inside)
        assert dilate(mask, radius)[row, column] == near
        beside = [(row + d, column + r) for d, r in ((0, 1), (1, 0), (1, 1))]
        # what lies outside of the image is as its neighbour, so that an edge pixel looks along the edge only
        compared = [mask[min(r, height - 1), min(c, width - 1)] for r, c in beside]
        if row == height - 1 or column == width - 1:
            compared = [mask[min(row + (column == width - 1), height - 1), min(column + (row == height - 1), width - 1)]]
        assert boundary(mask)[row, column] == any(value != mask[row, column] for value in compared)


@settings(max_examples=60, deadline=None)
@given(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * 2)))
def test_scores_are_symmetric_and_bounded(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pair
    assert boundary_f(first, second) == pytest.approx(boundary_f(second, first))
    assert 0 <= boundary_f(first, second) <= 1 == boundary_f(first, first)
    assert score([first], [second]).j == iou(int((first & second).sum()), int((first | second).sum()))


def test_objects_of_an_annotator_are_merged_and_matched() -> None:
    """By hand, on a row of ten pixels: where two claim a pixel the more probable has it, below a half nobody has, and who is called what
    does not matter."""
    scores = np.zeros((2, 1, 10), np.float32)
    scores[0, 0, :5], scores[1, 0, 3:8], scores[1, 0, 8:] = 0.9, 0.6, 0.45
    assert merged(scores)[:, 0].tolist() == [[True] * 5 + [False] * 5, [False] * 5 + [True] * 3 + [False] * 2]
    tie = np.full((2, 1, 1), 0.5)
    assert merged(tie)[:, 0, 0].tolist() == [True, False], "the first of two, and a half is enough"
    gts = np.zeros((2, 1, 10), bool)
    gts[0, 0, 5:9], gts[1, 0, :5] = True, True  # the first object is the second prediction
    scorer = MergedScorer(2)
    scorer.add(scores, list(gts))
    assert [one.j for one in scorer.score()] == [3 / 4, 1.0]
    scorer.add(np.zeros_like(scores), list(gts))
    assert [one.j for one in scorer.score()] == [3 / 8, 1 / 2]


def test_the_best_matching_is_found() -> None:
    values = np.random.default_rng(0).random((5, 5))
    best = max(permutations(range(5)), key=lambda rows: sum(values[row, column] for column, row in enumerate(rows)))
    assert _matched(values.tolist()) == best
