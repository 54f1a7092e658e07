"""Views of an image: that the object's pixels and its mask move alike, by hand."""

import numpy as np
import pytest
from PIL import Image

from ans.data.views import VIEWS, View


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(96, 64), (37, 81)])
def test_pixels_and_mask_move_alike(view: View, size: tuple[int, int]) -> None:
    """A red rectangle on grey: in each view the mask covers what is red, and nothing else."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 8 : width // 2] = 1
    pixels = np.full((height, width, 3), 90, np.uint8)
    pixels[mask == 1] = (160, 0, 0)
    image, seen = view.image(Image.fromarray(pixels)), view.mask(mask)
    assert image.size == size and seen.shape == mask.shape and set(np.unique(seen)) == {0, 1}
    found = np.asarray(image)
    red = found[..., 0].astype(int) > found[..., 1].astype(int) + 60
    assert (red & (seen == 1)).sum() / (red | (seen == 1)).sum() > 0.9


def test_a_smaller_view_by_hand() -> None:
    """Of 8 x 4 pixels a view has 6 x 3, behind a margin of 2 and 1; around it lies the mean colour."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = (200, 100, 40)
    image = np.asarray(View(corner=(1.0, 1.0)).image(Image.fromarray(pixels)))
    assert (image[0] == (100, 50, 20)).all() and (image[:, :2] == (100, 50, 20)).all()
    assert (image[1:, 2] == (200, 100, 40)).all() and (image[1:, 7] == 0).all()
    mask = np.zeros((4, 8), np.uint8)
    mask[:, :4] = 1
    assert View(corner=(1.0, 1.0)).mask(mask).tolist() == [[0] * 8, *[[0, 0, 1, 1, 1, 0, 0, 0]] * 3]


def test_the_smallest_object_stays() -> None:
    for row in range(0, 50, 7):
        for column in range(0, 70, 9):
            mask = np.zeros((50, 70), np.uint8)
            mask[row, column] = 1
            assert all(view.mask(mask).any() for view in VIEWS)


def test_brighter() -> None:
    pixels = np.full((2, 2, 3), (100, 8, 240), np.uint8)
    assert (np.asarray(View(brightness=1.25).image(Image.fromarray(pixels))) == (125, 10, 255)).all()
