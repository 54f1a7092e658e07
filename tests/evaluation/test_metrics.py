"""Metrics against hand-computed numbers, pycocotools, and the official evaluation's golden data."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco
from safetensors.numpy import load_file

from ans.evaluation.metrics import (
    bootstrap_interval,
    box_giou,
    intersection_union,
    iou,
    paired_bootstrap,
    resample_counts,
    summarise,
)

GOLDEN = Path(os.environ.get("ANS_GOLDEN", Path(__file__).parents[1] / "golden" / "sa2va"))

shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
pairs = shapes.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


def mask(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def test_intersection_union_by_hand() -> None:
    pred, gt = mask("##..", "##.."), mask(".##.", ".##.")
    assert intersection_union(pred, gt) == (2, 6)
    assert intersection_union(pred.astype(np.uint8), gt.astype(np.uint8)) == (2, 6)
    assert intersection_union(pred, gt, ignore=mask("....", "####")) == (1, 3)
    assert intersection_union(mask("..."), mask("...")) == (0, 0)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(1, 2\)"):
        intersection_union(mask("###"), mask("##"))
    with pytest.raises(ValueError, match="height, width"):
        box_giou(np.ones((1, 2, 2), bool), np.ones((1, 2, 2), bool))
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        intersection_union(mask("###"), mask("###"), ignore=mask("##"))


@given(pairs)
def test_iou_is_that_of_pycocotools(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, gt = pair
    intersection, union = intersection_union(pred, gt)
    encoded = [coco.encode(np.asfortranarray(each.astype(np.uint8))) for each in pair]
    assert intersection == coco.area(coco.merge(encoded, intersect=True))
    assert union == coco.area(coco.merge(encoded))
    if union:
        assert iou(intersection, union) == pytest.approx(coco.iou([encoded[0]], [encoded[1]], [0])[0, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        (mask("#.", ".."), mask("..", ".#"), -0.5),  # touch at a corner: 0 - (4 - 2) / 4
        (mask("##", "##"), mask("##", "##"), 1.0),
        (mask("###."), mask(".###"), 2 / 4),  # the union fills its box
        (mask("#....#"), mask("#....."), 1 / 2 - 4 / 6),
        (mask("#....", "#....", "#...."), mask("....#", "....#", "....#"), -9 / 15),
        (mask("..."), mask("..."), 1.0),  # both empty
        (mask("...."), mask(".##."), 0.0),  # one empty, the other a filled box
        (mask("...", "..."), mask("#..", "..#"), -4 / 6),  # one empty, the other a third of its box
    ],
)
def test_box_giou_by_hand(pred: np.ndarray, gt: np.ndarray, expected: float) -> None:
    assert box_giou(pred, gt) == pytest.approx(expected, abs=1e-15)
    assert box_giou(gt, pred) == box_giou(pred, gt)


@given(pairs)
def test_box_giou_lies_between_minus_one_and_iou(pair: tuple[np.ndarray, np.ndarray]) -> None:
    value, overlap = box_giou(*pair), iou(*intersection_union(*pair))
    assert -1 < value <= overlap <= 1


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 8), st.integers(0, 8))
def test_box_giou_equals_iou_where_the_union_fills_its_box(height: int, width: int, first: int, second: int) -> None:
    pred, gt = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    split = sorted((min(first, width), min(second, width)))
    pred[1 : 1 + height, 1 : 1 + split[1]] = True
    gt[1 : 1 + height, 1 + split[0] : 1 + width] = True
    assert box_giou(pred, gt) == iou(*intersection_union(pred, gt))


def record(
    intersection: int, union: int, giou: float = 0.0, has_seg: bool = True, no_target: bool = False, said_nothing: bool = False
) -> dict[str, float]:
    forced = {"forced_intersection": intersection + 1, "forced_union": union + 1}
    about = {"no_target": no_target, "said_nothing": said_nothing}
    return {"intersection": intersection, "union": union, "box_giou": giou, "has_seg": has_seg, **forced, **about}


def test_summarise_by_hand() -> None:
    records = [record(9, 10, 0.9), record(7, 10, 0.5), record(0, 20, -0.4, has_seg=False), record(0, 0, 1.0)]
    assert summarise(records) == {
        "ciou": 16 / 40,
        "miou": pytest.approx((0.9 + 0.7 + 0 + 1) / 4),
        "box_giou": pytest.approx(0.5),
        "p50": 0.75,
        "p60": 0.75,
        "p70": 0.75,  # 7 of 10 reaches 0.7
        "p80": 0.5,
        "p90": 0.5,
        "seg_rate": 0.75,
        "ciou_forced": 20 / 44,
        "n": 4,
    }
    with pytest.raises(ValueError, match="no records"):
        summarise([])
    almost, exactly = summarise([record(699, 1000)]), summarise([record(700, 1000)])
    assert (almost["p60"], almost["p70"], exactly["p70"], exactly["p80"]) == (1, 0, 1, 0)


def grefcoco(intersection: int, union: int, no_target: bool = False, said_nothing: bool = False) -> dict[str, float]:
    return record(intersection, union, no_target=no_target, said_nothing=said_nothing)


def test_grefcoco_by_hand() -> None:
    """Two objects well found, one badly, one missed; nothing meant and nothing said twice, nothing meant but 30 pixels said."""
    records = [grefcoco(80, 100), grefcoco(10, 50), grefcoco(0, 20, said_nothing=True)]
    records += [grefcoco(0, 0, True, True), grefcoco(0, 0, True, True), grefcoco(0, 30, True, False)]
    summary = summarise(records)
    assert {name: summary[name] for name in ("ciou", "giou", "miou", "n_acc", "t_acc", "p70", "p80", "p90", "n")} == {
        "ciou": 90 / 200,
        "giou": pytest.approx((0.8 + 0.2 + 0 + 1 + 1 + 0) / 6),
        "miou": pytest.approx(0.5),
        "n_acc": 2 / 3,
        "t_acc": 2 / 3,
        "p70": 1 / 3,
        "p80": 1 / 3,
        "p90": 0.0,
        "n": 6,
    }
    assert not {"n_acc", "t_acc", "giou"} & set(summarise(records[:3])), "of a split in which everything means something"
    nothing_meant = summarise(records[3:])
    assert "t_acc" not in nothing_meant and nothing_meant["p90"] == nothing_meant["n_acc"] == 2 / 3
    for wrong in (grefcoco(5, 9, True), grefcoco(0, 9, True, True), grefcoco(0, 0, True, False)):
        with pytest.raises(ValueError, match="without a target"):
            summarise([wrong])


def rela(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The rules of ReLA's `refer_evaluation.py` (`design/formats.md`), written out; "nothing" is a mask without a pixel."""
    right = dict.fromkeys(("true_nothing", "false_nothing", "true_something", "false_something"), 0)
    common = joined = 0
    ious, of_targets = [], []
    for pred, gt in pairs:
        if not gt.any():
            right["false_something" if pred.any() else "true_nothing"] += 1
            ious.append(float(not pred.any()))
            joined += pred.sum()
            continue
        right["true_something" if pred.any() else "false_nothing"] += 1
        ious.append((pred & gt).sum() / (pred | gt).sum() if pred.any() else 0.0)
        of_targets.append(ious[-1])
        common, joined = common + (pred & gt).sum(), joined + (pred | gt).sum()
    results = {"giou": float(np.mean(ious)), "ciou": common / joined if joined else 1.0}
    results["n_acc"] = right["true_nothing"] / (right["true_nothing"] + right["false_something"])
    results["t_acc"] = right["true_something"] / (right["true_something"] + right["false_nothing"])
    return results | {f"p{t}": float(np.mean([value >= t / 100 for value in of_targets])) for t in (70, 80, 90)}


