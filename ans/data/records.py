"""The record every reader produces: one image with its regions, and each region with its expressions."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ans.data.disk import UNSHOWN

QUERY_KINDS = {True: "long", False: "short"}
"""ReasonSeg's `is_sentence` -> the name of the published subset, which is the category of its regions."""


@dataclass(frozen=True)
class Expression:
    """One referring expression. `sent` is the cleaned text that evaluation uses, `raw` the text as it was typed."""

    sent_id: int
    sent: str
    raw: str


@dataclass(frozen=True)
class Region:
    """One object of an image.

    `counts` is the compressed COCO RLE of its mask at the image's own size (height x width); `area` is in pixels and `bbox`
    is (x, y, width, height) in pixels, both measured on that mask. `split` is the published split of this region ("" where
    the data set has none) and `category` the published class name ("" where there is none). `second_counts` is the mask of the
    same object in the image's second frame ("" where there is none), and `ignore_counts` the mask of pixels that count neither
    as the object nor as its surroundings ("" where all pixels count).

    What is referred to is not always one object: the region of an expression of several (gRefCOCO) is their union, and that of an
    expression of none has no pixel, `area` 0 and `bbox` (0, 0, 0, 0).
    """

    region_id: int
    split: str
    category: str
    area: int
    bbox: tuple[float, float, float, float]
    counts: str
    expressions: tuple[Expression, ...] = ()
    second_counts: str = ""
    ignore_counts: str = ""


@dataclass(frozen=True)
class ImageRecord:
    """One image. `path` is its locator below `paths.root` (see `images.py`); `width` and `height` are in pixels.

    `second` is the locator of another frame of the same size that shows the same objects ("" where there is none). `content` tells
    photographs apart whose paths differ (see `images.content`); "" where the reader does not open images.
    """

    image_id: int
    path: str
    width: int
    height: int
    regions: tuple[Region, ...] = field(default=())
    second: str = ""
    content: str = ""


@dataclass(frozen=True)
class Skipped:
    """A record that a reader could not use: `key` names it within its source, `reason` says why (one wording per kind). What a file's
    name has in either that no terminal or file should be given is written as Python escapes it."""

    key: str
    reason: str

    def __post_init__(self) -> None:
        for name, text in (("key", self.key), ("reason", self.reason)):
            if not text.isprintable():
                hidden = (ascii(one)[1:-1] if unicodedata.category(one) in UNSHOWN else one for one in text)
                object.__setattr__(self, name, "".join(hidden))


@dataclass(frozen=True)
class Noted(Skipped):
    """Something that costs no record: a part that was left out (a text, an outline), or that looks wrong and is used as it is."""


def left_out(found: Iterable[Any]) -> list[Skipped]:
    """Return what a reader could not use, among all that it gave."""
    return [item for item in found if isinstance(item, Skipped) and not isinstance(item, Noted)]
