"""The sets of the synthetic world that nothing is trained on by default, a few images of each: gRefCOCO, ReasonSeg, videos of
SA-V, a folder of one's own, and SA-1B's further layouts. What is unusual in the published files is in them; see the readers in
`sources/`.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ans.config.schema import World
from ans.toy.scenes import CATEGORIES, COLOURS, SHAPES, Description, Scene, bbox, drift, make_scene, matches, outline, render
from ans.toy.world_loops import jpeg, rle, sa1b_image

GREF_IMAGES = {"train": 12, "val": 4, "testA": 2, "testB": 2}
VIDEOS = 3
ANNOTATED = 7
"""Annotated frames per video, one in four of its frames."""

OWN_IMAGES = 6


def write(
    root: Path, world: World, scenes: Sequence[tuple[str, int]], refcoco: dict[str, Any], refs: list[dict[str, Any]]
) -> None:
    """Write them below `root`. `refcoco` and `refs` are what RefCOCO's two files hold, `scenes` the scene of each of its
    images.
    """
    _write_grefcoco(root / "ref_seg" / "grefcoco", world, scenes, refcoco, refs)
    _write_reason_seg(root / "reason_seg" / "ReasonSeg", world)
    _write_videos(root / "sav" / "videos", world)
    _write_own(root / "own", world)
    _write_sa1b(root / "sa1b", world)


# -------------------------------------------------------------------------------------------------------------- gRefCOCO


def _write_grefcoco(
    folder: Path, world: World, scenes: Sequence[tuple[str, int]], refcoco: dict[str, Any], refs: list[dict[str, Any]]
) -> None:
    """Write per image one ref of one object, one of two, and one of none; in one of four the two are joined by a crowd, which is no
    target. The number of a single object is now and then not in a list, and `file_name` with or without its suffix."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for ref in refs:
        by_image[ref["image_id"]].append(ref)
    crowds = {row["image_id"]: row["id"] for row in refcoco["annotations"] if row["iscrowd"]}
    wanted, left = [], dict(GREF_IMAGES)
    for image, (split, index) in zip(refcoco["images"], scenes, strict=False):
        if left.get(split) and len(by_image[image["id"]]) >= 2:
            left[split] -= 1
            wanted.append((image, split, index))
    found: list[dict[str, Any]] = []
    sentences = 0
    for number, (image, split, index) in enumerate(wanted):
        one, two = by_image[image["id"]][:2]
        scene, _ = make_scene(world.seed, split, index, world.shift, world.new_colours)
        texts = [ref["sentences"][0]["sent"] for ref in (one, two)]
        pair = [one["ann_id"], two["ann_id"]]
        if image["id"] in crowds:
            pair.append(crowds[image["id"]])
        colour, shape = next(
            (colour, shape)
            for colour, shape in product(COLOURS, SHAPES)
            if not matches(scene, Description(colour=colour, shape=shape))
        )
        for ids, text in (
            (one["ann_id"] if number % 2 else [one["ann_id"]], texts[0]),
            (pair, f"{texts[0]} and {texts[1]}"),
            ([-1], f"{colour} {shape}"),
        ):
            found.append(
                {
                    "image_id": image["id"],
                    "split": split,
                    "ann_id": ids,
                    "category_id": _categories(ids, one, two),
                    "ref_id": 7 * len(found) + 3,
                    "file_name": one["file_name"] if number % 2 else image["file_name"],
                    "sent_ids": [sentences],
                    "no_target": ids == [-1],
                    "sentences": [{"tokens": text.split(), "raw": text.capitalize(), "sent_id": sentences, "sent": text}],
                }
            )
            sentences += 1
    kept = {image["id"] for image, _, _ in wanted}
    instances = refcoco | {
        "images": [image for image in refcoco["images"] if image["id"] in kept],
        "annotations": [row for row in refcoco["annotations"] if row["image_id"] in kept],
    }
    folder.mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    (folder / "grefs(unc).json").write_text(json.dumps(found), encoding="utf-8")


def _categories(ids: Any, one: dict[str, Any], two: dict[str, Any]) -> Any:
    if ids == [-1]:
        return [-1]
    return one["category_id"] if isinstance(ids, int) else [one["category_id"], two["category_id"]][: len(ids)]


# ------------------------------------------------------------------------------------------------------------- ReasonSeg


