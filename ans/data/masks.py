"""Masks as COCO run lengths.

Several polygons of one object are united (OR): summing them, as some loaders do, counts overlaps twice.
"""

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco

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
    counts, size = rle.get("counts"), rle.get("size")
    if size != [height, width]:
        raise ValueError("RLE of another size than the image")
    runs = np.asarray(counts) if isinstance(counts, list) else run_lengths(counts)
    if runs.dtype.kind != "i" or runs.ndim != 1 or not len(runs) or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError("RLE that does not fill the image")
    if isinstance(counts, list):
        return coco.frPyObjects({"counts": counts, "size": size}, height, width)["counts"].decode("ascii")
    return counts


def from_array(mask: np.ndarray) -> str:
    """(height, width), zero outside the object -> compressed RLE `counts`."""
    return coco.encode(np.asfortranarray(mask > 0, np.uint8))["counts"].decode("ascii")


def run_lengths(counts: Any) -> np.ndarray:
    """Compressed `counts` -> run lengths (n,) int64, zeros first. Raises `ValueError` on text that is none.

    pycocotools trusts what it is given and reads past the end of broken text, so text from files is checked here first.
    The coding: little-endian groups of five bits + 48, bit 5 says that more follow; from the fourth run on, the difference to the
    run two before (cocoapi, maskApi.c, rleFrString).
    """
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("RLE counts that are no ASCII text")
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("RLE counts that cannot be decoded")
    last = (codes & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(starts, append=len(codes))
    if lengths.max() > 7:
        raise ValueError("RLE counts that cannot be decoded")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[last] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def measure(counts: str, height: int, width: int) -> tuple[int, tuple[float, float, float, float]]:
    """Area in pixels and box (x, y, width, height) in pixels of a mask given by its compressed `counts`."""
    rle = {"size": [height, width], "counts": counts}
    x, y, w, h = coco.toBbox(rle).tolist()
    return int(coco.area(rle)), (x, y, w, h)
