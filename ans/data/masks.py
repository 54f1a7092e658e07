"""Masks as COCO run lengths.

Several polygons of one object are united (OR): summing them, as some loaders do, counts overlaps twice.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

BROKEN = "RLE counts that cannot be decoded"
NOT_FILLED = "RLE that does not fill the image"

SHARES = "polygon within a single pixel: coordinates are pixels, not shares of the image"

MAX_SIDE = 65535
"""Of a JPEG; pycocotools counts pixels in 32 bits."""


def from_segmentation(segmentation: Any, height: int, width: int) -> str:
    """Map a COCO `segmentation` (outlines, or an RLE with compressed or listed counts) to compressed RLE `counts`.

    A number may be written as a text (in outlines) or as 4.0. Outlines without an inside are left out beside sound ones
    (`degenerate` counts them). Raises `ValueError` with one short reason for any other form that an export may have, when there is
    nothing to draw, and when the run lengths do not fill height x width.
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError("image of a size that no image has")
    if isinstance(segmentation, dict):
        try:
            return _from_rle(segmentation, height, width)
        except ValueError:
            text = segmentation.get("counts")
            # damaged text may look like that too, so it explains a failure and nothing else
            if wrong := next((reason for form, reason in OTHER_TEXTS if isinstance(text, str) and form.match(text)), ""):
                raise ValueError(wrong) from None
            raise
    outlines = [outline for outline in _outlines(segmentation) if _has_inside(outline)]
    if not outlines:
        short = min(map(len, segmentation)) == 4
        raise ValueError("polygon of fewer than three points" + (": four numbers, a box?" if short else ""))
    if max(max(map(abs, outline)) for outline in outlines) > 2 * MAX_SIDE:  # pycocotools asks for memory by an edge's length
        raise ValueError("polygon far outside the image")
    values = {value for outline in outlines for value in outline}
    if 0 <= min(values) and max(values) <= 1 and values - {0, 1}:
        raise ValueError(SHARES)
    xs, ys = ([value for outline in outlines for value in outline[start::2]] for start in (0, 1))
    if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height:
        raise ValueError("polygon that lies outside of the image")
    return coco.merge(coco.frPyObjects(outlines, height, width))["counts"].decode("ascii")


def degenerate(segmentation: Any) -> int:
    """Return how many of the outlines of a segmentation, of which `from_segmentation` draws some, have no inside and are left out."""
    return sum(not _has_inside(outline) for outline in _outlines(segmentation)) if isinstance(segmentation, list) else 0


def _outlines(segmentation: Any) -> list[list[float]]:
    """Return the outlines of a segmentation as numbers x, y, x, y. Raises `ValueError` with the reason for every other form."""
    if segmentation is None:
        raise ValueError("empty segmentation: null")
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation that is {_kind(segmentation)}, neither outlines nor an RLE")
    if not segmentation:
        raise ValueError("empty segmentation")
    outlines = []
    for outline in segmentation:
        if isinstance(outline, dict):
            raise ValueError(
                "list of RLEs, where COCO has one"
                if "counts" in outline
                else "outline of records with x and y, where COCO has a list of numbers x, y, x, y"
            )
        if not isinstance(outline, list):
            if all(_number(value) is not None for value in segmentation):
                raise ValueError("one list of numbers, where COCO has a list of outlines")
            raise ValueError(f"outline that is {_kind(outline)}")
        if any(isinstance(value, (list, tuple, dict)) for value in outline):
            raise ValueError("outline of pairs, where COCO has a list of numbers x, y, x, y")
        if (wrong := next((value for value in outline if _number(value) is None), outline)) is not outline:
            raise ValueError(f"polygon with a coordinate that is not a number: {_kind(wrong)}")
        outlines.append([float(value) for value in outline])
    if (
        len(outlines) > 1
        and len(set(map(len, outlines))) == 1
        and {value for line in outlines for value in line} in ({0}, {1}, {0, 1})
    ):
        raise ValueError("rows of zeros and ones, where COCO has outlines or an RLE")
    if all(len(outline) == 2 for outline in outlines) and len(outlines) > 2:
        raise ValueError("one outline of pairs, where COCO has a list of outlines x, y, x, y")
    for outline in outlines:
        if len(outline) % 2 and len(outline) > 6:
            raise ValueError("polygon with an x without its y")
    return outlines


NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?")


def _number(value: Any) -> float | None:
    """Return a finite number, also one written as a text; None for anything else."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    return float(value) if type(value) in (int, float) and abs(value) < 1e15 else None


def _kind(value: Any) -> str:
    """Return what a value is, in a message of one wording per kind."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return "a number" if abs(value) < 1e15 else "NaN" if value != value else "not finite, or far too large"
    return {type(None): "null", bool: "true or false", str: "a text", dict: "a record", list: "a list"}.get(
        type(value), "unknown"
    )


def _has_inside(outline: Sequence[float]) -> bool:
    """Return whether an outline has three points that differ."""
    return len(outline) >= 6 and len(set(zip(outline[::2], outline[1::2], strict=False))) >= 3


def _from_rle(rle: dict[str, Any], height: int, width: int) -> str:
    if "counts" not in rle:
        raise ValueError(
            f"record of {', '.join(sorted(rle)) or 'nothing'}, where COCO has outlines, or an RLE of size and counts"[:200]
        )
    if "size" not in rle:
        raise ValueError("RLE without its size")
    size: Any = rle["size"]
    counts: Any = rle.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) in (int, float) for side in size):
        raise ValueError("RLE whose size is not two numbers")
    if size != [height, width]:
        turned = ": height and width are swapped" if size == [width, height] else ""
        raise ValueError(f"RLE of another size than the image{turned}")
    if isinstance(counts, list):
        runs = _listed_runs(counts, height * width)
        return coco.frPyObjects({"counts": runs, "size": [height, width]}, height, width)["counts"].decode("ascii")
    runs = run_lengths(counts)
    if runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(NOT_FILLED)
    return counts


OTHER_TEXTS = (
    (re.compile(r"b(['\"]).*\1$", re.DOTALL), "RLE counts in Python's notation for bytes (b'...')"),
    (re.compile(r"[\s\[(]*[0-9]+(?:[\s,]+[0-9]+)+[\s\])]*$"), "RLE counts as numbers in a text"),
    (re.compile(r"[A-Za-z0-9+/]*[+/p-z][A-Za-z0-9+/]*={0,2}$|eJ|H4sI"), "RLE counts in base64"),
)
"""What exports write in place of the coding of `run_lengths`."""


def _listed_runs(counts: list[Any], pixels: int) -> list[int]:
    """Run lengths as integers that fill `pixels`."""
    if not counts or not all(type(run) in (int, float) for run in counts):
        raise ValueError("RLE whose counts are not numbers")
    if not all(0 <= run <= pixels and run == int(run) for run in counts):
        raise ValueError("RLE with a run that no image of this size has")
    runs = [int(run) for run in counts]
    if sum(runs) != pixels:
        ends = [start + length for start, length in zip(runs[::2], runs[1::2], strict=False)]
        pairs = len(runs) % 2 == 0 and all(end <= start for end, start in zip(ends, runs[2::2], strict=False)) and len(runs) > 2
        raise ValueError(f"{NOT_FILLED}: pairs of start and length?" if pairs else NOT_FILLED)
    return runs


