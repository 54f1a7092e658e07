"""The synthetic world: scenes of coloured shapes, written in the very layouts of RefCOCO, RefCOCO+, RefCOCOg and SA-1B.

Every random choice of a scene comes from `np.random.default_rng([seed, split, index])`, so a scene depends on nothing but those
three numbers and `shift`, and one seed gives byte-identical files. `shift` changes pixels and proportions, not the language.

Descriptions have a meaning (`matches`) that is independent of how they are found: an expression is written only when it holds
of exactly one object both under the strict and under the lenient reading of every comparison of positions (`refers`).

Scenes of the three referring sets are shared, as on the real sets (all are COCO train2014):

=========  =====================  ==========================================================
scenes     refcoco, refcoco+      refcocog
=========  =====================  ==========================================================
train      train                  train; 1 in 25 val, 1 in 25 test (as the real sets overlap)
val        val                    val; 1 in 25 train
testA      testA, circles+squares  -
testB      testB, triangles+stars  -
test       -                      test
=========  =====================  ==========================================================

So an image that one set evaluates on is another set's training image now and then, and removing such leaks has work to do.
"""

import hashlib
import itertools
import json
import math
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ans.config import World

COLOURS = {
    "red": (215, 45, 45),
    "green": (50, 165, 70),
    "blue": (50, 85, 215),
    "yellow": (235, 210, 50),
    "purple": (145, 60, 175),
    "orange": (240, 135, 35),
}
CATEGORIES = {"circle": 1, "square": 4, "triangle": 11, "star": 27}
"""Published class name -> category id; with gaps, as in COCO."""

SHAPES = tuple(CATEGORIES)
RADII = {"small": (0.11, 0.135), "large": (0.19, 0.215)}
"""Range of the radius, in fractions of the image's short side."""

TEXTURES = ("plain", "striped")
IMAGE_SIZES = ((128, 128), (144, 112), (112, 144), (160, 120))
"""(width, height) in pixels."""

ATTRIBUTES = ("size", "texture", "colour", "shape")
SIDES = ("left", "right", "top", "bottom", "middle")
EXTREMES = ("leftmost", "rightmost")
RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}

VOCABULARY: tuple[str, ...] = (
    "the", "a", "left", "right", "top", "bottom", "of", "to", "on", "in", "middle", "leftmost", "rightmost", "above", "below",
    "and", "shape", "that", "is", *RADII, *TEXTURES, *COLOURS, *SHAPES,
)  # fmt: skip
"""Every word of every expression, in lower case."""

CLEAR = 0.06
"""A comparison of positions counts as clear from this difference on, in fractions of the image's width or height."""

SPLITS = ("train", "val", "testA", "testB", "test", "sa1b")
"""Groups of scenes; the position is the second number of a scene's seed."""


@dataclass(frozen=True)
class Shape:
    """One object. Centre and radius are in pixels (pixel i covers [i, i+1]), `angle` and `stripe_angle` in radians."""

    size: str
    texture: str
    colour: str
    shape: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    angle: float = 0.0
    stretch: float = 1.0
    pinch: float = 0.45
    stripe_angle: float = 0.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def caption(self) -> str:
        """All its attributes in words: "small striped red circle"; "plain" is left out."""
        return Description(self.size, self.texture if self.texture == "striped" else None, self.colour, self.shape).phrase

    @property
    def extent(self) -> float:
        """Radius of a disc around the centre that holds the whole object, in pixels."""
        return 1.25 * self.radius * max(self.stretch, 1 / self.stretch)


@dataclass(frozen=True)
class Scene:
    """Disjoint objects on a background. `width` and `height` are in pixels; `background` is an RGB colour in 0..255."""

    width: int
    height: int
    shapes: tuple[Shape, ...]
    background: tuple[float, float, float]

    @cached_property
    def centres(self) -> list[tuple[float, float]]:
        """x, y of every object, in fractions of width and height."""
        return [(shape.x / self.width, shape.y / self.height) for shape in self.shapes]


