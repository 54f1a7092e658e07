"""What is true of the world's objects: `facts.json` (see `ans/facts.py`), and, for studies, images whose masks have captions that are
known to be true, or known to be another object's.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ans.config.schema import World
from ans.toy.scenes import COLOURS, RADII, SHAPES, TEXTURES, Scene, make_scene, render

FACTS = {"size": list(RADII), "texture": [TEXTURES[1]], "colour": list(COLOURS), "shape": list(SHAPES)}
"""Fact -> the words that state it; an object that is not called striped is plain."""

Objects = dict[str, list[dict[str, Any]]]
"""Locator of an image -> its objects, as in `facts.json`."""


def known(scene: Scene) -> list[dict[str, Any]]:
    """Return centre, in fractions of width and height, and true caption of every object."""
    return [{"x": x, "y": y, "caption": shape.caption} for (x, y), shape in zip(scene.centres, scene.shapes, strict=True)]


def write_facts(root: Path, objects: Objects) -> None:
    """Write `facts.json` below `root`."""
    (root / "facts.json").write_text(json.dumps({"facts": FACTS, "objects": objects}), encoding="utf-8")


def write_captioned(folder: Path, world: World) -> Objects:
    """Write the first scenes of SA-1B as two folders of one's own data, `true` and `wrong`: each object with its true caption, and with
    that of the next object of its image. Returns the objects by locator, `folder` being below the folder of the data sets."""
    objects: Objects = {}
    lines: dict[str, list[str]] = {"true": [], "wrong": []}
    for kind in lines:
        for part in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True)
    for index in range(world.captioned_images):
        scene, rng = make_scene(world.seed, "sa1b", index, world.shift, world.new_colours)
        pixels, masks = render(scene, world.shift, rng)
        captions = [shape.caption for shape in scene.shapes]
        texts = {"true": captions, "wrong": [*captions[1:], captions[0]]}
        for kind, of_kind in texts.items():
            name = f"scene_{index:04d}.jpg"
            Image.fromarray(pixels).save(folder / kind / "images" / name, quality=95)
            objects[f"{folder.name}/{kind}/images/{name}"] = known(scene)
            for k, (mask, text) in enumerate(zip(masks, of_kind, strict=True)):
                png = f"scene_{index:04d}_{k}.png"
                Image.fromarray(255 * mask.astype(np.uint8)).save(folder / kind / "masks" / png)
                lines[kind].append(json.dumps({"image": name, "mask": png, "text": text}))
    for kind, of_kind in lines.items():
        (folder / kind / "expressions.jsonl").write_text("".join(f"{line}\n" for line in of_kind), encoding="utf-8")
    return objects
