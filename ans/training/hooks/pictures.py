"""What the model answers, as a picture: the true mask and the predicted one over the image, side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ans.data import masks

SIDE = 320
"""Longest side in pixels of each of the two."""
LINE = 14
TRUTH, PREDICTION = (0, 158, 115), (213, 94, 0)
"""Of Okabe and Ito, told apart by all; as in the report."""


def answer_picture(image: Image.Image, row: Mapping[str, Any]) -> Image.Image:
    """Paint one answer. `row`: one of `ans.evaluation.predict.predict` about an expression of this RGB image; at most 2 x `SIDE` pixels
    wide."""
    scale = min(1.0, SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    both = [_tinted(small, row[key], row, size, colour) for key, colour in (("gt_counts", TRUTH), ("counts", PREDICTION))]
    picture = Image.new("RGB", (2 * size[0], size[1] + 2 * LINE), "white")
    for number, half in enumerate(both):
        picture.paste(Image.fromarray(half), (number * size[0], 0))
    draw = ImageDraw.Draw(picture)
    lines = [row["sent"], f"IoU {row['iou']:.2f}" + ("" if row["has_seg"] else ", no [SEG]")]
    for number, text in enumerate(lines):
        # the font that comes with PIL knows Latin letters alone
        draw.text((2, size[1] + number * LINE), text.encode("ascii", "replace").decode(), fill="black")
    return picture


def _tinted(
    pixels: np.ndarray, counts: str, row: Mapping[str, Any], size: tuple[int, int], colour: tuple[int, int, int]
) -> np.ndarray:
    mask = Image.fromarray(masks.decode(counts, row["height"], row["width"]).astype(np.uint8)).resize(
        size, Image.Resampling.NEAREST
    )
    inside = np.asarray(mask).astype(bool)[..., None]
    return np.where(inside, 0.45 * pixels + 0.55 * np.array(colour), pixels).astype(np.uint8)
