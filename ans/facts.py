"""Whether captions are true: facts that are known of a data set's objects, and those that a caption states.

`facts.json` in the folder of the data sets (`paths.root`) says what is known; the synthetic world has one, published sets have none.

    {"facts": {"size": ["small", "large"], "colour": ["red", "green"]},
     "objects": {"<locator of the image>": [{"x": 0.25, "y": 0.6, "caption": "small red"}]}}

`facts` has the words that state each fact, `objects` where each object's centre lies, in fractions of width and height, and its true
caption. A fact without a word is stated too: what is not called "striped" is plain.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ans.captions import words

NAME = "facts.json"


@dataclass(frozen=True)
class KnownObject:
    """An object: its centre, in fractions of the image's width and height, and its true caption."""

    x: float
    y: float
    caption: str


@dataclass(frozen=True)
class Verdict:
    """How a caption fits an object: facts `right` of all `facts`; `other`: another object of the image has more of them."""

    right: int
    facts: int
    other: bool


@dataclass(frozen=True)
class Facts:
    """`kinds`: fact -> the words that state it. `objects`: locator -> the image's objects."""

    kinds: Mapping[str, frozenset[str]]
    objects: Mapping[str, Sequence[KnownObject]]

    def true_caption(self, locator: str, mask: np.ndarray) -> str | None:
        """Return the true caption of the object at a mask (height, width), that whose centre is nearest to the mask's; None where nothing
        is known of the image, or the mask has no pixel."""
        objects = self.objects.get(locator)
        if not objects or not mask.any():
            return None
        rows, columns = np.nonzero(mask)
        x, y = (columns.mean() + 0.5) / mask.shape[1], (rows.mean() + 0.5) / mask.shape[0]
        return min(objects, key=lambda known: (known.x - x) ** 2 + (known.y - y) ** 2).caption

    def judge(self, locator: str, truth: str, caption: str) -> Verdict:
        """Return how a caption fits the object of that true caption."""
        others = [known.caption for known in self.objects[locator] if known.caption != truth]
        right = self._agreeing(caption, truth)
        return Verdict(right, len(self.kinds), any(self._agreeing(caption, other) > right for other in others))

    def _agreeing(self, caption: str, truth: str) -> int:
        said, wanted = set(words(caption)), set(words(truth))
        return sum(said & stated == wanted & stated for stated in self.kinds.values())


@lru_cache(maxsize=4)
def read_facts(root: Path) -> Facts | None:
    """Return what is known below `root`, or None. Raises `ValueError` naming a file that is not of this form."""
    path = root / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {name: frozenset(map(str, stated)) for name, stated in content["facts"].items()}
        objects = {
            locator: tuple(KnownObject(float(one["x"]), float(one["y"]), str(one["caption"])) for one in several)
            for locator, several in content["objects"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not of the form that docs/evaluation.md gives for facts.json: {error}") from error
    return Facts(kinds, objects)
