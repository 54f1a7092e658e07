"""Images are resized horizontally first, whatever the order that the installed Pillow prefers.

`OLDER` holds what Pillow 11.3.0 made in one call: the CRC-32 of the resized bytes. In all but the second and the sixth row Pillow 13
starts vertically, and gives other values.
"""

import zlib

import numpy as np
import pytest
from PIL import Image

from ans.model.preprocess import middle_square, resize, sam_image, tiles

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR

OLDER = [
    ((112, 144), (128, 128), BICUBIC, 0x64D231BD),
    ((144, 112), (128, 128), BICUBIC, 0x52DB4FEC),
    ((640, 480), (896, 448), BICUBIC, 0xA63EB850),
    ((427, 640), (448, 448), BICUBIC, 0x3F06872E),
    ((60, 90), (72, 48), BILINEAR, 0x2D8DD8F2),
    ((90, 60), (72, 48), BILINEAR, 0x346B0B92),
    ((800, 1500), (1024, 1024), BICUBIC, 0x341D4BD5),
    ((300, 800), (96, 256), BILINEAR, 0xF5758556),
]


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([(7 * x + 3 * y) % 256, x * y % 256, (x * x + 5 * y) % 256], axis=-1).astype(np.uint8))


def checksum(image: Image.Image) -> int:
    return zlib.crc32(np.asarray(image).tobytes())


@pytest.mark.parametrize(("size", "new", "resample", "expected"), OLDER)
def test_as_older_pillow(size: tuple[int, int], new: tuple[int, int], resample: Image.Resampling, expected: int) -> None:
    assert checksum(resize(picture(*size), *new, resample)) == expected


def test_every_use_of_it() -> None:
    assert checksum(sam_image(picture(800, 1500), 1024)) == 0x341D4BD5
    cut = tiles(picture(640, 480), 448, 2, 2, use_thumbnail=False)  # two columns, one row
    assert checksum(Image.fromarray(np.hstack(cut))) == 0xA63EB850
    whole = tiles(picture(427, 640), 448, 2, 2, use_thumbnail=True)[-1]
    assert checksum(whole) == 0x3F06872E
    # The middle of an image that was resized to 96 x 256.
    expected = resize(picture(300, 800), 96, 256).crop((0, 80, 96, 176))
    assert checksum(middle_square(picture(300, 800), 96)) == checksum(expected)
