"""The sets of the synthetic world that the two loops learn from: SA-1B, pairs of SA-V, Open Images and Describe Anything.

Masks without text in the first three, masks with captions in the last; each in its published layout (see the readers in
`sources/`), with what the published files are known to vary in.
"""

import csv
import json
import pickle
import tarfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ans.config.schema import World
from ans.toy.scenes import CATEGORIES, Scene, bbox, drift, make_scene, render
from ans.toy.world_captions import Objects, known

CLASSES = {shape: f"/m/0{number:03d}" for shape, number in CATEGORIES.items()}
"""Class name -> Open Images' code of it."""

MASK_SIDES = 1600 / 1024
"""Open Images' masks have a long side of 1600 pixels, its images one of at most 1024."""

PER_SHARD = 50
"""Images per tar, and pairs per folder."""


def write(root: Path, world: World, objects: Objects) -> dict[str, int]:
    """Write the four sets below `root` and return how many images (pairs, regions) each has. What is true of the objects that
    lie in a file of their own (half of SA-1B, the first frames of SA-V, Open Images) is added to `objects`."""
    _write_sa1b(root / "sa1b", world, objects)
    _write_sav(root / "sav" / "npz", world, objects)
    _write_open_images(root / "openimages", world, objects)
    return {
        "sa1b_images": world.sa1b_images,
        "sav_pairs": world.sav_pairs,
        "openimages_images": world.openimages_images,
        "describe_images": world.describe_images,
        "describe_captions": _write_describe(root / "describe", world),
    }


def _counted(count: int, name: str) -> Iterable[int]:
    return tqdm(range(count), desc=name, unit="scene", disable=None)


def jpeg(pixels: np.ndarray) -> bytes:
    """Return (height, width, 3) uint8 RGB as a JPEG."""
    content = BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=95)
    return content.getvalue()


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Return (height, width) as COCO's compressed RLE."""
    counts = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii")}


def _add_member(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, BytesIO(content))


# ------------------------------------------------------------------------------------------------------------------ SA-1B