@given(st.lists(pairs, min_size=1, max_size=6), pairs, pairs)
@pytest.mark.slow
def test_grefcoco_is_relas(found: list, absent: tuple, present: tuple) -> None:
    """On any masks, with at least one expression of nothing and one of something."""
    present[1][0, 0] = True
    found = [*found, (absent[0], np.zeros_like(absent[1])), present]
    records = []
    for pred, gt in found:
        records.append(grefcoco(*intersection_union(pred, gt), no_target=not gt.any(), said_nothing=not pred.any()))
    summary, expected = summarise(records), rela(found)
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def lisa_areas(pred: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Foreground intersection and union by LISA's `intersectionAndUnionGPU`, written out: three histograms."""
    pred = np.where(labels == 255, 255, pred.astype(int))
    inside, of_pred, of_labels = (np.histogram(x, bins=[0, 1, 2])[0] for x in (pred[pred == labels], pred, labels))
    return int(inside[1]), int((of_pred + of_labels - inside)[1])


def test_ignored_pixels_by_hand() -> None:
    target, ignore = mask("##..", "...."), mask("..##", "...#")
    assert intersection_union(mask(".###", "...."), target, ignore) == (1, 2)  # what covers the ignored pixels is free
    assert intersection_union(mask("####", "###."), target, ignore) == (2, 5)
    assert iou(*intersection_union(mask("..##", "...#"), mask("....", "...."), ignore)) == 1.0
    assert box_giou(mask(".###", "...."), target, ignore) == 1 / 2  # 1 of 2, which fill their box
    assert box_giou(mask("####", "#..."), target, ignore) == 2 / 3 - 1 / 4
    assert box_giou(mask("..##", "...."), mask("....", "...."), ignore) == 1.0
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        box_giou(mask("###"), mask("###"), ignore=mask("##"))


@given(shapes.flatmap(lambda s: st.tuples(hnp.arrays(bool, s), hnp.arrays(np.uint8, s, elements=st.sampled_from([0, 1, 255])))))
def test_ignored_pixels_are_as_in_lisa(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """`labels`: 0 background, 1 target, 255 ignore, as LISA draws ReasonSeg."""
    pred, labels = pair
    assert intersection_union(pred, labels == 1, labels == 255) == lisa_areas(pred, labels)
    kept = labels != 255
    assert box_giou(pred, labels == 1, labels == 255) == box_giou(pred & kept, labels == 1)


def golden_predictions() -> list[tuple[str, np.ndarray | None, np.ndarray]]:
    """(name, prediction or None without [SEG], truth), in order. A zero-length array stands for a missing prediction."""
    tensors = load_file(GOLDEN / "eval_metric.safetensors")
    images = sorted({name.split("/")[0] for name in tensors}, key=lambda name: int(name.removeprefix("img")))
    found = []
    for image in images:
        for i, gt in enumerate(tensors[f"{image}/gt"]):
            pred = tensors[f"{image}/pred{i}"]
            found.append((f"{image}/{i}", pred if pred.size else None, gt))
    return found


def test_skipping_what_is_missing_gives_the_official_numbers_and_ours_is_lower() -> None:
    expected = json.loads((GOLDEN / "eval_metric.json").read_text())
    predictions = golden_predictions()
    missing = [[int(part) for part in name.removeprefix("img").split("/")] for name, pred, _ in predictions if pred is None]
    assert missing == expected["missing"]

    said = [intersection_union(pred, gt) for _, pred, gt in predictions if pred is not None]
    official = iou(sum(i for i, _ in said), sum(u for _, u in said))
    assert official == pytest.approx(expected["cIoU"], abs=1e-6)
    official_giou = sum(i / (u + 1e-5) if u else 1.0 for i, u in said) / len(predictions)
    assert official_giou == pytest.approx(expected["gIoU"], abs=1e-6)

    ours = []
    for _, pred, gt in predictions:
        filled = np.zeros_like(gt) if pred is None else pred
        nothing = {"no_target": not gt.any(), "said_nothing": not filled.any()}
        ours.append(record(*intersection_union(filled, gt), box_giou(filled, gt), pred is not None, **nothing))
    summary = summarise(ours)
    lost = sum(int(gt.sum()) for _, pred, gt in predictions if pred is None)
    by_hand = sum(i for i, _ in said) / (sum(u for _, u in said) + lost)
    assert summary["ciou"] == pytest.approx(by_hand, abs=1e-12)
    assert summary["ciou"] < official
    right = sum(pred is None and not gt.any() for _, pred, gt in predictions)  # the official 0, though both are empty
    assert summary["miou"] == pytest.approx(expected["gIoU"] + right / len(predictions), abs=1e-6)
    assert summary["seg_rate"] == pytest.approx(1 - len(missing) / len(predictions))


def test_resamples_draw_as_many_images_as_there_are() -> None:
    counts = resample_counts(images=13, resamples=50, seed=3)
    assert counts.shape == (50, 13) and (counts.sum(axis=1) == 13).all() and (counts == counts.round()).all()
    assert np.array_equal(counts, resample_counts(13, 50, 3)) and not np.array_equal(counts, resample_counts(13, 50, 4))


def test_interval_of_equal_images_is_a_point_and_else_holds_the_value() -> None:
    assert bootstrap_interval(np.full(9, 3), np.full(9, 4), 200, 0) == (0.75, 0.75)
    generator = np.random.default_rng(0)
    unions = generator.integers(50, 100, 200)
    intersections = (unions * generator.uniform(0.3, 0.9, 200)).astype(int)
    low, high = bootstrap_interval(intersections, unions, 2000, 0)
    value = intersections.sum() / unions.sum()
    assert low < value < high
    assert (low, high) == bootstrap_interval(intersections, unions, 2000, 0)
    spread = np.std(intersections - value * unions) / unions.mean() / np.sqrt(200)  # the delta method's standard error
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_two_images_by_hand() -> None:
    """Resamples of two images are AA, AB, BB with chances 1/4, 1/2, 1/4, so cIoU takes the values 0, 1/2 and 1."""
    assert bootstrap_interval(np.array([0, 10]), np.array([10, 10]), 500, 1) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0, 10]), np.array([10, 10]), 4000, 1, level=0.4) == (0.5, 0.5)
    # where nothing is and nothing was predicted, cIoU is 1: here in the quarter of the resamples that holds the first image alone
    assert bootstrap_interval(np.array([0, 4]), np.array([0, 8]), 500, 1) == (0.5, 1.0)
    assert [bootstrap_interval(np.array([pixels]), np.array([1]), 9, 1) for pixels in (0, 1)] == [(0, 0), (1, 1)], "one pixel"


