"""Faults that a review once put into the code, each with the tests that have to turn red."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`old`, which occurs once in `file`, becomes `new`; `tests` are pytest ids, and every one of them has to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS: list[Fault] = [
    Fault(
        name="several polygons of one object are not united",
        file="ans/data/masks.py",
        old="coco.merge(coco.frPyObjects(segmentation, height, width))",
        new="coco.merge(coco.frPyObjects(segmentation[:1], height, width))",
        tests=("tests/data/test_masks.py::test_polygons_of_one_object_are_united",),
    ),
    Fault(
        name="pixels to ignore count in the union",
        file="ans/evaluation/metrics.py",
        old="return pred & ~ignore, gt & ~ignore",
        new="return pred, gt & ~ignore",
        tests=("tests/evaluation/test_metrics.py::test_ignored_pixels_by_hand",),
    ),
]
