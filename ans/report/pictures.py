"""Pictures inside the page, as data addresses: a small JPEG of an image, and masks as transparent PNGs to lay over it."""

import base64
from io import BytesIO

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from ans.report.gallery import small

SIDE = 240
"""Longer side in pixels: sharp where a picture is shown a third of a phone wide, and small enough for a page in git."""


def photo(image: Image.Image) -> str:
    """Return an RGB image as a JPEG of at most `SIDE` pixels."""
    buffer = BytesIO()
    small(image, SIDE).save(buffer, "JPEG", quality=72, optimize=True)
    return _address("jpeg", buffer)


def overlay(mask: np.ndarray, width: int, height: int, colour: str) -> str:
    """Return a (h, w) bool mask of an image of width x height pixels: tinted inside, outlined in the colour, and in white around."""
    scale = min(1.0, SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    padded = np.pad(inside, 1)
    neighbours = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    kinds = np.where(inside, np.where(np.all(neighbours, 0), 1, 2), np.where(np.any(neighbours, 0), 3, 0))
    picture = Image.fromarray(kinds.astype(np.uint8), "P")
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    picture.putpalette([0, 0, 0, red, green, blue, red, green, blue, 255, 255, 255])
    buffer = BytesIO()
    picture.save(buffer, "PNG", bits=2, transparency=bytes([0, 110, 255, 235]), optimize=True)
    return _address("png", buffer)


def _address(kind: str, buffer: BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
