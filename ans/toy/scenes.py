"""Scenes of coloured shapes: what is in them, what a description of an object means, and how they are drawn.

Every random choice of a scene comes from `np.random.default_rng([seed, split, index])`, so a scene depends on nothing but those
three numbers and `shift`, which changes pixels and proportions, not the language.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

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

NEW_COLOURS = {"red": (205, 50, 150), "green": (45, 165, 200), "orange": (180, 180, 40)}
"""What three colours are in a world with new colours: the tiny base takes them for purple, blue and yellow. There only the colour
tells the objects of an image apart (their stripes never do), so that who calls them wrong finds the wrong ones."""

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

CLEAR = 0.06
"""A comparison of positions counts as clear from this difference on, in fractions of the image's width or height."""

DRIFT = 0.15
"""How far an object moves at most between two frames, in fractions of the image's short side, along x and along y."""

SPLITS = ("train", "val", "testA", "testB", "test", "sa1b", "sav", "openimages", "describe")
SPLITS += ("reasonseg", "sav_video", "own", "grounded")
"""Groups of scenes; the position is the second number of a scene's seed, so new ones come last."""


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


# ---------------------------------------------------------------------------------------------------------------- meaning


def matches(scene: Scene, description: Description, margin: float = 0.0) -> list[int]:
    """Return positions in `scene.shapes` of the objects that `description` holds of.

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
    at = scene.centres
    if description.landmark is not None:
        anchors = matches(scene, description.landmark)
        if len(anchors) != 1:
            return []
        anchor = anchors[0]
        found = [i for i in found if i != anchor and _beyond(description.relation, at[i], at[anchor]) > margin]
    if description.place in EXTREMES:
        side = "left of" if description.place == "leftmost" else "right of"
        found = [i for i in found if all(_beyond(side, at[i], at[j]) > margin for j in found if j != i)]
    elif description.place is not None:
        found = [i for i in found if _inside_side(description.place, at[i]) > margin]
    return found


def refers(scene: Scene, description: Description) -> int | None:
    """Return the one object that `description` means beyond doubt, read strictly as well as leniently; else None."""
    strict = matches(scene, description, CLEAR)
    return strict[0] if len(strict) == 1 and matches(scene, description, -CLEAR) == strict else None


def where(place: str) -> str:
    """Return a side in words: "on the left", "in the middle"."""
    return f"{'in' if place == 'middle' else 'on'} the {place}"


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


def make_scene(seed: int, split: str, index: int, shift: float, new_colours: bool = False) -> tuple[Scene, np.random.Generator]:
    """Return the scene `index` of `split`, and its generator for what follows. Of testA and testB the first object is of their kind."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    width, height = IMAGE_SIZES[rng.integers(len(IMAGE_SIZES))]
    first = {"testA": SHAPES[:2], "testB": SHAPES[2:]}.get(split, SHAPES)
    grey = rng.uniform(140, 215)
    background = _rgb(grey + rng.uniform(-8, 8, 3))
    while True:
        shapes = [_style(shape, width, height, shift, new_colours, rng) for shape in _choose_objects(first, new_colours, rng)]
        placed = _place(shapes, width, height, rng)
        if len(placed) >= 2:
            return Scene(width, height, tuple(placed), background), rng


def _rgb(values: np.ndarray) -> tuple[float, float, float]:
    """Return three values, (3,), as a colour or a change of one."""
    red, green, blue = values.tolist()
    return red, green, blue


def _choose_objects(first: tuple[str, ...], alike: bool, rng: np.random.Generator) -> list[Shape]:
    """Return 2 to 5 objects of different captions. Half of them copy most of an earlier one: else colour alone would tell all apart.
    `alike`: all have the first one's size and shape, so that colour alone does."""
    objects: list[Shape] = []
    count = int(rng.integers(2, 6))
    while len(objects) < count:
        shape = Shape(
            size="small" if rng.random() < 0.6 else "large",
            texture="plain" if rng.random() < 0.65 else "striped",
            colour=list(COLOURS)[rng.integers(len(COLOURS))],
            shape=SHAPES[rng.integers(len(SHAPES))] if objects else first[rng.integers(len(first))],
        )
        if objects and rng.random() < 0.5:
            model = objects[rng.integers(len(objects))]
            changed = ATTRIBUTES[rng.integers(len(ATTRIBUTES))]
            shape = replace(model, **{changed: getattr(shape, changed)})
        if objects and alike:
            shape = replace(shape, size=objects[0].size, shape=objects[0].shape)
        # "plain" is left out of captions, so texture alone must never be what tells two objects apart
        if all((shape.size, shape.colour, shape.shape) != (other.size, other.colour, other.shape) for other in objects):
            objects.append(shape)
    return objects


def _style(shape: Shape, width: int, height: int, shift: float, new_colours: bool, rng: np.random.Generator) -> Shape:
    known = np.asarray(COLOURS[shape.colour])
    other = np.asarray(NEW_COLOURS.get(shape.colour, known)) - known if new_colours else 0
    return Shape(
        *(getattr(shape, name) for name in ATTRIBUTES),
        radius=float(rng.uniform(*RADII[shape.size])) * min(width, height),
        angle=float(rng.uniform(-0.2, 0.2)),
        stretch=1.0 + shift * float(rng.uniform(-0.15, 0.15)),
        pinch=0.45 + shift * float(rng.uniform(-0.07, 0.07)),
        stripe_angle=float(rng.integers(4)) * np.pi / 4,
        tint=_rgb(rng.uniform(-12, 12, 3) + other),
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
    return replace(shape, x=x, y=y)


def drift(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a later moment: one object after the other moves to a free place nearby; one that has none stays where it is."""
    shapes = list(scene.shapes)
    furthest = DRIFT * min(scene.width, scene.height)
    for i, shape in enumerate(shapes):
        margin = shape.extent + 1.0
        others = [other for other in shapes if other is not shape]
        for dx, dy in rng.uniform(-furthest, furthest, (40, 2)).tolist():
            x, y = shape.x + dx, shape.y + dy
            inside = margin <= x <= scene.width - margin and margin <= y <= scene.height - margin
            if inside and all(math.hypot(x - other.x, y - other.y) >= margin + other.extent for other in others):
                shapes[i] = _moved(shape, x, y)
                break
    return replace(scene, shapes=tuple(shapes))


# ---------------------------------------------------------------------------------------------------------------- drawing


def outline(shape: Shape) -> np.ndarray:
    """Return the object's border as a polygon, (points, 2) of x, y in pixels; anticlockwise in the sense of growing atan2."""
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
    """Return the window (rows, columns) around an object, and in it each pixel's share inside, and inside and dark."""
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


def render(
    scene: Scene, shift: float, rng: np.random.Generator, noise_rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw: image (height, width, 3) uint8 RGB, and masks (objects, height, width) bool of the pixels at least half covered.

    The background's texture comes from `rng`, and so does the noise unless a further frame brings its own `noise_rng`.
    """
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
        noise = (noise_rng or rng).standard_normal(image.shape, dtype=np.float32)
        noise *= 14 * shift
        image += noise
    image += 0.5
    return np.clip(image, 0, 255, out=image).astype(np.uint8), masks


def bbox(mask: np.ndarray) -> list[float]:
    """Return (x, y, width, height) of a mask, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1)]