@dataclass(frozen=True)
class Description:
    """What an expression says, `None` for what it leaves open. `landmark` describes by its attributes alone."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None
    place: str | None = None
    relation: str | None = None
    landmark: "Description | None" = None

    @property
    def phrase(self) -> str:
        """The attributes in words, without article and place: "small red circle", "striped shape"."""
        return " ".join(word for word in (self.size, self.texture, self.colour, self.shape or "shape") if word)


@dataclass
class _Listing:
    """What one referring set lists: the content of its instances.json and refs pickle."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    refs: list[dict[str, Any]] = field(default_factory=list)
    sentences: int = 0


# ---------------------------------------------------------------------------------------------------------------- meaning


def matches(scene: Scene, description: Description, margin: float = 0.0) -> list[int]:
    """Positions in `scene.shapes` of the objects that `description` holds of.

    A comparison of positions holds when it does so by more than `margin` (in fractions of width or height): a positive margin
    reads strictly, a negative one leniently. With a landmark that is not exactly one object nothing matches.
    """
    found = [
        i
        for i, shape in enumerate(scene.shapes)
        if description.size in (None, shape.size)
        and description.texture in (None, shape.texture)
        and description.colour in (None, shape.colour)
        and description.shape in (None, shape.shape)
    ]
    where = scene.centres
    if description.landmark is not None:
        anchors = matches(scene, description.landmark)
        if len(anchors) != 1:
            return []
        anchor = anchors[0]
        found = [i for i in found if i != anchor and _beyond(description.relation, where[i], where[anchor]) > margin]
    if description.place in EXTREMES:
        side = "left of" if description.place == "leftmost" else "right of"
        found = [i for i in found if all(_beyond(side, where[i], where[j]) > margin for j in found if j != i)]
    elif description.place is not None:
        found = [i for i in found if _inside_side(description.place, where[i]) > margin]
    return found


def refers(scene: Scene, description: Description) -> int | None:
    """The one object that `description` means beyond doubt, read strictly as well as leniently; else None."""
    strict = matches(scene, description, CLEAR)
    return strict[0] if len(strict) == 1 and matches(scene, description, -CLEAR) == strict else None


def _beyond(relation: str | None, a: tuple[float, float], b: tuple[float, float]) -> float:
    match relation:
        case "left of":
            return b[0] - a[0]
        case "right of":
            return a[0] - b[0]
        case "above":
            return b[1] - a[1]
        case "below":
            return a[1] - b[1]
    raise ValueError(f"unknown relation {relation!r}")


def _inside_side(side: str, a: tuple[float, float]) -> float:
    if side == "middle":
        return 0.2 - max(abs(a[0] - 0.5), abs(a[1] - 0.5))
    return _beyond({"left": "left of", "right": "right of", "top": "above", "bottom": "below"}[side], a, (0.5, 0.5))


# ----------------------------------------------------------------------------------------------------------------- scenes


