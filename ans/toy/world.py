"""The synthetic world: scenes of coloured shapes, written in the very layouts of RefCOCO, RefCOCO+, RefCOCOg and of the sets in
`world_loops.py` and `world_more.py`. One seed gives byte-identical files.

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
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ans.config.schema import World
from ans.toy import expressions, world_captions, world_grounded, world_loops, world_more, world_videos
from ans.toy.scenes import (
    CATEGORIES,
    EXTREMES,
    SHAPES,
    SIDES,
    SPLITS,
    Scene,
    bbox,
    make_scene,
    outline,
    render,
)


@dataclass
class _Listing:
    """What one referring set lists: the content of its instances.json and refs pickle."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    refs: list[dict[str, Any]] = field(default_factory=list)
    sentences: int = 0


def write_world(root: Path, world: World) -> dict[str, int]:
    """Write the whole world below `root` and return counts (files, images, refs and expressions per set).

    Raises `FileExistsError` when `root` is there and not empty: old files would stay beside the new ones.
    """
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; the world is written into a new folder")
    listings = {"refcoco": _Listing(), "refcoco+": _Listing(), "refcocog": _Listing()}
    image_folder = root / "coco2014" / "train2014"
    image_folder.mkdir(parents=True)
    objects: world_captions.Objects = {}
    for number, (split, index) in enumerate(tqdm(list(_scenes(world)), desc="world", unit="scene", disable=None)):
        scene, path = _write_scene(image_folder, listings, world, split, index, number)
        objects[path.relative_to(root).as_posix()] = world_captions.known(scene)
    for name, listing in listings.items():
        _write_listing(root / "ref_seg" / name, name, listing)
    counts = world_loops.write(root, world, objects)
    scenes = [scene for scene in _scenes(world) if "refcoco" in set_splits(*scene)]
    world_more.write(root, world, scenes, _instances(listings["refcoco"]), listings["refcoco"].refs)
    if world.grounded_images:
        world_grounded.write(root, world)
        counts["grounded"] = world.grounded_images
    if world.videos:
        world_videos.write(root / "videos", world)
        counts["videos"] = world.videos
    if world.captioned_images:
        objects |= world_captions.write_captioned(root / "captioned", world)
    world_captions.write_facts(root, objects)
    counts["files"] = sum(path.is_file() for path in root.rglob("*"))
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
    """Return referring set -> its split of this scene; sets that do not have the scene are left out. See the module's table."""
    if split == "test":
        return {"refcocog": "test"}
    splits = {"refcoco": split, "refcoco+": split}
    if split == "train":
        splits["refcocog"] = {7: "val", 19: "test"}.get(index % 25, "train")
    elif split == "val":
        splits["refcocog"] = "train" if index % 25 == 7 else "val"
    return splits


def _write_scene(
    folder: Path, listings: dict[str, _Listing], world: World, split: str, index: int, number: int
) -> tuple[Scene, Path]:
    """Write the image and list what refers to its objects; its scene, and its file."""
    scene, rng = make_scene(world.seed, split, index, world.shift, world.new_colours)
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
    crowd = [_crowd(np.any(masks, axis=0), image_id)] if index % 10 == 5 else []
    anywhere = expressions.short_descriptions(scene, (None, *SIDES, *EXTREMES))
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
                    texts = expressions.like_refcoco(anywhere[i], rng)
                case "refcoco+":
                    texts = expressions.like_refcoco_plus(scene.shapes[i], plain[i], rng)
                case _:
                    texts = expressions.like_refcocog(scene, i, plain, rng)
            _add_ref(listing, annotations[i], name, i, its_split, texts, rng)
    return scene, folder / name


def _annotation(scene: Scene, i: int, mask: np.ndarray, image_id: int, index: int) -> dict[str, Any]:
    shape = scene.shapes[i]
    border = outline(shape)
    polygons = [border]
    if index % 10 == 3 and shape.shape != "star":  # one object in two overlapping parts, as some of COCO's
        polygons = [_cut(border, shape.x + 0.2 * shape.radius, 1), _cut(border, shape.x - 0.2 * shape.radius, -1)]
    return {
        "segmentation": [np.round(polygon, 2).ravel().tolist() for polygon in polygons],
        "area": float(mask.sum()), "iscrowd": 0, "image_id": image_id, "bbox": bbox(mask),
        "category_id": CATEGORIES[shape.shape], "id": 300_000 + 11 * image_id + 2 * i,
    }  # fmt: skip


def _cut(polygon: np.ndarray, x: float, side: int) -> np.ndarray:
    """Return the part of a convex polygon left (side 1) or right (side -1) of a vertical line."""
    points: list[np.ndarray] = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if side * (x - a[0]) >= 0:
            points.append(a)
        if (a[0] - x) * (b[0] - x) < 0:
            points.append(a + (b - a) * (x - a[0]) / (b[0] - a[0]))
    return np.array(points)


def _crowd(mask: np.ndarray, image_id: int) -> dict[str, Any]:
    """Return a crowd row as COCO has them: uncompressed RLE. No ref ever points to one."""
    column_major = mask.ravel(order="F").astype(np.int8)
    borders = np.flatnonzero(np.diff(column_major, prepend=0, append=1 - column_major[-1]))
    counts = np.diff(borders, prepend=0).tolist()
    return {
        "segmentation": {"counts": counts, "size": list(mask.shape)},
        "area": float(mask.sum()), "iscrowd": 1, "image_id": image_id, "bbox": bbox(mask),
        "category_id": CATEGORIES["circle"], "id": 900_000_000 + image_id,
    }  # fmt: skip


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
                {"tokens": text.split(), "raw": expressions.as_typed(text, rng), "sent_id": first + k, "sent": text}
                for k, text in enumerate(texts)
            ],
        }
    )


def _instances(listing: _Listing) -> dict[str, Any]:
    return {
        "info": {"description": "synthetic world in the layout of COCO 2014", "version": "1.0", "year": 2014},
        "images": listing.images,
        "licenses": [{"id": 1, "name": "Apache License 2.0", "url": "http://www.apache.org/licenses/LICENSE-2.0"}],
        "annotations": listing.annotations,
        "categories": [{"supercategory": "shape", "id": id_, "name": shape} for shape, id_ in CATEGORIES.items()],
    }


def _write_listing(folder: Path, name: str, listing: _Listing) -> None:
    folder.mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(_instances(listing)), encoding="utf-8")
    refs = folder / ("refs(umd).p" if name == "refcocog" else "refs(unc).p")
    refs.write_bytes(python2_pickle(listing.refs) if name == "refcoco" else pickle.dumps(listing.refs, protocol=2))
    if name == "refcocog":  # its other split has no test images
        others = [ref for ref in listing.refs if ref["split"] != "test"]
        (folder / "refs(google).p").write_bytes(pickle.dumps(others, protocol=2))


def python2_pickle(value: Any) -> bytes:
    """Pickle lists, dicts, ASCII text and numbers as Python 2 pickled them by protocol 0: text as byte strings (`S'...'`)."""
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


def checksum(root: Path) -> str:
    """Return sha256 over the names and contents of all files below `root`."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
