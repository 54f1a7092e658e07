"""Masks as COCO run lengths.

Several polygons of one object are united (OR): summing them, as some loaders do, counts overlaps twice.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

BROKEN = "RLE counts that cannot be decoded"
NOT_FILLED = "RLE that does not fill the image"

MAX_SIDE = 65535
"""Of a JPEG; pycocotools counts pixels in 32 bits."""


def from_segmentation(segmentation: Any, height: int, width: int) -> str:
    """A COCO `segmentation` (polygons, or an RLE with compressed or listed counts) -> compressed RLE `counts`.

    Raises `ValueError` with one short reason when there is nothing to draw or the run lengths do not fill height x width.
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError("image of a size that no image has")
    if isinstance(segmentation, dict):
        return _from_rle(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("empty segmentation")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("polygon of fewer than three points")
        if not all(isinstance(coordinate, int | float) and math.isfinite(coordinate) for coordinate in polygon):
            raise ValueError("polygon with a coordinate that is no number")
        if max(map(abs, polygon)) > 2 * MAX_SIDE:  # pycocotools asks for memory by the length of an edge
            raise ValueError("polygon far outside the image")
    return coco.merge(coco.frPyObjects(segmentation, height, width))["counts"].decode("ascii")


def _from_rle(rle: dict[str, Any], height: int, width: int) -> str:
    counts: Any = rle.get("counts")
    size = rle.get("size")
    if size != [height, width]:
        raise ValueError("RLE of another size than the image")
    runs = np.asarray(counts) if isinstance(counts, list) else run_lengths(counts)
    if runs.dtype.kind != "i" or runs.ndim != 1 or not len(runs) or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(NOT_FILLED)
    if isinstance(counts, list):
        return coco.frPyObjects({"counts": counts, "size": size}, height, width)["counts"].decode("ascii")
    return counts


def decode(counts: str, height: int, width: int) -> np.ndarray:
    """Compressed `counts` -> (height, width) uint8 in {0, 1}.

    Raises `ValueError` when the run lengths do not fill the image: pycocotools would leave what is missing as it finds the
    memory.
    """
    size = [height, width]
    return coco.decode({"size": size, "counts": _from_rle({"size": size, "counts": counts}, height, width).encode("ascii")})


def union(counts: Sequence[str], height: int, width: int) -> str:
    """The pixels of any of several masks, as compressed `counts`; of none, a mask without a pixel."""
    rles = [{"size": [height, width], "counts": text.encode("ascii")} for text in counts]
    return coco.merge(rles)["counts"].decode("ascii") if rles else from_array(np.zeros((height, width), np.uint8))


def polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool: the inside of a closed polygon of whole-numbered (points, 2) x, y, and its outline, one pixel wide.

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
    """(height, width), zero outside the object -> compressed RLE `counts`."""
    return coco.encode(np.asfortranarray(mask > 0, np.uint8))["counts"].decode("ascii")


def check_counts(counts: Sequence[Any], height: int, width: int) -> None:
    """Raise `ValueError` where one of `counts` is no text in the coding of `run_lengths` (pycocotools would read on behind its
    end), or where its runs do not fill height x width. All at once, since SA-1B has a hundred masks per image.
    """
    if not counts:
        return
    if not set(map(type, counts)) <= {str} or not all(counts):
        raise ValueError(BROKEN)
    codes = np.frombuffer("".join(counts).encode("utf-8", "surrogatepass"), np.uint8)
    # of a number's last code bit 5 is not set: it is one of the first 32
    if not (48 <= codes.min() <= codes.max() <= 111 and max([text[-1] for text in counts]) <= chr(79)):
        raise ValueError(BROKEN)
    codes = codes - 48
    ends = np.flatnonzero(codes < 32)  # last code of each number
    numbers = _numbers(codes, ends)
    last = np.searchsorted(ends, np.cumsum([len(text) for text in counts]) - 1)  # last number of each mask
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    # Two columns, one for the zeros' and one for the ones' runs, and as many rows as the longer has: from the fourth run on a
    # number is the difference to the one above it, so that runs are sums down the columns, but for the very first run.
    rows = (sizes + 1) // 2
    start = np.cumsum(rows) - rows
    table = np.zeros((int(rows.sum()), 2), np.int64)
    table.reshape(-1)[np.arange(len(numbers)) + np.repeat(2 * start - first, sizes)] = numbers
    opening = table[start, 0]
    table[start, 0] = 0
    runs = np.cumsum(table, axis=0)
    runs -= np.repeat(runs[start] - table[start], rows, axis=0)
    runs[(start + rows - 1)[sizes % 2 == 1], 1] = 0  # a column that ends earlier
    runs[start, 0] = opening
    if runs.min() < 0 or (np.add.reduceat(runs.sum(1), start) != height * width).any():
        raise ValueError(NOT_FILLED)


def run_lengths(counts: Any) -> np.ndarray:
    """Compressed `counts` -> run lengths (n,) int64, zeros first. Raises `ValueError` on text that is none.

    pycocotools trusts what it is given and reads past the end of broken text, so text from files is checked here first.
    The coding: little-endian groups of five bits + 48, bit 5 says that more follow; from the fourth run on, the difference to the
    run two before (cocoapi, maskApi.c, rleFrString).
    """
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("RLE counts that are no ASCII text")
    codes = np.frombuffer(counts.encode("ascii"), np.uint8) - 48
    if not len(codes) or codes.max() > 63 or codes[-1] & 32:  # what lies below 48 has become large
        raise ValueError(BROKEN)
    runs = _numbers(codes, np.flatnonzero(codes < 32))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _numbers(codes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(numbers,) int64 of `codes` (n,) uint8 in 0..63, `ends` being the place of each number's last code."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # more than any image's number of pixels
        raise ValueError(BROKEN)
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31).astype(np.int64) << shifts, starts)
    return numbers - np.where(codes[ends] & 16, 1 << (5 * lengths), 0)


def measure(counts: str, height: int, width: int) -> tuple[int, tuple[float, float, float, float]]:
    """Area in pixels and box (x, y, width, height) in pixels of a mask given by its compressed `counts`."""
    rle = {"size": [height, width], "counts": counts}
    x, y, w, h = coco.toBbox(rle).tolist()
    return int(coco.area(rle)), (x, y, w, h)