def make_scene(seed: int, split: str, index: int, shift: float) -> tuple[Scene, np.random.Generator]:
    """The scene `index` of `split`, and its generator for what follows. Of testA and testB the first object is of their kind."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    width, height = IMAGE_SIZES[rng.integers(len(IMAGE_SIZES))]
    first = {"testA": SHAPES[:2], "testB": SHAPES[2:]}.get(split, SHAPES)
    grey = rng.uniform(140, 215)
    background = tuple(float(v) for v in grey + rng.uniform(-8, 8, 3))
    while True:
        shapes = [_style(shape, width, height, shift, rng) for shape in _choose_objects(first, rng)]
        placed = _place(shapes, width, height, rng)
        if len(placed) >= 2:
            return Scene(width, height, tuple(placed), background), rng


def _choose_objects(first: Sequence[str], rng: np.random.Generator) -> list[Shape]:
    """2 to 5 objects of different captions. Half of them copy most of an earlier one: else colour alone would tell all apart."""
    objects: list[Shape] = []
    count = int(rng.integers(2, 6))
    while len(objects) < count:
        values = {
            "size": "small" if rng.random() < 0.6 else "large",
            "texture": "plain" if rng.random() < 0.65 else "striped",
            "colour": list(COLOURS)[rng.integers(len(COLOURS))],
            "shape": SHAPES[rng.integers(len(SHAPES))] if objects else first[rng.integers(len(first))],
        }
        if objects and rng.random() < 0.5:
            model = objects[rng.integers(len(objects))]
            changed = ATTRIBUTES[rng.integers(len(ATTRIBUTES))]
            values = {name: values[name] if name == changed else getattr(model, name) for name in ATTRIBUTES}
        shape = Shape(**values)
        # "plain" is left out of captions, so texture alone must never be what tells two objects apart
        if all((shape.size, shape.colour, shape.shape) != (other.size, other.colour, other.shape) for other in objects):
            objects.append(shape)
    return objects


def _style(shape: Shape, width: int, height: int, shift: float, rng: np.random.Generator) -> Shape:
    return Shape(
        *(getattr(shape, name) for name in ATTRIBUTES),
        radius=float(rng.uniform(*RADII[shape.size])) * min(width, height),
        angle=float(rng.uniform(-0.2, 0.2)),
        stretch=1.0 + shift * float(rng.uniform(-0.15, 0.15)),
        pinch=0.45 + shift * float(rng.uniform(-0.07, 0.07)),
        stripe_angle=float(rng.integers(4)) * np.pi / 4,
        tint=tuple(float(v) for v in rng.uniform(-12, 12, 3)),
    )


def _place(shapes: Sequence[Shape], width: int, height: int, rng: np.random.Generator) -> list[Shape]:
    """Give every object a place so that none touches another; an object without room is left out, the first one never."""
    best: list[Shape] = []
    for _ in range(4):
        places: dict[int, tuple[float, float]] = {}
        for i in sorted(range(len(shapes)), key=lambda i: (i != 0, -shapes[i].extent)):
            extent = shapes[i].extent
            low, high = extent + 1.0, np.array([width, height]) - extent - 1.0
            for x, y in rng.uniform(low, high, (40, 2)).tolist():
                if all(math.hypot(x - u, y - v) >= extent + shapes[j].extent + 1.0 for j, (u, v) in places.items()):
                    places[i] = (x, y)
                    break
        if len(places) > len(best):
            best = [_moved(shapes[i], *places[i]) for i in sorted(places)]
        if len(best) == len(shapes):
            break
    return best


def _moved(shape: Shape, x: float, y: float) -> Shape:
    return Shape(**{**shape.__dict__, "x": x, "y": y})


# ---------------------------------------------------------------------------------------------------------------- drawing


def outline(shape: Shape) -> np.ndarray:
    """The object's border as a polygon, (points, 2) of x, y in pixels; anticlockwise in the sense of growing atan2."""
    match shape.shape:
        case "circle":
            angles, radii = np.arange(40) * (2 * np.pi / 40), np.ones(40)
        case "square":
            angles, radii = np.arange(4) * (np.pi / 2) + np.pi / 4, np.full(4, 1.2)
        case "triangle":
            angles, radii = np.arange(3) * (2 * np.pi / 3) - np.pi / 2, np.full(3, 1.25)
        case "star":
            angles, radii = np.arange(10) * (np.pi / 5) - np.pi / 2, np.tile([1.25, 1.25 * shape.pinch], 5)
        case _:
            raise ValueError(f"unknown shape {shape.shape!r}")
    u, v = radii * np.cos(angles) * shape.stretch, radii * np.sin(angles) / shape.stretch
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    return shape.radius * np.stack([cos * u - sin * v, sin * u + cos * v], axis=1) + (shape.x, shape.y)


