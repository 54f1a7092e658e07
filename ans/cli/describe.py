"""Captions of regions: `python -m ans describe IMAGE MASK ...`."""

import argparse
from pathlib import Path

import numpy as np

from ans.cli import model
from ans.data.images import BROKEN_IMAGE, identify

HELP = "captions of regions"


def arguments(parser: argparse.ArgumentParser) -> None:
    model.arguments(parser)
    parser.add_argument("masks", type=Path, nargs="+", metavar="MASK", help="an image of IMAGE's size, not 0 inside the region")


def run(chosen: argparse.Namespace) -> None:
    image = model.read_image(chosen.image)
    masks = np.stack([read_mask(path, image.size) for path in chosen.masks])
    segmenter = model.load_model(chosen)
    for path, caption in zip(chosen.masks, segmenter.describe([image], [masks], chosen.max_new_tokens)[0], strict=True):
        print(f"{path}: {caption}")


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: where the file's pixel is not 0 (in a palette image: not entry 0; in colours: not black).

    `size`: (width, height) of the image in pixels. Raises `FileNotFoundError`, or `ValueError` where the file is no image, has
    another size, or marks nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mask")
    try:
        with identify(path) as file:
            values = np.asarray(file.convert("RGB") if file.mode in ("RGBA", "LA", "PA", "CMYK") else file)
    except BROKEN_IMAGE as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error
    mask = np.asarray(values.any(2) if values.ndim == 3 else values > 0)
    if mask.shape != (size[1], size[0]):
        raise ValueError(
            f"{path}: is {mask.shape[1]} x {mask.shape[0]} pixels, the image {size[0]} x {size[1]}; they must be equal"
        )
    if not mask.any():
        raise ValueError(f"{path}: every pixel is 0, so there is no region to describe")
    return mask
