"""Masks against pycocotools, numpy and what the coding of run lengths says (cocoapi, maskApi.c)."""

import re
import warnings
from fractions import Fraction
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from ans.data import masks

SQUARE = [0, 0, 2, 0, 2, 2, 0, 2]
LARGEST = 65535

HEIGHT, WIDTH = 7, 9
DRAWN = st.integers(0, 2**31).map(
    lambda seed: (np.random.default_rng(seed).random((HEIGHT, WIDTH)) < np.random.default_rng(seed + 1).random()).astype(np.uint8)
)

arrays = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))


def encoded(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def code(number: int, groups: int) -> str:
    """A number in `groups` codes of five bits each, the lowest first; all but the last say that more follow."""
    codes = [(number >> (5 * place)) & 31 | (32 if place + 1 < groups else 0) for place in range(groups)]
    return "".join(chr(48 + value) for value in codes)


# ---------------------------------------------------------------- a segmentation as COCO writes it


def test_polygons_of_one_object_are_united() -> None:
    polygons = [[1, 1, 6, 1, 6, 4, 1, 4], [4, 2, 9, 2, 9, 7, 4, 7], [0, 8, 3, 8, 3, 9, 0, 9]]
    drawn = masks.decode(masks.from_segmentation(polygons, 10, 12), 10, 12)
    apart = [masks.decode(masks.from_segmentation([polygon], 10, 12), 10, 12) for polygon in polygons]
    assert (drawn == np.maximum.reduce(apart)).all() and drawn.max() == 1
    assert drawn.sum() == 3 * 5 + 5 * 5 - 2 * 2 + 3, "the pixels that two polygons cover count once"


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "empty"),
        (None, "empty"),
        ("0", "a text, neither outlines nor an RLE"),
        (True, "true or false, neither"),
        ([[0, 0, 1, 0, 1]], "fewer than three points"),
        ([[0, 0, 1, 1]], "fewer than three points: four numbers, a box"),
        ([[0, 0, 1, 1, 0, 0, 1, 1]], "fewer than three points"),
        ([[], []], "fewer than three points"),
        ([[0, 0, 1, 0, 1, 1, 0]], "an x without its y"),
        (SQUARE, "one list of numbers"),
        ([str(value) for value in SQUARE], "one list of numbers"),
        ([[[0, 0], [2, 0], [2, 2]]], "outline of pairs"),
        ([[0, 0], [2, 0], [2, 2]], "one outline of pairs"),
        ([{"x": 0, "y": 0}], "records with x and y"),
        ([{"size": [4, 5], "counts": "050"}], "list of RLEs"),
        ([[0, 0, 1, 1, 0]] * 4, "rows of zeros and ones"),
        ([[0.2, 0.2, 0.8, 0.2, 0.8, 0.8]], "shares of the image"),
        ([[0, 0, 0.5, 0, 0.5, 1]], "shares of the image"),
        ([[20, 25, 60, 25, 60, 75]], "outside of the image"),
        ([[*SQUARE[:-1], "two"]], "not a number: a text"),
        ([[*SQUARE[:-1], "nan"]], "not a number: a text"),
        ([[*SQUARE[:-1], None]], "not a number: null"),
        ([[*SQUARE[:-1], True]], "not a number: true or false"),
        ([[*SQUARE[:-1], 10**400]], "not a number: not finite, or far too large"),
        ([SQUARE, [0, 0, None]], "not a number: null"),
        ([[*SQUARE[:-1], float("nan")]], "not a number"),
        ([[*SQUARE[:-1], float("-inf")]], "not a number"),
        ([[*SQUARE[:-1], 2 * LARGEST + 1]], "far outside"),
        ([[*SQUARE[:-1], -2 * LARGEST - 1]], "far outside"),
    ],
)
def test_polygons_that_nothing_can_draw_are_refused(segmentation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        masks.from_segmentation(segmentation, 4, 5)


def test_the_limits_themselves_are_allowed() -> None:
    triangle = [[0, 0, 2 * LARGEST, 0, -2 * LARGEST, 3]]
    assert masks.decode(masks.from_segmentation(triangle, 3, 4), 3, 4).any()
    for height, width in ((1, 1), (1, LARGEST), (LARGEST, 1)):
        assert masks.measure(masks.from_segmentation([[0, 0, 1, 0, 1, 1, 0, 1]], height, width), height, width)[0] == 1
    for height, width in ((0, 5), (5, 0), (LARGEST + 1, 1), (1, LARGEST + 1)):
        with pytest.raises(ValueError, match="size that no image has"):
            masks.from_segmentation([SQUARE], height, width)


@given(arrays)
def test_listed_and_compressed_runs_give_the_same(mask: np.ndarray) -> None:
    height, width = mask.shape
    counts = encoded(mask)
    pixels = mask.T.ravel().tolist()
    listed = [0] * pixels[0] + [len(list(run)) for _, run in groupby(pixels)]
    for form in (counts, listed):
        assert masks.from_segmentation({"size": [height, width], "counts": form}, height, width) == counts


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ([20], [5, 4]),
        ([20], None),
        ([19], [4, 5]),
        ([21], [4, 5]),
        ([], [4, 5]),
        ([5, -1, 16], [4, 5]),
        ([10.5, 9.5], [4, 5]),
        ([False, True, 19], [4, 5]),
        ([2**63, 20 - 2**63], [4, 5]),
        ([2**62, 2**62, 2**62, 2**62, 20], [4, 5]),
        ([10**400], [4, 5]),
        ([float("nan"), 20], [4, 5]),
        ([20], [True, 20]),
        ([20], [4.5, 5]),
        ([20], ["4", "5"]),
        ([[10], [10]], [4, 5]),
        (["10", "10"], [4, 5]),
        (code(19, 1) + code(2, 1), [4, 5]),
        (code(-1, 1) + code(21, 2), [4, 5]),
        ("", [4, 5]),
        (None, [4, 5]),
        (20, [4, 5]),
    ],
)
def test_runs_that_do_not_fill_the_image_are_refused(counts: Any, size: Any) -> None:
    with pytest.raises(ValueError, match="RLE"):
        masks.from_segmentation({"size": size, "counts": counts}, 4, 5)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ("b'R14400000n0'", "notation for bytes"),
        ("eJw7w8DAAAAGAAF+", "base64"),
        ("34 4 4 4 4 4 4 4 34", "numbers in a text"),
        ("[34, 4, 58]", "numbers in a text"),
        ([2, 3, 7, 4], "pairs of start and length"),
    ],
)
def test_other_codings_of_runs_have_their_own_reasons(counts: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        masks.from_segmentation({"size": [4, 5], "counts": counts}, 4, 5)


@given(arrays)
def test_no_sound_coding_is_taken_for_another(mask: np.ndarray) -> None:
    counts = encoded(mask)
    assert masks.from_segmentation({"size": [float(side) for side in mask.shape], "counts": counts}, *mask.shape) == counts


def test_numbers_may_be_texts_and_whole_floats() -> None:
    square = masks.from_segmentation([SQUARE], 4, 5)
    assert masks.from_segmentation([[str(value) for value in SQUARE]], 4, 5) == square
    assert masks.from_segmentation({"size": [4.0, 5.0], "counts": [0.0, 2.0, 2.0, 2.0, 14.0]}, 4, 5) == square


@pytest.mark.parametrize("other", [[1, 1, 1, 1], [1, 1], [], [3, 1, 3, 2, 3, 1], [0, 0, 1, 0, 1]])
def test_a_sound_outline_counts_beside_a_degenerate_one(other: list[int]) -> None:
    for outlines in ([SQUARE, other], [other, SQUARE]):
        assert masks.from_segmentation(outlines, 4, 5) == masks.from_segmentation([SQUARE], 4, 5)
        assert masks.degenerate(outlines) == 1
    assert masks.degenerate([SQUARE]) == masks.degenerate({"size": [4, 5], "counts": "050"}) == 0


def test_stated_measures_are_compared() -> None:
    drawn = np.zeros((40, 50), np.uint8)
    drawn[10:20, 20:40] = 1
    stated = partial(masks.compare_stated, counts=encoded(drawn), height=40, width=50)
    for area, bbox in (
        (200, [20, 10, 20, 10]),
        (None, None),
        (201.7, [20.4, 9.6, 19.2, 10.9]),
        ("200", ["20", 10, 20, 10]),
        (0, []),
        (0, [0, 0, 0, 0]),
    ):
        assert stated(area, bbox) == "", (area, bbox)
    for area in (-1, float("nan"), "two", True, [200]):
        assert stated(area, None) == "an area that is not a number of pixels", area
    for bbox in (["20"], [20, 10, 20], [40, 20, -20, -10], [20, 10, 20, None], {"x": 20}, "20 10 20 10", True):
        assert stated(None, bbox) == "a bbox that is not x, y, width and height", bbox
    with pytest.raises(ValueError, match="states an area of 500"):
        stated("500", None)
    assert stated(330, None) == "an area that is not the mask's"
    assert stated(None, [20, 10, 20, 14]) == "a bbox that is not the mask's"
    for area, bbox in ((500, None), (50, None), (None, [10, 20, 10, 20]), (200, [20, 10, 40, 20]), (None, [40, 20, 20, 10])):
        with pytest.raises(ValueError, match="but the file states"):
            stated(area, bbox)
    drawn[:], drawn[5, 2:42] = 0, 1
    line = partial(masks.compare_stated, None, counts=encoded(drawn), height=40, width=50)
    assert line([2, 5, 40, 1]) == ""
    with pytest.raises(ValueError, match="but the file states the bbox"):
        line([2, 2, 40, 1])  # three rows above, of the same width


def test_a_mask_of_another_size_is_not_decoded() -> None:
    counts = encoded(np.eye(4, 5))
    assert (masks.decode(counts, 4, 5) == np.eye(4, 5)).all()
    with pytest.raises(ValueError, match="does not fill"):
        masks.decode(counts, 4, 6)


# ---------------------------------------------------------------- the coding of run lengths


@given(st.lists(st.integers(-(2**34), 2**34 - 1), min_size=1, max_size=8), st.data())
@pytest.mark.second
def test_run_lengths_are_read_as_the_coding_says(numbers: list[int], data: st.DataObject) -> None:
    """Each number in any count of codes that holds it, up to seven; from the fourth on a number is a difference."""
    text = ""
    for number in numbers:
        fewest = next(groups for groups in range(1, 8) if -(2 ** (5 * groups - 1)) <= number < 2 ** (5 * groups - 1))
        text += code(number, data.draw(st.integers(fewest, 7)))
    expected: list[int] = []
    for place, number in enumerate(numbers):
        expected.append(number + expected[place - 2] if place > 2 else number)
    assert masks.run_lengths(text).tolist() == expected


@pytest.mark.parametrize("text", [code(1, 8), "0" + code(-1, 9) + "0", "P", "0P", "/", "0/0", "p0", "", "\u0660", b"0", None])
def test_text_outside_the_coding_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="RLE counts"):
        masks.run_lengths(text)