def _coverage(shape: Shape, width: int, height: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The window (rows, columns) around an object, and in it each pixel's share inside, and inside and dark."""
    x0, y0 = max(int(shape.x - shape.extent), 0), max(int(shape.y - shape.extent), 0)
    x1, y1 = min(int(shape.x + shape.extent) + 2, width), min(int(shape.y + shape.extent) + 2, height)
    u = (np.arange(x0, x1) + 0.5 - shape.x).astype(np.float32)[None, :]
    v = (np.arange(y0, y1) + 0.5 - shape.y).astype(np.float32)[:, None]
    corners = (outline(shape) - (shape.x, shape.y)).astype(np.float32)
    edges = np.roll(corners, -1, axis=0) - corners
    edges /= np.hypot(edges[:, :1], edges[:, 1:])
    # all outlines are star-shaped about the centre, so the edge in a point's direction decides whether the point is inside
    directions = np.arctan2(corners[:, 1], corners[:, 0])
    order = np.argsort(directions)
    sector = order[np.searchsorted(directions[order], np.arctan2(v, u), side="right") - 1]
    depth = edges[sector, 0] * (v - corners[sector, 1]) - edges[sector, 1] * (u - corners[sector, 0])
    inside = np.clip(0.5 + depth, 0, 1)
    window = (slice(y0, y1), slice(x0, x1))
    if shape.texture == "plain":
        return window, inside, np.zeros_like(inside)
    period = 3.0 + 0.3 * shape.radius
    phase = (u * np.cos(shape.stripe_angle) + v * np.sin(shape.stripe_angle)) / period
    to_dark = np.abs(phase - np.floor(phase) - 0.5) - 0.25
    return window, inside, inside * np.clip(0.5 - period * to_dark, 0, 1)


def render(scene: Scene, shift: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw: image (height, width, 3) uint8 RGB, and masks (objects, height, width) bool of the pixels at least half covered."""
    image = np.full((scene.height, scene.width, 3), scene.background, np.float32)
    masks = np.zeros((len(scene.shapes), scene.height, scene.width), bool)
    for mask, shape in zip(masks, scene.shapes, strict=True):
        window, inside, dark = _coverage(shape, scene.width, scene.height)
        colour = np.asarray(COLOURS[shape.colour], np.float32) + np.asarray(shape.tint, np.float32)
        paint = (inside - 0.55 * dark)[..., None] * colour
        image[window] = image[window] * (1 - inside)[..., None] + paint
        mask[window] = inside >= 0.5
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    strength = shift * float(rng.uniform(0.30, 0.45))
    if shift > 0:
        texture = np.asarray(coarse.resize((scene.width, scene.height), Image.Resampling.BICUBIC), np.float32)
        image *= 1 - strength
        image += texture * np.float32(strength)
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= 14 * shift
        image += noise
    image += 0.5
    return np.clip(image, 0, 255, out=image).astype(np.uint8), masks


# ------------------------------------------------------------------------------------------------------------ expressions


def _short_descriptions(scene: Scene, places: Sequence[str | None]) -> list[list[Description]]:
    """For every object all descriptions by attributes and one of `places` that mean it, those of fewest words first."""
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
    """In words; "on the left" counts as "left"."""
    optional = (description.size, description.texture, description.colour, description.place)
    return 1 + sum(word is not None for word in optional)


def _pick(options: Sequence[Description], count: int, rng: np.random.Generator) -> list[Description]:
    """`count` different ones, of hardly more words than the shortest where there are enough of these."""
    short = [option for option in options if _length(option) <= _length(options[0]) + 1] if options else []
    pool = short if len(short) >= count else list(options)[:count]
    return [pool[i] for i in rng.permutation(len(pool))[:count]]


def _with_place(description: Description, rng: np.random.Generator) -> str:
    """ "left red circle" or "red circle on the left"."""
    place, phrase = description.place, description.phrase
    if place is None:
        return phrase
    if place in EXTREMES or (place != "middle" and rng.random() < 0.6):
        return f"{place} {phrase}"
    return f"{phrase} {'in' if place == 'middle' else 'on'} the {place}"


def _refcoco(options: Sequence[Description], rng: np.random.Generator) -> list[str]:
    return [_with_place(description, rng) for description in _pick(options, int(rng.integers(2, 4)), rng)]


def _refcoco_plus(shape: Shape, options: Sequence[Description], rng: np.random.Generator) -> list[str]:
    others = [option for option in options if option.phrase != shape.caption]
    texts = [option.phrase for option in _pick(others, int(rng.integers(1, 3)), rng)]
    return [shape.caption, *(texts or [f"the {shape.caption}"])]


def _refcocog(scene: Scene, target: int, plain: Sequence[Sequence[Description]], rng: np.random.Generator) -> list[str]:
    texts: list[str] = []
    for _ in range(int(rng.integers(1, 3))):
        text = _long_expression(scene, target, plain, rng)
        if text not in texts:
            texts.append(text)
    return texts


def _long_expression(scene: Scene, target: int, plain: Sequence[Sequence[Description]], rng: np.random.Generator) -> str:
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
                return f"the {Description(*words).phrase} {'in' if place == 'middle' else 'on'} the {place}"
        else:
            noun = Description(colour=shape.colour, shape=shape.shape).phrase
            return f"the {noun} that is {shape.size} and {shape.texture}"
    return f"the {shape.caption}"


def _raw(text: str, rng: np.random.Generator) -> str:
    """As typed by somebody in a hurry; never equal to `text`."""
    return (text.upper(), f"{text}.", text.capitalize(), f"{text} ")[rng.integers(4)]


# ------------------------------------------------------------------------------------------------------------------ files


def write_world(root: Path, world: World) -> dict[str, int]:
    """Write the whole world below `root` and return counts (files, images, refs and expressions per set).

    Raises `FileExistsError` when `root` is there and not empty: old files would stay beside the new ones.
    """
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; the world is written into a new folder")
    listings = {"refcoco": _Listing(), "refcoco+": _Listing(), "refcocog": _Listing()}
    image_folder = root / "coco2014" / "train2014"
    image_folder.mkdir(parents=True)
    for number, (split, index) in enumerate(tqdm(list(_scenes(world)), desc="world", unit="scene", disable=None)):
        _write_scene(image_folder, listings, world, split, index, number)
    for name, listing in listings.items():
        _write_listing(root / "ref_seg" / name, name, listing)
    _write_sa1b(root / "sa1b", world)
    counts = {"files": sum(path.is_file() for path in root.rglob("*")), "sa1b_images": world.sa1b_images}
    for name, listing in listings.items():
        counts |= {f"{name}_images": len(listing.images), f"{name}_refs": len(listing.refs)}
        counts[f"{name}_expressions"] = listing.sentences
    return counts


def _scenes(world: World) -> Iterator[tuple[str, int]]:
    sizes = (world.train_images, world.val_images, world.test_images, world.test_images, world.test_images)
    for split, size in zip(SPLITS, sizes, strict=False):
        for index in range(size):
            yield split, index


def set_splits(split: str, index: int) -> dict[str, str]:
    """Referring set -> its split of this scene; sets that do not have the scene are left out. See the module's table."""
    if split == "test":
        return {"refcocog": "test"}
    splits = {"refcoco": split, "refcoco+": split}
    if split == "train":
        splits["refcocog"] = {7: "val", 19: "test"}.get(index % 25, "train")
    elif split == "val":
        splits["refcocog"] = "train" if index % 25 == 7 else "val"
    return splits


def _write_scene(folder: Path, listings: dict[str, _Listing], world: World, split: str, index: int, number: int) -> None:
    scene, rng = make_scene(world.seed, split, index, world.shift)
    pixels, masks = render(scene, world.shift, rng)
    image_id = 1009 + 37 * number  # ids of the published sets are neither dense nor start at 0
    name = f"COCO_train2014_{image_id:012d}.jpg"
    Image.fromarray(pixels).save(folder / name, quality=95)
    image = {
        "license": 1, "file_name": name, "coco_url": f"http://images.cocodataset.org/train2014/{name}", "height": scene.height,
        "width": scene.width, "date_captured": "2013-11-21 23:06:41", "flickr_url": "", "id": image_id,
    }  # fmt: skip
    annotations = [_annotation(scene, i, masks[i], image_id, index) for i in range(len(scene.shapes))]
    referred = [i for i in range(len(scene.shapes)) if i == 0 or rng.random() >= 0.1]
    crowd = [_crowd(masks.any(0), image_id)] if index % 10 == 5 else []
    anywhere = _short_descriptions(scene, (None, *SIDES, *EXTREMES))
    plain = [[option for option in options if option.place is None] for options in anywhere]
    for name_of_set, its_split in set_splits(split, index).items():
        listing = listings[name_of_set]
        listing.images.append(image)
        listing.annotations += [*annotations, *crowd]
        kinds = {"testA": SHAPES[:2], "testB": SHAPES[2:]}.get(its_split, SHAPES)
        for i in referred:
            if scene.shapes[i].shape not in kinds:
                continue
            match name_of_set:
                case "refcoco":
                    texts = _refcoco(anywhere[i], rng)
                case "refcoco+":
                    texts = _refcoco_plus(scene.shapes[i], plain[i], rng)
                case _:
                    texts = _refcocog(scene, i, plain, rng)
            _add_ref(listing, annotations[i], name, i, its_split, texts, rng)


def _annotation(scene: Scene, i: int, mask: np.ndarray, image_id: int, index: int) -> dict[str, Any]:
    shape = scene.shapes[i]
    border = outline(shape)
    polygons = [border]
    if index % 10 == 3 and shape.shape != "star":  # one object in two overlapping parts, as some of COCO's
        polygons = [_cut(border, shape.x + 0.2 * shape.radius, 1), _cut(border, shape.x - 0.2 * shape.radius, -1)]
    return {
        "segmentation": [np.round(polygon, 2).ravel().tolist() for polygon in polygons],
        "area": float(mask.sum()), "iscrowd": 0, "image_id": image_id, "bbox": _bbox(mask),
        "category_id": CATEGORIES[shape.shape], "id": 300_000 + 11 * image_id + 2 * i,
    }  # fmt: skip


def _cut(polygon: np.ndarray, x: float, side: int) -> np.ndarray:
    """The part of a convex polygon left (side 1) or right (side -1) of a vertical line."""
    points: list[np.ndarray] = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if side * (x - a[0]) >= 0:
            points.append(a)
        if (a[0] - x) * (b[0] - x) < 0:
            points.append(a + (b - a) * (x - a[0]) / (b[0] - a[0]))
    return np.array(points)


def _crowd(mask: np.ndarray, image_id: int) -> dict[str, Any]:
    """A crowd row as COCO has them: uncompressed RLE. No ref ever points to one."""
    column_major = mask.ravel(order="F").astype(np.int8)
    borders = np.flatnonzero(np.diff(column_major, prepend=0, append=1 - column_major[-1]))
    counts = np.diff(borders, prepend=0).tolist()
    return {
        "segmentation": {"counts": counts, "size": list(mask.shape)},
        "area": float(mask.sum()), "iscrowd": 1, "image_id": image_id, "bbox": _bbox(mask),
        "category_id": CATEGORIES["circle"], "id": 900_000_000 + image_id,
    }  # fmt: skip


def _bbox(mask: np.ndarray) -> list[float]:
    """(x, y, width, height) in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1)]


def _add_ref(
    listing: _Listing, annotation: dict[str, Any], image: str, i: int, split: str, texts: Sequence[str], rng: np.random.Generator
) -> None:
    first = listing.sentences
    listing.sentences += len(texts)
    listing.refs.append(
        {
            "sent_ids": list(range(first, listing.sentences)),
            "file_name": f"{image.removesuffix('.jpg')}_{i}.jpg",
            "ann_id": annotation["id"],
            "ref_id": len(listing.refs),
            "image_id": annotation["image_id"],
            "split": split,
            "category_id": annotation["category_id"],
            "sentences": [
                {"tokens": text.split(), "raw": _raw(text, rng), "sent_id": first + k, "sent": text}
                for k, text in enumerate(texts)
            ],
        }
    )


def _write_listing(folder: Path, name: str, listing: _Listing) -> None:
    folder.mkdir(parents=True)
    instances = {
        "info": {"description": "synthetic world in the layout of COCO 2014", "version": "1.0", "year": 2014},
        "images": listing.images,
        "licenses": [{"id": 1, "name": "Apache License 2.0", "url": "http://www.apache.org/licenses/LICENSE-2.0"}],
        "annotations": listing.annotations,
        "categories": [{"supercategory": "shape", "id": id_, "name": shape} for shape, id_ in CATEGORIES.items()],
    }
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    refs = folder / ("refs(umd).p" if name == "refcocog" else "refs(unc).p")
    refs.write_bytes(python2_pickle(listing.refs) if name == "refcoco" else pickle.dumps(listing.refs, protocol=2))


def python2_pickle(value: Any) -> bytes:
    """Lists, dicts, ASCII text and numbers as Python 2 pickled them by protocol 0: text as byte strings (`S'...'`)."""
    keys = itertools.count(1)

    def put() -> str:
        return f"p{next(keys)}\n"

    def emit(item: Any) -> Iterator[str]:
        if isinstance(item, dict):
            yield f"(d{put()}"
            for key, content in item.items():
                yield from (*emit(key), *emit(content), "s")
        elif isinstance(item, list):
            yield f"(l{put()}"
            for content in item:
                yield from (*emit(content), "a")
        elif isinstance(item, str):
            yield f"S{item!r}\n{put()}"
        else:
            yield f"I{item}\n"

    return ("".join(emit(value)) + ".").encode("ascii")


def _write_sa1b(folder: Path, world: World) -> None:
    """Every other image lies flat in the folder, the others in one tar shard whose members begin with `./`."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "sa_000000.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
        for index in range(world.sa1b_images):
            stem, files = _sa1b_image(world, index)
            for suffix, content in files.items():
                if index % 2 == 0:
                    (folder / f"{stem}{suffix}").write_bytes(content)
                else:
                    member = tarfile.TarInfo(f"./{stem}{suffix}")
                    member.size = len(content)
                    shard.addfile(member, BytesIO(content))


def _sa1b_image(world: World, index: int) -> tuple[str, dict[str, bytes]]:
    scene, rng = make_scene(world.seed, "sa1b", index, world.shift)
    pixels, masks = render(scene, world.shift, rng)
    image_id = 223_750 + 3 * index
    jpeg = BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=95)
    annotations = []
    for i, (shape, mask) in enumerate(zip(scene.shapes, masks, strict=True)):
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                "id": 527_000_000 + 101 * image_id + 3 * i,
                "segmentation": {"size": [scene.height, scene.width], "counts": rle["counts"].decode("ascii")},
                "bbox": _bbox(mask),
                "area": int(mask.sum()),
                "predicted_iou": float(rng.uniform(0.88, 1.0)),
                "stability_score": float(rng.uniform(0.92, 1.0)),
                "crop_box": [0.0, 0.0, float(scene.width), float(scene.height)],
                "point_coords": [[shape.x, shape.y]],
            }
        )
    image = {"image_id": image_id, "width": scene.width, "height": scene.height, "file_name": f"sa_{image_id}.jpg"}
    content = json.dumps({"image": image, "annotations": annotations}).encode("ascii")
    return f"sa_{image_id}", {".jpg": jpeg.getvalue(), ".json": content}


def checksum(root: Path) -> str:
    """sha256 over the names and contents of all files below `root`."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
