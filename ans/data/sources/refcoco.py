"""RefCOCO, RefCOCO+ and RefCOCOg as published (lichengunc/refer): `instances.json`, `refs(<split by>).p`, COCO's train2014.

The image of a ref is the one that instances.json gives for its `image_id`; the ref's own `file_name` carries a suffix and is
ignored.
"""

import json
import os
import pickle
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ans.data import masks
from ans.data.records import Expression, ImageRecord, Region, Skipped

REFS = {"refcoco": "refs(unc).p", "refcoco_plus": "refs(unc).p", "refcocog": "refs(umd).p"}
"""Source name -> file of its refs, in the split that evaluations use."""


class _ListingUnpickler(pickle.Unpickler):
    """Lists, dicts, text and numbers need no import; a pickle that asks for one is no listing of refs."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which no listing of refs needs; refused")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"asks for the outside object {pid!r}, which no listing of refs needs; refused")


def load_refs(path: Path) -> list[dict[str, Any]]:
    """The refs of a `refs(*).p`, of Python 2 or 3. Nothing in the file is executed. Raises `ValueError` naming the file."""
    with open(path, "rb") as file:
        try:
            # latin1 holds every byte: the published files are Python 2's, with byte strings
            refs = _ListingUnpickler(file, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: not a pickled list of refs: {error}") from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path}: expected a list of dicts")
    return refs


def image_folders(folder: str) -> tuple[str, ...]:
    """Where the images may lie, below `paths.root`; the first that exists is taken. `folder` is the source's own."""
    return (
        f"{folder}/coco2014/train2014",
        "ref_seg/coco2014/train2014",
        "coco2014/train2014",
        "glamm_data/images/coco2014/train2014",
    )


def listing(root: Path, folder: str, name: str) -> list[Path]:
    """instances.json and the refs file of source `name`. Raises `FileNotFoundError` naming `paths.root` and the key."""
    paths = [root / folder / "instances.json", root / folder / REFS[name]]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not found; it is looked for below paths.root ({root}), in sources.{name} ({folder})"
            )
    return paths


def read(root: Path, folder: str, name: str) -> Iterator[ImageRecord | Skipped]:
    """Every image with refs, in order of image id, with its referred regions; and for what cannot be used one `Skipped` per ref.

    Raises `FileNotFoundError` without the listing or any image folder, `ValueError` naming a file that cannot be parsed.
    """
    instances_path, refs_path = listing(root, folder, name)
    images_at = next((candidate for candidate in image_folders(folder) if (root / candidate).is_dir()), None)
    if images_at is None:
        raise FileNotFoundError(
            f"no images for sources.{name}: looked below paths.root ({root}) in {', '.join(image_folders(folder))}"
        )
    present = {entry.name for entry in os.scandir(root / images_at)}
    images, annotations, categories = _read_instances(instances_path)
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for ref in load_refs(refs_path):
        by_image[_field(ref, "image_id", refs_path)].append(ref)
    for image_id in sorted(by_image):
        refs = by_image[image_id]
        image = images.get(image_id)
        if image is None or image["file_name"] not in present:
            reason = "image not in instances.json" if image is None else f"image file not in {images_at}"
            yield from (Skipped(f"ref {ref['ref_id']}", reason) for ref in refs)
            continue
        regions: dict[tuple[int, str], Region] = {}
        for ref in refs:
            outcome = _region(ref, annotations.get(_field(ref, "ann_id", refs_path)), image, categories, refs_path)
            if isinstance(outcome, Skipped):
                yield outcome
                continue
            key = (outcome.region_id, outcome.split)  # several refs may describe one object
            regions[key] = _joined(regions[key], outcome) if key in regions else outcome
        if regions:
            path = f"{images_at}/{image['file_name']}"
            yield ImageRecord(image_id, path, image["width"], image["height"], tuple(regions.values()))


def _read_instances(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]], dict[int, str]]:
    try:
        instances = json.loads(path.read_bytes())
        images = {image["id"]: image for image in instances["images"]}
        annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
        categories = {category["id"]: category["name"] for category in instances["categories"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a COCO listing: {error!r}") from error
    for image in images.values():
        for key, kind in (("file_name", str), ("width", int), ("height", int)):
            if not isinstance(image.get(key), kind):
                raise ValueError(f"{path}: image {image['id']}: {key} is {image.get(key)!r}")
    return images, annotations, categories


def _field(ref: dict[str, Any], key: str, path: Path) -> Any:
    if key not in ref:
        raise ValueError(f"{path}: a ref has no {key!r}: {ref!r:.200}")
    return ref[key]


def _region(
    ref: dict[str, Any], annotation: dict[str, Any] | None, image: dict[str, Any], categories: dict[int, str], path: Path
) -> Region | Skipped:
    key = f"ref {_field(ref, 'ref_id', path)}"
    if annotation is None:
        return Skipped(key, "annotation not in instances.json")
    if annotation.get("image_id") != image["id"]:
        return Skipped(key, "annotation of another image")
    height, width = image["height"], image["width"]
    try:
        counts = masks.from_segmentation(annotation.get("segmentation"), height, width)
    except ValueError as error:
        return Skipped(key, str(error))
    area, bbox = masks.measure(counts, height, width)
    if area == 0:
        return Skipped(key, "mask without a pixel")
    sentences = [
        Expression(_field(sentence, "sent_id", path), _field(sentence, "sent", path), _field(sentence, "raw", path))
        for sentence in _field(ref, "sentences", path)
    ]
    category = categories.get(annotation.get("category_id"), "")
    return Region(annotation["id"], _field(ref, "split", path), category, area, bbox, counts, tuple(sentences))


def _joined(first: Region, second: Region) -> Region:
    return Region(**{**first.__dict__, "expressions": first.expressions + second.expressions})