def compare_stated(area: Any, bbox: Any, counts: str, height: int, width: int) -> str:
    """Return notes on a mask and the `area` and `bbox` that a file states of it, each None where it states none.

    "" where they agree but for rounding: tools measure outlines, whose edges lie up to a pixel from those of the drawn mask. Raises
    `ValueError` where the mask is another: an area of more than twice the other, or boxes that share less than half of their union.
    Numbers may be written as texts; tools that do not measure state 0, or an empty bbox.
    """
    found, (x, y, w, h) = measure(counts, height, width)
    said = ""
    if area is not None:
        number = _number(area)
        if number is None or number < 0:
            said = "an area that is not a number of pixels"
        elif number > 0:
            if not found / 2 - 4 <= number <= 2 * found + 4:
                raise ValueError(f"mask of {found} pixels, but the file states an area of {number:g}")
            said = "an area that is not the mask's" if abs(number - found) > 2 * (w + h) + 4 else ""
    if bbox is not None and bbox != []:
        edges = [edge for edge in map(_number, bbox if isinstance(bbox, list) else []) if edge is not None]
        if len(edges) != 4 or len(bbox) != 4 or min(edges[2:]) < 0:
            return said or "a bbox that is not x, y, width and height"
        left, top, wide, high = edges
        across = min(left + wide, x + w) - max(left, x)
        down = min(top + high, y + h) - max(top, y)
        shared = max(across, 0) * max(down, 0)
        if wide > 0 and high > 0:
            # two boxes that differ by a pixel at every edge are one, however small
            near = all(abs(a - b) <= 1 for a, b in ((left, x), (top, y), (left + wide, x + w), (top + high, y + h)))
            if not near and shared < 0.5 * (wide * high + w * h - shared):
                raise ValueError(f"mask in the box {[x, y, w, h]}, but the file states the bbox {bbox}")
            said = said or ("" if near else "a bbox that is not the mask's")
    return said


def decode(counts: str, height: int, width: int) -> np.ndarray:
    """Map compressed `counts` to (height, width) uint8 in {0, 1}.

    Raises `ValueError` when the run lengths do not fill the image: pycocotools would leave what is missing as it finds the
    memory.
    """
    # of a table's column, they are numpy's
    size = [int(height), int(width)]  # pyrefly: ignore[unnecessary-type-conversion]
    return coco.decode({"size": size, "counts": _from_rle({"size": size, "counts": counts}, height, width).encode("ascii")})


def union(counts: Sequence[str], height: int, width: int) -> str:
    """Return the pixels of any of several masks, as compressed `counts`; of none, a mask without a pixel."""
    rles = [{"size": [height, width], "counts": text.encode("ascii")} for text in counts]
    return coco.merge(rles)["counts"].decode("ascii") if rles else from_array(np.zeros((height, width), np.uint8))


def polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (height, width) bool: the inside of a closed polygon of whole-numbered (points, 2) x, y, and its outline, one pixel wide.

    As OpenCV's `fillPoly` (even-odd, by rows) with `polylines` over it: an edge goes from its left end, one pixel per step
    along its longer side, to the nearer pixel of the other side, to the first of two that are equally near (its `LineIterator`).
    """
    mask = np.zeros((height, width), bool)
    starts, ends = points, np.roll(points, -1, axis=0)
    crossings: list[list[float]] = [[] for _ in range(height)]
    for (x0, y0), (x1, y1) in zip(starts.tolist(), ends.tolist(), strict=True):
        if (x0, y0) > (x1, y1):
            x0, y0, x1, y1 = x1, y1, x0, y0
        dx, dy = x1 - x0, y1 - y0
        long, short = max(dx, abs(dy)), min(dx, abs(dy))
        steps = np.arange(long + 1)
        aside = -((long - 2 * short * steps) // (2 * long)) if long else steps  # ceil(short * steps / long - 1 / 2)
        across, down = (steps, aside) if dx >= abs(dy) else (aside, steps)
        columns, rows = x0 + across, y0 + down * (1 if dy >= 0 else -1)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        mask[rows[inside], columns[inside]] = True
        for row in range(max(min(y0, y1), 0), min(max(y0, y1), height)):
            crossings[row].append(x0 + dx * (row - y0) / dy)
    for row, places in enumerate(crossings):
        places.sort()
        for left, right in zip(places[::2], places[1::2], strict=True):
            mask[row, max(math.ceil(left), 0) : max(math.floor(right) + 1, 0)] = True
    return mask


def from_array(mask: np.ndarray) -> str:
    """Map (height, width), zero outside the object to compressed RLE `counts`."""
    return coco.encode(np.asfortranarray(mask > 0, np.uint8))["counts"].decode("ascii")


def check_counts(counts: Sequence[Any], height: int, width: int) -> list[int]:
    """Return the area of each mask, in pixels. Raise `ValueError` where one of `counts` is not text in the coding of `run_lengths`
    (pycocotools would read on behind its end), or where its runs do not fill height x width. All at once, since SA-1B has a hundred
    masks per image.
    """
    if not counts:
        return []
    if not set(map(type, counts)) <= {str} or not all(counts):
        raise ValueError(BROKEN)
    codes = np.frombuffer("".join(counts).encode("utf-8", "surrogatepass"), np.uint8)
    # of a number's last code bit 5 is not set: it is one of the first 32
    if not (48 <= codes.min() <= codes.max() <= 111 and max([text[-1] for text in counts]) <= chr(79)):
        raise ValueError(BROKEN)
    numbers, several = _numbers(codes - 48)
    ends = np.cumsum([len(text) for text in counts])  # in codes
    last = ends - 1 - np.searchsorted(several, ends)  # in numbers, since each has one code that is none of `several`
    sizes = np.diff(last, prepend=-1)
    # Two columns, one for the zeros' and one for the ones' runs, and as many rows as the longer has: from the fourth run on a
    # number is the difference to the one above it, so that runs are sums down the columns, but for the very first run.
    rows = (sizes + 1) // 2
    start = np.cumsum(rows) - rows
    unused = (start + rows - 1)[sizes % 2 == 1]  # in the second column
    table = np.zeros((int(rows.sum()), 2), np.int64)
    used = np.ones(table.shape, bool)
    used[unused, 1] = False
    table[used] = numbers
    opening = table[start, 0]
    table[start, 0] = 0
    table[start[1:]] -= np.add.reduceat(table, start)[:-1]  # so that each mask's sums begin at 0
    for column in (0, 1):  # each by itself: numpy is slow on rows of two
        np.cumsum(table[:, column], out=table[:, column])
    table[start, 0] = opening
    table[unused, 1] = 0
    if table.min() < 0 or (np.add.reduceat(table.reshape(-1), 2 * start) != height * width).any():
        raise ValueError(NOT_FILLED)
    return np.add.reduceat(table[:, 1], start).tolist()


def run_lengths(counts: Any) -> np.ndarray:
    """Map compressed `counts` to run lengths (n,) int64, zeros first. Raises `ValueError` on text that is none.

    pycocotools trusts what it is given and reads past the end of broken text, so text from files is checked here first.
    The coding: little-endian groups of five bits + 48, bit 5 says that more follow; from the fourth run on, the difference to the
    run two before (cocoapi, maskApi.c, rleFrString).
    """
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("RLE counts that are not ASCII text")
    codes = np.frombuffer(counts.encode("ascii"), np.uint8) - 48
    if not len(codes) or codes.max() > 63 or codes[-1] & 32:  # what lies below 48 has become large
        raise ValueError(BROKEN)
    runs, _ = _numbers(codes)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _numbers(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (numbers,) int64 of `codes` (n,) uint8 in 0..63, and the places of the codes that another of the same number follows."""
    more = codes >= 32
    last = codes[~more].view(np.int8)
    numbers = ((last ^ 16) - 16).astype(np.int64)  # bit 4 is the sign
    several = np.flatnonzero(more)
    if len(several):  # few: most numbers are of one code
        owners = several - np.arange(len(several))
        first = np.flatnonzero(np.diff(owners, prepend=-1))  # of each of their numbers
        further = np.diff(first, append=len(several))
        if further.max() > 6:  # more than any image's number of pixels
            raise ValueError(BROKEN)
        numbers[owners[first]] <<= 5 * further
        places = np.arange(len(several)) - np.repeat(first, further)
        np.add.at(numbers, owners, (codes[several] & 31).astype(np.int64) << (5 * places))
    return numbers, several


def measure(counts: str, height: int, width: int) -> tuple[int, tuple[float, float, float, float]]:
    """Return the area in pixels and box (x, y, width, height) in pixels of a mask given by its compressed `counts`."""
    rle = {"size": [height, width], "counts": counts}
    x, y, w, h = coco.toBbox(rle).tolist()
    return int(coco.area(rle)), (x, y, w, h)


def suspicions(mask: np.ndarray) -> list[str]:
    """Return what looks wrong about a mask with a pixel."""
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    if mask.all():
        return ["mask that is the whole image"]
    # the surroundings of an object touch all edges, nearly whole
    if mask.mean() > 0.5 and all(edge.mean() >= 0.9 for edge in edges):
        return ["mask of more than half of the image and of its border: is it inverted?"]
    return []