def _write_sa1b(folder: Path, world: World, objects: Objects) -> None:
    """Write SA-1B: every other image lies flat in the folder, the others in one tar shard whose members begin with `./`."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "sa_000000.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
        for index in _counted(world.sa1b_images, "sa1b"):
            stem, files, scene = sa1b_image(world, index)
            if index % 2 == 0:
                objects[f"sa1b/{stem}.jpg"] = known(scene)
            for suffix, content in files.items():
                if index % 2 == 0:
                    (folder / f"{stem}{suffix}").write_bytes(content)
                else:
                    _add_member(shard, f"./{stem}{suffix}", content)


def sa1b_image(world: World, index: int) -> tuple[str, dict[str, bytes], Scene]:
    """Return the stem, suffix -> content of the two files, and the scene of an image."""
    scene, rng = make_scene(world.seed, "sa1b", index, world.shift, world.new_colours)
    pixels, masks = render(scene, world.shift, rng)
    image_id = 223_750 + 3 * index
    annotations = [
        {
            "id": 527_000_000 + 101 * image_id + 3 * i,
            "segmentation": rle(mask),
            "bbox": bbox(mask),
            "area": int(mask.sum()),
            "predicted_iou": float(rng.uniform(0.88, 1.0)),
            "stability_score": float(rng.uniform(0.92, 1.0)),
            "crop_box": [0.0, 0.0, float(scene.width), float(scene.height)],
            "point_coords": [[shape.x, shape.y]],
        }
        for i, (shape, mask) in enumerate(zip(scene.shapes, masks, strict=True))
    ]
    image = {"image_id": image_id, "width": scene.width, "height": scene.height, "file_name": f"sa_{image_id}.jpg"}
    content = json.dumps({"image": image, "annotations": annotations}).encode("ascii")
    return f"sa_{image_id}", {".jpg": jpeg(pixels), ".json": content}, scene


# -------------------------------------------------------------------------------------------------------------------- SAV


def _write_sav(folder: Path, world: World, objects: Objects) -> None:
    """Write one npz per masklet, its object in two frames: RGB in uint8, masks in {0, 255}, and where they come from.

    One in 20 holds what the published ones do, float32 and those four arrays alone; in one of 25 the object has gone by the
    second frame.
    """
    for index in _counted(world.sav_pairs, "sav"):
        scene, rng = make_scene(world.seed, "sav", index, world.shift, world.new_colours)
        frame1, masks1 = render(scene, world.shift, rng)
        target, later = int(rng.integers(len(scene.shapes))), drift(scene, rng)
        gone = index % 25 == 4
        if gone:
            later = Scene(later.width, later.height, later.shapes[:target] + later.shapes[target + 1 :], later.background)
        _, background = make_scene(world.seed, "sav", index, world.shift, world.new_colours)  # the first frame's, drawn once more
        frame2, masks2 = render(later, world.shift, background, noise_rng=rng)
        mask2 = np.zeros_like(masks1[target]) if gone else masks2[target]
        arrays: dict[str, Any] = {"frame1": frame1, "mask1": 255 * masks1[target].astype(np.uint8), "frame2": frame2}
        arrays["mask2"] = 255 * mask2.astype(np.uint8)
        if index % 20 == 7:
            arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        else:
            first = int(rng.integers(100))
            arrays |= {
                "video_id": np.array(f"sav_{index // 3:06d}"),
                "object_id": np.int64(target),
                "schema_version": np.int64(1),
            }
            arrays |= {"frame_index1": np.int64(first), "frame_index2": np.int64(first + 1), "source": np.array("auto")}
        path = folder / f"sav_{index // PER_SHARD:03d}" / f"masklet_data_{index:05d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
        objects[f"{path.relative_to(folder.parents[1]).as_posix()}::frame1"] = known(scene)


# ------------------------------------------------------------------------------------------------------------ Open Images


def _write_open_images(folder: Path, world: World, objects: Objects) -> None:
    """Write images of a scene, and a PNG per object that is larger than they are and rounded to another aspect."""
    for kind in ("images", "masks"):
        (folder / kind / "train").mkdir(parents=True)
    rows = []
    for index in _counted(world.openimages_images, "openimages"):
        scene, rng = make_scene(world.seed, "openimages", index, world.shift, world.new_colours)
        pixels, masks = render(scene, world.shift, rng)
        image_id = f"{rng.integers(2**32):08x}{index:08x}"
        (folder / "images" / "train" / f"{image_id}.jpg").write_bytes(jpeg(pixels))
        objects[f"openimages/images/train/{image_id}.jpg"] = known(scene)
        size = int(scene.width * MASK_SIDES), int(scene.height * MASK_SIDES) + 1
        for i, (shape, mask) in enumerate(zip(scene.shapes, masks, strict=True)):
            label, box_id = CLASSES[shape.shape], f"{rng.integers(2**28):07x}{i:x}"
            name = f"{image_id}_{label.replace('/', '')}_{box_id}.png"
            larger = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
            (larger if i % 2 else larger.convert("L")).save(folder / "masks" / "train" / name)
            x, y, width, height = bbox(mask)
            box = x / scene.width, (x + width) / scene.width, y / scene.height, (y + height) / scene.height
            clicks = f"{shape.x / scene.width:.5f} {shape.y / scene.height:.5f} 1;{box[0]:.5f} {box[2]:.5f} 0"
            rows.append([name, image_id, label, box_id, *(f"{edge:.6f}" for edge in box), f"{rng.uniform(0.8, 1):.5f}", clicks])
    names = ["MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax", "PredictedIoU", "Clicks"]
    _write_csv(folder / "train-annotations-object-segmentation.csv", [names, *rows])
    classes = [[label, name] for name, label in CLASSES.items()]
    _write_csv(folder / "oidv7-class-descriptions.csv", [["LabelName", "DisplayName"], *classes, ["/m/0999", "Shape, other"]])


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


# ------------------------------------------------------------------------------------------------------- Describe Anything


def _write_describe(folder: Path, world: World) -> int:
    """Write every second image in COCOStuff (a list of regions per image), the others in LVIS (one region each, not in a list; names
    padded with zeros that the shards' members lack) and SAV (two frames each, one mask per frame). Returns the captions written.
    """
    annotations: dict[str, dict[str, Any]] = {"COCOStuff": {}, "LVIS": {}, "SAV": {}}
    captions = 0
    for index in _counted(world.describe_images, "describe"):
        split = ("COCOStuff", "LVIS", "COCOStuff", "SAV")[index % 4]
        scene, rng = make_scene(world.seed, "describe", index, world.shift, world.new_colours)
        pixels, masks = render(scene, world.shift, rng)
        frames, frame_masks = [pixels], [masks]
        if split == "SAV":
            _, background = make_scene(world.seed, "describe", index, world.shift, world.new_colours)
            pixels, masks = render(drift(scene, rng), world.shift, background, noise_rng=rng)
            frames, frame_masks = [*frames, pixels], [*frame_masks, masks]
        member = f"sav_{index:06d}" if split == "SAV" else str(4_000 + 7 * index)
        img_id = member.zfill(12) if split == "LVIS" else member
        tar_file = f"{len(annotations[split]) // PER_SHARD:05d}.tar"
        regions = []
        for i in range(len(scene.shapes)) if split == "COCOStuff" else (int(rng.integers(len(scene.shapes))),):
            rles = [rle(masks[i]) for masks in frame_masks]
            regions.append(
                {
                    "img_id": img_id,
                    "ann_id": 70_000 + 10 * index + i,
                    "image": f"{img_id}.jpg",
                    "tar_file": tar_file,
                    "mask_rle": rles if split == "SAV" else rles[0],
                    "caption": scene.shapes[i].caption,
                }
            )
        annotations[split][img_id] = regions[0] if split == "LVIS" else regions
        captions += len(regions)
        path = folder / split / "images" / tar_file
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "a", format=tarfile.USTAR_FORMAT) as shard:
            for number, frame in enumerate(frames):
                _add_member(shard, f"{member}.{number}.jpg" if split == "SAV" else f"{member}.jpg", jpeg(frame))
            _add_member(shard, f"{member}.pickle", pickle.dumps(regions, protocol=4))
    for split, content in annotations.items():
        if content:
            (folder / split / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return captions
