"""A mask that a person or a tool drew, from an image file: which pixels are the object, and what looks wrong about it.

Black is outside, anything else inside. Where a file may mean something else (lossy compression, an odd palette, grey values that are
neither ids nor a soft edge) it is refused: a threshold that nobody chose would be a guess.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ans.data.images import BROKEN_IMAGE, open_mask

MAX_VALUES = 16
"""Grey values, or colours, that still look like numbers of objects; an image has more."""

NO_OUTSIDE = "several values and no pixel that is 0: nothing says which of them is outside"

SOFT_EDGE = 9
"""Pixels across within which a soft edge goes from outside to inside, as brushes leave it, and enlarging by up to four."""


def read_mask(path: Path, name: str) -> tuple[np.ndarray, list[str]]:
    """Return (height, width) bool, and notes on the file. `name` is what messages call it.

    Raises `FileNotFoundError`, or `ValueError` with the reason for a file that is not an image or not a mask.
    """
    try:
        return inside(open_mask(path, name))
    except FileNotFoundError:
        raise FileNotFoundError(f"no such mask: {name}") from None
    except BROKEN_IMAGE as error:
        reason = str(error)
        raise ValueError(reason if reason.startswith(name) else f"{name}: {reason}") from error


def inside(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """Return (height, width) bool, and notes on it. Raises `ValueError` with the reason for a file that is not a mask."""
    notes: list[str] = []
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if not alpha.any():
            raise ValueError("transparent everywhere")
        if alpha.min() < alpha.max():  # a cut-out: its colours are those of the object
            if alpha.min() > 0:
                raise ValueError("alpha channel of several values, none of them transparent: nothing says what is outside")
            found, notes = _levels(alpha)
            return found, [*notes, "cut-out, whose alpha channel is the mask"]
        image = image.convert("RGB")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")  # in which black is 0
    if image.mode == "P":
        return _indexed(image)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return _levels(pixels)
    colours = pixels[..., : {2: 1, 3: 3, 4: 3}[pixels.shape[2]]]
    found, notes = _levels(colours.max(2))
    if not notes and len(np.unique(colours[found].astype(np.int64) @ (256 ** np.arange(colours.shape[2])))) > 1:
        notes = ["several colours in one mask, taken for one object"]
    return found, notes


def _indexed(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """Return (height, width) bool: by colour and by number the same pixels are inside, or nothing says which of the two is meant."""
    numbers = np.asarray(image)
    inside = np.asarray(np.asarray(image.convert("RGB")).any(2))
    if (inside != (numbers > 0)).any():
        raise ValueError("palette in which number 0 is not black, or another number is; save the mask in black and white")
    several = len(np.unique(numbers[inside])) > 1
    if several and inside.all():
        raise ValueError(NO_OUTSIDE)
    return inside, ["several values in one mask, taken for one object"] if several else []


def _levels(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return (height, width) bool, of one value per pixel: outside is 0; of a soft edge what is half or more is inside."""
    if values.dtype == bool:
        return values, []
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    if values.min() < 0:
        raise ValueError("values below 0")
    inside = values > 0
    found = np.unique(values[inside])
    if len(found) < 2:
        return inside, []
    if inside.all():
        raise ValueError(NO_OUTSIDE)
    half = values >= found[-1] / 2
    if (found[-1] >= 128 or values.dtype.kind == "f") and _near_edge(half)[inside & (values < found[-1])].all():
        return half, ["mask with a soft edge, of which half and more is inside"]
    if len(found) > MAX_VALUES or values.dtype.kind == "f":
        raise ValueError(f"{len(found)} values besides 0 that are not a soft edge: neither a mask nor numbers of objects")
    return inside, ["several values in one mask, taken for one object"]


def _near_edge(inside: np.ndarray) -> np.ndarray:
    """Return the pixels around which, `SOFT_EDGE` across, some are inside and some outside."""
    image = Image.fromarray(inside.astype(np.uint8))
    most, least = image.filter(ImageFilter.MaxFilter(SOFT_EDGE)), image.filter(ImageFilter.MinFilter(SOFT_EDGE))
    return np.asarray(most) > np.asarray(least)