def reason_images(world: World) -> dict[str, int]:
    """Return the number of images of each split of ReasonSeg."""
    half = (world.reasonseg_images + 2) // 2
    return {"train": world.reasonseg_images, "val": half, "test": half}


def _write_reason_seg(folder: Path, world: World) -> None:
    """Write outlines of one object as target; a smaller piece in its middle is to be ignored in every third, a flag is in every
    fourth. Every second JSON is in cp1252, with a letter that UTF-8 has otherwise."""
    for place, (split, count) in enumerate(reason_images(world).items()):
        (folder / split).mkdir(parents=True)
        for index in range(count):
            number = place * 10_000 + index
            scene, rng = make_scene(world.seed, "reasonseg", number, world.shift, world.new_colours)
            pixels, _ = render(scene, world.shift, rng)
            shape = scene.shapes[0]
            shapes = [{"label": "target", "shape_type": "polygon", "points": np.round(outline(shape), 1).tolist()}]
            if index % 3 == 1:
                middle = outline(replace(shape, radius=0.4 * shape.radius))
                shapes.insert(0, {"label": "Ignore", "shape_type": "polygon", "points": np.round(middle, 1).tolist()})
            if index % 4 == 2:
                shapes.append({"label": "flag", "shape_type": "polygon", "points": [[0, 0], [scene.width, 0], [0, scene.height]]})
            sentence = bool(index % 2)
            text = (
                f"Which of the things in this caf\u00e9 is the {shape.caption}?"
                if sentence
                else f"{shape.caption} \u2013 caf\u00e9"
            )
            texts = [text, f"the {shape.caption}"]
            content = json.dumps({"text": texts, "is_sentence": sentence, "shapes": shapes}, ensure_ascii=False)
            stem = f"{5_000_000 + 1_237 * number}_{number:02d}"
            (folder / split / f"{stem}.json").write_bytes(content.encode("cp1252" if index % 2 else "utf-8"))
            (folder / split / f"{stem}.jpg").write_bytes(jpeg(pixels))


# ----------------------------------------------------------------------------------------------------------------- SA-V


def _write_videos(folder: Path, world: World) -> None:
    """Write extracted frames with JSONs of both kinds, and one video as val has it, with PNGs. The first object is away in the third
    annotated frame, the last comes with the fourth; in the last frame of an auto JSON the first one's mask is None."""
    for number in range(VIDEOS):
        scene, rng = make_scene(world.seed, "sav_video", number, world.shift, world.new_colours)
        frames = []
        for i in range(ANNOTATED):
            gone = {0} if i == 2 else {len(scene.shapes) - 1} if i < 3 else set()
            kept = [k for k in range(len(scene.shapes)) if k not in gone]
            _, background = make_scene(world.seed, "sav_video", number, world.shift, world.new_colours)  # the same in every frame
            shown = replace(scene, shapes=tuple(scene.shapes[k] for k in kept))
            pixels, drawn = render(shown, world.shift, background, noise_rng=rng)
            masks = np.zeros((len(scene.shapes), scene.height, scene.width), bool)
            masks[kept] = drawn
            frames.append((pixels, masks))
            scene = drift(scene, rng)
        name = f"sav_{11 * number + 1:06d}"
        if number == VIDEOS - 1:
            _write_val(folder / "sav_val", name, frames)
            continue
        place = folder / "sav_train" / "sav_000"
        (place / name).mkdir(parents=True)
        for i, (pixels, _) in enumerate(frames):
            (place / name / f"{4 * i:05d}.jpg").write_bytes(jpeg(pixels))
        for kind in ("manual", "auto"):
            (place / f"{name}_{kind}.json").write_text(json.dumps(_masklets(name, kind, frames)), encoding="utf-8")