def test_the_first_and_the_last_code_are_read() -> None:
    assert masks.run_lengths("0").tolist() == [0]
    assert masks.run_lengths("?").tolist() == [15] and masks.run_lengths("o?").tolist() == [31 + 32 * 15]
    assert masks.run_lengths("@").tolist() == [-16] and masks.run_lengths("O").tolist() == masks.run_lengths("oO").tolist() == [
        -1
    ]


# ---------------------------------------------------------------- many masks at once


@settings(max_examples=100, deadline=None)
@given(st.lists(DRAWN, min_size=1, max_size=6))
def test_what_pycocotools_writes_is_sound(drawn: list[np.ndarray]) -> None:
    counts = [coco.encode(np.asfortranarray(mask))["counts"].decode() for mask in drawn]
    masks.check_counts(counts, HEIGHT, WIDTH)
    for text, mask in zip(counts, drawn, strict=True):
        assert (masks.decode(text, HEIGHT, WIDTH) == mask).all()
        assert masks.run_lengths(text)[1::2].sum() == mask.sum()


@settings(max_examples=300, deadline=None)
@given(DRAWN, st.integers(0, 2**31), st.characters(min_codepoint=40, max_codepoint=120))
def test_many_at_once_say_what_one_says(mask: np.ndarray, place: int, character: str) -> None:
    """Damaged in one place, between two sound ones: the same answer, in the same words."""
    sound = masks.from_array(mask)
    place %= len(sound)
    damaged = sound[:place] + character + sound[place + 1 :]
    answers = []
    for check in (
        lambda: masks.check_counts([sound, damaged, sound], HEIGHT, WIDTH),
        lambda: masks.decode(damaged, HEIGHT, WIDTH),
    ):
        try:
            check()
            answers.append("")
        except ValueError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


