"""What the commands that can be pointed at a place share."""

import argparse

from ans.model.places import Place


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--point` and `--box`, each as often as there are objects; `places` has them in their order."""
    parser.add_argument(
        "--point",
        dest="places",
        type=_point,
        action="append",
        default=[],
        metavar="X,Y",
        help="the object at this pixel of IMAGE",
    )
    parser.add_argument(
        "--box", dest="places", type=_box, action="append", default=[], metavar="X0,Y0,X1,Y1", help="the object in this box"
    )


def check(places: list[Place], size: tuple[int, int]) -> None:
    """Check the places. `size`: (width, height) of the image in pixels. Raises `ValueError` for a place outside of it."""
    for place in places:
        place.check(size[1], size[0])


def _point(text: str) -> Place:
    return Place(points=[_numbers(text, 2)])


def _box(text: str) -> Place:
    try:
        return Place(box=_numbers(text, 4))
    except ValueError as error:  # argparse would keep what is wrong to itself
        raise argparse.ArgumentTypeError(str(error)) from None


def _numbers(text: str, count: int) -> list[float]:
    parts = text.split(",")
    try:
        found = [float(part) for part in parts]
    except ValueError:
        found = []
    if len(found) != count:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {count} numbers with commas between them")
    return found
