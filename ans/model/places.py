"""Places in an image that are pointed at: the prompts of SAM and SAM2 (arXiv 2304.02643, 2408.00714) beside language."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where one object is, in pixels from the image's upper left corner: `points` (x, y), whose `labels` are 1 on the object and 0
    beside it, all 1 by default; a `box` (x0, y0, x1, y1) around it; or both.

    Raises `ValueError` for a box without area, for labels that do not fit the points, and where nothing says what the object is.
    """

    points: Sequence[Sequence[float]] = ()
    labels: Sequence[int] | None = None
    box: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if any(len(point) != 2 for point in self.points):
            raise ValueError(f"points: expected (x, y) each, found {self.points}")
        if len(self.on_object) != len(self.points):
            raise ValueError(f"labels: {len(self.on_object)} for {len(self.points)} points; each point has one")
        if not set(self.on_object) <= {0, 1}:
            raise ValueError(f"labels: {list(self.on_object)}; 1 is on the object, 0 beside it")
        if self.box is None and 1 not in self.on_object:
            raise ValueError("a place needs a box, or a point on the object (label 1)")
        if self.box is not None and not (len(self.box) == 4 and self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"{self}: has no area; a box is x0,y0,x1,y1 with x0 < x1 and y0 < y1")

    def __str__(self) -> str:
        points = [
            f"{'point' if label else 'not'} {_numbers(point)}" for point, label in zip(self.points, self.on_object, strict=True)
        ]
        return ", ".join([*points, *([] if self.box is None else [f"box {_numbers(self.box)}"])])

    @property
    def on_object(self) -> Sequence[int]:
        """The labels, one per point."""
        return [1] * len(self.points) if self.labels is None else self.labels

    @property
    def form(self) -> tuple[int, bool]:
        """How many points it has, and whether it has a box; places of one form are decoded together."""
        return len(self.points), self.box is not None

    def check(self, height: int, width: int) -> None:
        """Raise `ValueError` where it is not inside an image of this size in pixels."""
        inside = all(0 <= x < width and 0 <= y < height for x, y in self.points)
        if self.box is not None:
            inside &= self.box[0] >= 0 and self.box[1] >= 0 and self.box[2] <= width and self.box[3] <= height
        if not inside:
            raise ValueError(f"{self}: outside the image, which is {width} x {height} pixels")

    def shares(self, height: int, width: int, share: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Return its points (P, 2) and its boxes (1, 4) or (0, 4) as shares of a square that an image of this size fills up to `share`
        (x, y)."""
        scale = np.array([share[0] / width, share[1] / height])
        box = np.reshape([] if self.box is None else self.box, (-1, 4))
        return np.reshape(self.points, (-1, 2)) * scale, box * np.tile(scale, 2)


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
