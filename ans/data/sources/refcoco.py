"""RefCOCO, RefCOCO+ and RefCOCOg as published (lichengunc/refer): `instances.json`, `refs(<split by>).p`, COCO's train2014.

The image of a ref is the one that instances.json gives for its `image_id`; the ref's own `file_name` carries a suffix and is
ignored.
"""

import json
import os
import pickle
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ans.data import masks
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources.common import field

REFS = {"refcoco": "refs(unc).p", "refcoco_plus": "refs(unc).p", "refcocog": "refs(umd).p"}
"""Source name -> file of its refs, in the split that evaluations use."""

BROKEN_PICKLE = (pickle.UnpicklingError, EOFError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError)
BROKEN_PICKLE += (TypeError, ValueError, struct.error)
"""What the unpickler raises on damaged files."""


class _ListingUnpickler(pickle._Unpickler):
    """Lists, dicts, text and numbers need no import; a pickle that asks for one is no listing of refs.

    In Python (10 s more for the largest set), because the one in C allocates whatever memory a damaged number asks for.
    """

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
        except BROKEN_PICKLE as error:
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


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Names and sizes of the listing."""
    return [f"{path.name}: {path.stat().st_size} bytes" for path in listing(root, folder, name)]


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
        by_image[_field(ref, "image_id", int, refs_path)].append(ref)
    for image_id in sorted(by_image):
        refs = by_image[image_id]
        image = images.get(image_id)
        if image is None or image["file_name"] not in present:
            reason = "image not in instances.json" if image is None else f"image file not in {images_at}"
            yield from (Skipped(f"ref {_field(ref, 'ref_id', int, refs_path)}", reason) for ref in refs)
            continue
        regions: dict[tuple[int, str], Region] = {}
        for ref in refs:
            outcome = _region(ref, annotations.get(_field(ref, "ann_id", int, refs_path)), image, categories, refs_path)
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
        images = {field(image, "id", int): image for image in field(instances, "images", list)}
        annotations = {field(annotation, "id", int): annotation for annotation in field(instances, "annotations", list)}
        categories = {field(entry, "id", int): field(entry, "name", str) for entry in field(instances, "categories", list)}
        for image in images.values():
            for key, kind in (("file_name", str), ("width", int), ("height", int)):
                field(image, key, kind)
    except (ValueError, RecursionError) as error:  # a RecursionError: json, on brackets without end
        raise ValueError(f"{path}: not a COCO listing: {error}") from error
    return images, annotations, categories


def _field(record: Any, key: str, kind: type, path: Path) -> Any:
    try:
        return field(record, key, kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _region(
    ref: dict[str, Any], annotation: dict[str, Any] | None, image: dict[str, Any], categories: dict[int, str], path: Path
) -> Region | Skipped:
    key = f"ref {_field(ref, 'ref_id', int, path)}"
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
        Expression(*(_field(sentence, key, kind, path) for key, kind in (("sent_id", int), ("sent", str), ("raw", str))))
        for sentence in _field(ref, "sentences", list, path)
    ]
    category = categories.get(annotation.get("category_id"), "")
    return Region(annotation["id"], _field(ref, "split", str, path), category, area, bbox, counts, tuple(sentences))


def _joined(first: Region, second: Region) -> Region:
    return Region(**{**first.__dict__, "expressions": first.expressions + second.expressions})