@pytest.mark.parametrize(("intersections", "unions"), [(np.ones(3), np.ones(2)), (np.ones((2, 1)), np.ones((2, 2))), ([], [])])
def test_sums_that_do_not_belong_together_are_refused(intersections: np.ndarray, unions: np.ndarray) -> None:
    with pytest.raises(ValueError, match="sums per image of shapes"):
        bootstrap_interval(intersections, unions, 10, 0)


def test_paired_difference_is_narrower_than_unpaired_noise() -> None:
    unions = np.full(100, 100)
    base = np.random.default_rng(0).integers(10, 80, 100)
    assert paired_bootstrap((base + 5, unions), (base, unions), 500, 0) == pytest.approx((0.05, 0.05, 0.05))
    difference, low, high = paired_bootstrap((base, unions), (base, unions), 500, 0)
    assert difference == low == high == 0
    with pytest.raises(ValueError, match="must be the same"):
        paired_bootstrap((base, unions), (base[1:], unions[1:]), 500, 0)


def test_several_splits_are_averaged_and_absent_images_do_not_count() -> None:
    """Images 0 and 1 belong to the first split (cIoU 0.5), images 2 and 3 to the second (cIoU 1)."""
    intersections = np.array([[5, 0], [5, 0], [0, 8], [0, 8]])
    unions = np.array([[10, 0], [10, 0], [0, 8], [0, 8]])
    zero = np.zeros_like(unions)
    difference, _, _ = paired_bootstrap((intersections, unions), (zero, unions), 100, 0)
    assert difference == pytest.approx(0.75)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.int64, (6,), elements=st.integers(0, 50)), st.integers(0, 1000))
def test_intervals_are_ordered_and_bounded(intersections: np.ndarray, seed: int) -> None:
    low, high = bootstrap_interval(intersections, np.full(6, 50), 100, seed)
    assert intersections.min() / 50 <= low <= high <= intersections.max() / 50
