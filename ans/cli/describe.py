"""Captions of regions: `python -m ans describe IMAGE MASK ...`.

A region may also be pointed at, with --point X,Y or --box X0,Y0,X1,Y1 in pixels from the upper left corner: then it is what the mask
decoder finds there. The tiny model, which `make repro` leaves, knows coloured shapes alone; for photographs name another with --model.
"""

import argparse
import logging
from pathlib import Path

import numpy as np

from ans.cli import model, places
from ans.data import mask_files

log = logging.getLogger(__name__)

HELP = "captions of regions"


def arguments(parser: argparse.ArgumentParser) -> None:
    model.arguments(parser)
    masks = parser.add_argument(
        "masks", type=Path, nargs="+", default=[], metavar="MASK", help="an image of IMAGE's size, not 0 inside the region"
    )
    masks.required = False  # where there is a place
    places.arguments(parser)


def run(chosen: argparse.Namespace) -> None:
    if not chosen.masks and not chosen.places:
        raise ValueError("MASK: there is none; name one, or point at a region with --point or --box")
    image = model.read_image(chosen.image)
    regions = [*(read_mask(path, image.size) for path in chosen.masks), *chosen.places]
    places.check(chosen.places, image.size)
    captions = model.load_model(chosen).describe([image], [regions], chosen.max_new_tokens)[0]
    for name, caption in zip([*chosen.masks, *chosen.places], captions, strict=True):
        print(f"{name}: {caption}")


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return (height, width) bool: what own data has in such a file (`ans/data/mask_files.py`).

    `size`: (width, height) of the image in pixels. Raises `FileNotFoundError`, or `ValueError` where the file is not a mask, has another
    size, or marks nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mask")
    mask, notes = mask_files.read_mask(path, str(path))
    for note in notes:
        log.info(f"note: {path}: {note}")
    if mask.shape != (size[1], size[0]):
        raise ValueError(
            f"{path}: is {mask.shape[1]} x {mask.shape[0]} pixels, the image {size[0]} x {size[1]}; they must be equal"
        )
    if not mask.any():
        raise ValueError(f"{path}: every pixel is 0, so there is no region to describe")
    return mask