@given(st.lists(st.text(st.characters(min_codepoint=46, max_codepoint=113), max_size=4), min_size=1, max_size=4))
def test_the_form_of_many_is_checked_at_once(texts: list[str]) -> None:
    """A text has the form where each code is one of 64 and the last one ends a number; whether it fills the image comes after."""
    if all(re.fullmatch("[0-o]*[0-O]", text) for text in texts):
        with pytest.raises(ValueError, match="does not fill"):
            masks.check_counts(texts, 1, 2**30)  # more than four codes can say
    else:
        with pytest.raises(ValueError, match="cannot be decoded"):
            masks.check_counts(texts, 1, 2**30)


@pytest.mark.parametrize(
    "counts", [["0", "p0"], ["/0"], ["0", None], ["0", b"0"], ["0", ""], ["\u0660"], ["0\ud800"], ["0", "0\u00b0"]]
)
def test_what_has_no_form_is_refused(counts: list[Any]) -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        masks.check_counts(counts, HEIGHT, WIDTH)


@pytest.mark.parametrize("counts", [None, 3, "", "é", "0\ud800", b"0"])
def test_what_is_no_text_is_refused(counts: object) -> None:
    with pytest.raises(ValueError, match="RLE counts"):
        masks.check_counts([masks.from_array(np.ones((HEIGHT, WIDTH), np.uint8)), counts], HEIGHT, WIDTH)


