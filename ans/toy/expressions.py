"""The world's expressions, in the manner of RefCOCO, RefCOCO+ and RefCOCOg.

Descriptions have a meaning (`matches`) that is independent of how they are found: an expression is written only when it holds
of exactly one object both under the strict and under the lenient reading of every comparison of positions (`refers`).
"""

import itertools
from collections.abc import Sequence

import numpy as np

from ans.toy.scenes import (
    ATTRIBUTES,
    COLOURS,
    EXTREMES,
    RADII,
    RELATIONS,
    SHAPES,
    SIDES,
    TEXTURES,
    Description,
    Scene,
    Shape,
    matches,
    refers,
    where,
)

VOCABULARY: tuple[str, ...] = (
    "the", "a", "left", "right", "top", "bottom", "of", "to", "on", "in", "middle", "leftmost", "rightmost", "above", "below",
    "and", "shape", "that", "is", *RADII, *TEXTURES, *COLOURS, *SHAPES,
)  # fmt: skip
"""Every word of every expression, in lower case."""


def short_descriptions(scene: Scene, places: Sequence[str | None]) -> list[list[Description]]:
    """Return for every object all descriptions by attributes and one of `places` that mean it, those of fewest words first."""
    found: list[list[Description]] = [[] for _ in scene.shapes]
    subsets = list(itertools.product((False, True), repeat=len(ATTRIBUTES)))
    every = [
        tuple(getattr(shape, name) if keep else None for name, keep in zip(ATTRIBUTES, kept, strict=True))
        for shape in scene.shapes
        for kept in subsets
    ]
    for words in dict.fromkeys(every):
        count = sum(word is not None for word in words)
        alone = len(matches(scene, Description(*words))) == 1
        for place in places:
            if place is None and (count == 0 or not alone):
                continue
            if place is not None and count > 2:  # never among the shortest: the caption itself has three or four words
                continue
            if place in EXTREMES and alone:  # "leftmost star" of a single star: true, but nobody says so
                continue
            description = Description(*words, place=place)
            if (target := refers(scene, description)) is not None:
                found[target].append(description)
    return [sorted(options, key=_length) for options in found]


def _length(description: Description) -> int:
    """Return it in words; "on the left" counts as "left"."""
    optional = (description.size, description.texture, description.colour, description.place)
    return 1 + sum(word is not None for word in optional)


def _pick(options: Sequence[Description], count: int, rng: np.random.Generator) -> list[Description]:
    """Return `count` different ones, of hardly more words than the shortest where there are enough of these."""
    short = [option for option in options if _length(option) <= _length(options[0]) + 1] if options else []
    pool = short if len(short) >= count else list(options)[:count]
    return [pool[i] for i in rng.permutation(len(pool))[:count]]


def _with_place(description: Description, rng: np.random.Generator) -> str:
    """Return "left red circle" or "red circle on the left"."""
    place, phrase = description.place, description.phrase
    if place is None:
        return phrase
    if place in EXTREMES or (place != "middle" and rng.random() < 0.6):
        return f"{place} {phrase}"
    return f"{phrase} {where(place)}"


def like_refcoco(options: Sequence[Description], rng: np.random.Generator) -> list[str]:
    return [_with_place(description, rng) for description in _pick(options, int(rng.integers(2, 4)), rng)]


def like_refcoco_plus(shape: Shape, options: Sequence[Description], rng: np.random.Generator) -> list[str]:
    others = [option for option in options if option.phrase != shape.caption]
    texts = [option.phrase for option in _pick(others, int(rng.integers(1, 3)), rng)]
    return [shape.caption, *(texts or [f"the {shape.caption}"])]


def like_refcocog(scene: Scene, target: int, plain: Sequence[list[Description]], rng: np.random.Generator) -> list[str]:
    texts: list[str] = []
    for _ in range(int(rng.integers(1, 3))):
        text = _long_expression(scene, target, plain, rng)
        if text not in texts:
            texts.append(text)
    return texts


def _long_expression(scene: Scene, target: int, plain: Sequence[list[Description]], rng: np.random.Generator) -> str:
    shape = scene.shapes[target]
    article = "the" if rng.random() < 0.7 else "a"
    for _ in range(8):
        kept = rng.random(4) < (0.6, 0.3, 0.7, 0.9)
        words = [getattr(shape, name) if keep else None for name, keep in zip(ATTRIBUTES, kept, strict=True)]
        kind = rng.random()
        if kind < 0.7:
            other = int(rng.choice([i for i in range(len(scene.shapes)) if i != target]))
            landmark = plain[other][rng.integers(len(plain[other]))]
            relation = str(rng.choice(list(RELATIONS)))
            if refers(scene, Description(*words, relation=relation, landmark=landmark)) == target:
                joint = " that is " if rng.random() < 0.3 else " "
                return f"{article} {Description(*words).phrase}{joint}{RELATIONS[relation]} the {landmark.phrase}"
        elif kind < 0.85:
            place = str(rng.choice(SIDES))
            if refers(scene, Description(*words, place=place)) == target:
                return f"the {Description(*words).phrase} {where(place)}"
        else:
            noun = Description(colour=shape.colour, shape=shape.shape).phrase
            return f"the {noun} that is {shape.size} and {shape.texture}"
    return f"the {shape.caption}"


def as_typed(text: str, rng: np.random.Generator) -> str:
    """Return it as typed by somebody in a hurry; never equal to `text`."""
    return (text.upper(), f"{text}.", text.capitalize(), f"{text} ")[rng.integers(4)]
