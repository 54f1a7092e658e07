"""Images of the synthetic world with grounded captions, in GranD-f's layout as the official Sa2VA has it; see `sources/grand_f.py`."""

import json
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from ans.config.schema import World
from ans.toy.scenes import make_scene, render
from ans.toy.world_loops import jpeg, rle

JOIN = " and "
FOLDER = "glamm_data"


def write(root: Path, world: World) -> None:
    """Write `world.grounded_images` images for training, half as many each for val and test. A caption names every object, those on the
    left first; two objects of the same words are one phrase with two masks."""
    train, number = [], 0
    for split, count in (
        ("train", world.grounded_images),
        ("val", world.grounded_images // 2),
        ("test", world.grounded_images // 2),
    ):
        images = root / FOLDER / "images" / "grandf" / ("train" if split == "train" else "val_test")
        images.mkdir(parents=True, exist_ok=True)
        annotations = root / FOLDER / "annotations"
        annotations.mkdir(exist_ok=True)
        captions: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        drawn: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
        for _ in range(count):
            number += 1
            name = f"sa_{number}"
            scene, rng = make_scene(world.seed, "grounded", number, world.shift)
            pixels, masks = render(scene, world.shift, rng)
            (images / f"{name}.jpg").write_bytes(jpeg(pixels))
            found: dict[str, list[dict[str, Any]]] = {}
            for i in sorted(range(len(scene.shapes)), key=lambda i: scene.shapes[i].x):
                found.setdefault(scene.shapes[i].caption, []).append(rle(masks[i]))
            caption, spans = "", {}
            for phrase in found:
                caption += JOIN if caption else ""
                spans[phrase] = [len(caption), len(caption) + len(phrase)]
                caption += phrase
            if split == "train":
                groundings = {phrase: {"token_positives": spans[phrase], "rle_masks": rles} for phrase, rles in found.items()}
                train.append({"file_name": f"{name}.jpg", "caption": f'"{caption}"', "groundings": groundings})
                continue
            size = {"id": name, "height": scene.height, "width": scene.width}
            captions["images"].append(size)
            captions["annotations"].append({"id": number, "image_id": name, "caption": caption, "labels": list(found)})
            drawn["images"].append(size)
            for place, masks_of in enumerate(found.values()):
                segmentation = masks_of[0] if len(masks_of) == 1 else _merged(masks_of)
                row = {
                    "id": 1000 * number + place,
                    "image_id": name,
                    "category_id": 1,
                    "iscrowd": 0,
                    "segmentation": segmentation,
                }
                drawn["annotations"].append(row | _measured(segmentation))
        if split == "train":
            (annotations / "GranDf_HA_GCG_train.json").write_text(json.dumps(train), encoding="utf-8")
            continue
        place = annotations / "gcg_val_test"
        place.mkdir(exist_ok=True)
        for kind, content in (("caption", captions), ("mask", drawn)):
            (place / f"{split}_gcg_coco_{kind}_gt.json").write_text(json.dumps(content), encoding="utf-8")


def _merged(rles: list[dict[str, Any]]) -> dict[str, Any]:
    merged = coco.merge(rles)
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}


def _measured(rle: dict[str, Any]) -> dict[str, Any]:
    return {"area": int(coco.area(rle)), "bbox": [float(value) for value in coco.toBbox(rle)]}