def test_none_are_sound() -> None:
    masks.check_counts([], HEIGHT, WIDTH)


# ---------------------------------------------------------------- masks as arrays


@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)))
def test_an_array_comes_back(mask: np.ndarray) -> None:
    counts = masks.from_array(mask)
    read = masks.decode(counts, *mask.shape)
    assert read.dtype == np.uint8 and (read == (mask > 0)).all()
    area, (x, y, width, height) = masks.measure(counts, *mask.shape)
    assert area == np.count_nonzero(mask) and isinstance(area, int)
    if area:
        down, across = np.nonzero(mask)
        box = (across.min(), down.min(), across.max() + 1 - across.min(), down.max() + 1 - down.min())
        assert (x, y, width, height) == box
    else:
        assert (width, height) == (0, 0)


def test_a_soft_mask_is_cut_at_zero() -> None:
    assert (masks.decode(masks.from_array(np.array([[0.2, 0.0, -3.0, 7.0]])), 1, 4) == [[1, 0, 0, 1]]).all()


@given(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), st.data())
def test_the_union_of_any_number(shape: tuple[int, int], data: st.DataObject) -> None:
    several = data.draw(st.lists(hnp.arrays(bool, shape), max_size=4))
    united = masks.decode(masks.union([encoded(mask) for mask in several], *shape), *shape)
    assert (united == np.any([np.zeros(shape, bool), *several], axis=0)).all()


# ---------------------------------------------------------------- polygons as LISA draws them


def outlined(points: list[tuple[int, int]], height: int, width: int) -> np.ndarray:
    """The definition, in fractions and pixel by pixel: the inside by rows, even-odd, with both ends; and every edge."""
    mask = np.zeros((height, width), bool)
    edges = [sorted(edge) for edge in zip(points, points[1:] + points[:1], strict=True)]
    for y in range(height):
        rows = [(a, b) for a, b in edges if min(a[1], b[1]) <= y < max(a[1], b[1])]
        crossings = [a[0] + Fraction((b[0] - a[0]) * (y - a[1]), b[1] - a[1]) for a, b in rows]
        for x in range(width):
            mask[y, x] = sum(place <= x for place in crossings) % 2 or x in crossings
    for (x0, y0), (x1, y1) in edges:
        steps = max(x1 - x0, abs(y1 - y0))
        for step in range(steps + 1):
            ends = ((x0, x1), (y0, y1))
            x, y = (start + nearest(Fraction(step * (end - start), steps)) if steps else start for start, end in ends)
            if 0 <= x < width and 0 <= y < height:
                mask[y, x] = True
    return mask


def nearest(value: Fraction) -> int:
    """The whole number next to `value`; halfway, the one nearer to zero, where the edge begins."""
    low, high = int(abs(value)), int(abs(value)) + 1
    return (low if abs(value) - low <= high - abs(value) else high) * (1 if value > 0 else -1)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 11), st.integers(-3, 11)), min_size=1, max_size=6), st.integers(1, 9), st.integers(1, 9)
)
def test_polygons_are_drawn_as_defined(points: list[tuple[int, int]], height: int, width: int) -> None:
    with warnings.catch_warnings(action="error"):  # of one point, too, nothing is divided by its length
        drawn = masks.polygon(np.array(points), height, width)
    assert (drawn == outlined(points, height, width)).all()


@pytest.mark.parametrize("beyond", (2**62, 2**63, 2**64, 2**65, 2**70))
def test_a_number_beyond_64_bits_is_no_smaller_one(beyond: int) -> None:
    """What numbers of 64 bits cut off: the run would have its own length again."""
    mask = np.zeros((4, 5), np.uint8)
    mask[1:3, 1:3] = 1
    counts = masks.from_array(mask)
    assert masks.run_lengths(counts)[0] == ord(counts[0]) - 48 == 5
    number, text = 5 + beyond, ""
    while number:
        text += chr(48 + (number & 31 | 32 * (number > 31)))
        number >>= 5
    text += "" if ord(text[-1]) - 48 < 16 else "0"  # the sign
    for read in (lambda: masks.decode(text + counts[1:], 4, 5), lambda: masks.check_counts([text + counts[1:]], 4, 5)):
        with pytest.raises(ValueError, match="RLE"):
            read()
