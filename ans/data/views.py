"""Other views of an image, in which an object is still the same and has the same name: smaller in a corner, or brighter. None is
mirrored: "the left cup" would be wrong there.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageStat

SMALLER = 3 / 4
"""Sides of a smaller view, as a share of the image's."""


@dataclass(frozen=True)
class View:
    """A view of an image, of the image's size. `corner`: for a smaller one, the shares of the margins that lie to its left and above
    it; around it is the image's mean colour. `brightness`: what the pixels are multiplied by."""

    corner: tuple[float, float] | None = None
    brightness: float = 1.0

    def image(self, image: Image.Image) -> Image.Image:
        """Return the view of an RGB image."""
        if self.brightness != 1.0:
            image = ImageEnhance.Brightness(image).enhance(self.brightness)
        if self.corner is None:
            return image
        left, top, width, height = self._box(*image.size)
        red, green, blue = (round(value) for value in ImageStat.Stat(image).mean)
        result = Image.new("RGB", image.size, (red, green, blue))
        bicubic = Image.Resampling.BICUBIC  # horizontally first: Pillow's own order depends on its version
        result.paste(image.resize((width, image.height), bicubic).resize((width, height), bicubic), (left, top))
        return result

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Return the mask (height, width), of 0 and 1, of an object in the view. An object of any pixel keeps at least one."""
        if self.corner is None:
            return mask
        left, top, width, height = self._box(mask.shape[1], mask.shape[0])
        covered = np.asarray(Image.fromarray((255 * mask).astype(np.uint8)).resize((width, height), Image.Resampling.BOX))
        result = np.zeros_like(mask)
        result[top : top + height, left : left + width] = covered >= min(128, max(1, covered.max()))
        return result

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, width and height of the smaller image."""
        assert self.corner is not None
        small_width, small_height = max(1, round(SMALLER * width)), max(1, round(SMALLER * height))
        right, down = self.corner
        return round(right * (width - small_width)), round(down * (height - small_height)), small_width, small_height


VIEWS = (View(), View(corner=(0.0, 0.0)), View(brightness=1.25), View(corner=(1.0, 1.0)), View(corner=(1.0, 0.0)))
"""The first `train.loop1.views` are used: the image itself, then others."""