def _masklets(name: str, kind: str, frames: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    objects, height, width = frames[0][1].shape
    areas = np.array([masks.sum((1, 2)) for _, masks in frames])
    rles: list[list[Any]] = [[rle(mask) for mask in masks] for _, masks in frames]
    if kind == "auto":
        rles[-1][0], areas[-1, 0] = None, 0
    seen = areas > 0
    means = areas.sum(0) / seen.sum(0)
    first = seen.argmax(0)
    changes = [int(np.count_nonzero(np.diff(seen[first[k] :, k].astype(int)))) for k in range(objects)]
    count = 4 * (len(frames) - 1) + 3
    return {
        "video_id": name, "video_duration": count / 24, "video_frame_count": float(count), "video_height": float(height),
        "video_width": float(width), "video_resolution": float(height * width), "video_environment": "Indoor",
        "video_split": "train", "masklet": rles, "masklet_id": list(range(objects)),
        "masklet_size_rel": (means / (height * width)).tolist(), "masklet_size_abs": means.tolist(),
        "masklet_size_bucket": ["small"] * objects, "masklet_visibility_changes": changes,
        "masklet_first_appeared_frame": [float(at) if kind == "manual" else int(at) for at in first],
        "masklet_frame_count": [len(frames)] * objects, "masklet_edited_frame_count": [0] * objects,
        "masklet_type": [kind] * objects,
        "masklet_stability_score": [None] * objects if kind == "manual" else [[1.0] * objects for _ in frames],
        "masklet_num": objects,
    }  # fmt: skip


def _write_val(folder: Path, name: str, frames: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write every frame but only annotated masks; no PNG where the object is not seen."""
    (folder / "JPEGImages_24fps" / name).mkdir(parents=True)
    for i, (pixels, masks) in enumerate(frames):
        for number in range(4 * i, min(4 * i + 4, 4 * len(frames) - 3)):
            (folder / "JPEGImages_24fps" / name / f"{number:05d}.jpg").write_bytes(jpeg(pixels))
        for k, mask in enumerate(masks):
            place = folder / "Annotations_6fps" / name / f"{k:03d}"
            place.mkdir(parents=True, exist_ok=True)
            if mask.any():
                Image.fromarray(255 * mask.astype(np.uint8)).save(place / f"{4 * i:05d}.png")
    (folder / "sav_val.txt").write_text(f"{name}\n", encoding="ascii")


# -------------------------------------------------------------------------------------------------- your own, and SA-1B


def _write_own(folder: Path, world: World) -> None:
    """Write every other image with PNG masks, the others with COCO's JSON; some objects without a text, some with two."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    lines, images, annotations = [], [], []
    for index in range(OWN_IMAGES):
        scene, rng = make_scene(world.seed, "own", index, world.shift, world.new_colours)
        pixels, masks = render(scene, world.shift, rng)
        name = f"photo_{index}.{'png' if index % 3 == 2 else 'jpg'}"
        Image.fromarray(pixels).save(folder / "images" / name, quality=95)
        images.append({"id": index, "file_name": name, "height": scene.height, "width": scene.width})
        for k, (shape, mask) in enumerate(zip(scene.shapes, masks, strict=True)):
            line: dict[str, Any] = {"image": name}
            if index % 2:
                annotations.append(_own_annotation(scene, k, mask, index))
                line["annotation"] = annotations[-1]["id"]
            else:
                line["mask"] = f"photo_{index}_{k}.png"
                Image.fromarray(255 * mask.astype(np.uint8)).save(folder / "masks" / line["mask"])
            if k != 1:
                line["text"] = [shape.caption, f"the {shape.caption}"] if k == 0 else shape.caption
            lines.append(line | ({"split": "val"} if index == OWN_IMAGES - 1 else {}))
    content = {"images": images, "annotations": annotations, "categories": [{"id": i, "name": n} for n, i in CATEGORIES.items()]}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "expressions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _own_annotation(scene: Scene, k: int, mask: np.ndarray, index: int) -> dict[str, Any]:
    return {
        "id": 10 * index + k, "image_id": index, "category_id": CATEGORIES[scene.shapes[k].shape], "iscrowd": 0,
        "segmentation": [np.round(outline(scene.shapes[k]), 2).ravel().tolist()], "area": int(mask.sum()), "bbox": bbox(mask),
    }  # fmt: skip


def _write_sa1b(folder: Path, world: World) -> None:
    """Write two images more in a subfolder, and two apart in `img/` and `js/`."""
    for number, places in enumerate((("sa_000001", "sa_000001"), ("sa_000001", "sa_000001"), ("img", "js"), ("img", "js"))):
        stem, files, _ = sa1b_image(world, world.sa1b_images + number)
        for place, suffix in zip(places, (".jpg", ".json"), strict=True):
            (folder / place).mkdir(exist_ok=True)
            (folder / place / f"{stem}{suffix}").write_bytes(files[suffix])
