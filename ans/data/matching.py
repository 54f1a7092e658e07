"""Where an image and its record meet: the size that a record states is compared with the image as it is loaded, and only here."""

from pathlib import Path

import numpy as np
from PIL import Image

from ans.data import masks
from ans.data.images import TURNED, UNSEEN, hidden_turn, open_image
from ans.data.records import ImageRecord, Region


def record_image(root: str | Path, record: ImageRecord, second: bool = False) -> Image.Image:
    """Return the image of a record, or its second frame, upright and RGB. Raises as `open_image`, and `ValueError` naming the file where
    its size is not the record's: masks would lie in the wrong place. So they may where it is turned by its EXIF data, but as large as
    before: then the size does not tell whether the masks are turned too. Those of own data are, by its documentation."""
    locator = record.second if second else record.path
    image = open_image(root, locator)
    check_size(str(Path(root) / locator), image.size, (record.width, record.height), "its record")
    orientation = image.info.get(TURNED, 1)
    if hidden_turn(image.size, orientation) and not record.content:
        raise ValueError(f"{Path(root) / locator} has the EXIF orientation {orientation}, and {UNSEEN}; save it without")
    return image


def region_mask(record: ImageRecord, region: Region, second: bool = False) -> np.ndarray:
    """Return the region's mask in the record's image, or in its second frame: (height, width) uint8 in {0, 1}.

    Raises `ValueError` naming image and region for run lengths that do not fill the image.
    """
    try:
        return masks.decode(region.second_counts if second else region.counts, record.height, record.width)
    except ValueError as error:
        raise ValueError(f"{record.second if second else record.path}, region {region.region_id}: {error}") from error


def check_size(name: str, found: tuple[int, int], stated: tuple[int, int], where: str) -> None:
    """Raise `ValueError` where an image's (width, height) is not the one that `where` states."""
    if found != stated:
        swapped = found == stated[::-1] and found[0] != found[1]
        turned = " (sides swapped, or the picture before its EXIF orientation is applied)" if swapped else ""
        sizes = f"{found[0]} x {found[1]} pixels, but {where} says {stated[0]} x {stated[1]}{turned}"
        raise ValueError(f"{name} is {sizes}: masks would lie in the wrong place")
