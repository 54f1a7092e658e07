"""RefCOCO, RefCOCO+ and RefCOCOg as published (lichengunc/refer): `instances.json`, `refs(<split by>).p`, COCO's train2014.
gRefCOCO (henghuiding/gRefCOCO) is the same with `grefs(unc).json`, whose refs may be to several objects or to none.

The image of a ref is the one that instances.json gives for its `image_id`; the ref's own `file_name` carries a suffix and is
ignored. A ref of gRefCOCO becomes one region, the union of its objects, whose `region_id` is the ref's id; see `records.py`.
"""

import os
import pickle
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ans.data import masks
from ans.data.disk import is_text, spelled
from ans.data.records import Expression, ImageRecord, Noted, Region, Skipped
from ans.data.sources.common import by_id, class_names, class_of, clean, coco_folders, field, parse_json, split_name

REFS = {
    "refcoco": "refs(unc).p",
    "refcoco_plus": "refs(unc).p",
    "refcocog": "refs(umd).p",
    "refcocog_google": "refs(google).p",
    "grefcoco": "grefs(unc).json",
}
"""Source name -> file of its refs; that of refcocog is in the split that evaluations use."""

BROKEN_PICKLE = (pickle.UnpicklingError, EOFError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError)
BROKEN_PICKLE += (TypeError, ValueError, struct.error)
"""What the unpickler raises on damaged files."""


class _ListingUnpickler(pickle._Unpickler):
    """Lists, dicts, text and numbers need no import; a pickle that asks for one is not a listing of refs.

    In Python (10 s more for the largest set), because the one in C allocates whatever memory a damaged number asks for.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which no listing of refs needs; refused")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"asks for the external object {pid!r}, which no listing of refs needs; refused")


def load_refs(path: Path) -> list[dict[str, Any]]:
    """Return the refs of a `refs(*).p`, of Python 2 or 3, or of a `grefs(*).json`. Nothing in the file is executed. Raises
    `ValueError` naming the file.
    """
    if path.suffix == ".json":
        try:
            refs = parse_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        return _listed(refs, path)
    with open(path, "rb") as file:
        try:
            # latin1 holds every byte: the published files are Python 2's, with byte strings
            refs = _ListingUnpickler(file, encoding="latin1").load()
        except BROKEN_PICKLE as error:
            raise ValueError(f"{path}: not a pickled list of refs: {error}") from error
    return _listed(refs, path)


def _listed(refs: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path}: expected a list of dicts")
    return refs


def listing(root: Path, folder: str, name: str) -> list[Path]:
    """Return instances.json and the refs file of source `name`. Raises `FileNotFoundError` naming `paths.root` and the key."""
    paths = [root / folder / "instances.json", root / folder / REFS[name]]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not found; it is looked for below paths.root ({root}), in sources.{name} ({folder})"
            )
    return paths


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return names and sizes of the listing."""
    return [f"{path.name}: {path.stat().st_size} bytes" for path in listing(root, folder, name)]


@dataclass(frozen=True)
class Unread:
    """One image with its refs. `image` is its entry in instances.json and `path` its locator; without, `missing` says why."""

    image: dict[str, Any]
    path: str
    refs: list[dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    categories: dict[int, str]
    file: Path
    missing: str = ""


def plan(root: Path, folder: str, name: str) -> list[Unread]:
    """Return every image with refs, in order of image id.

    Raises `FileNotFoundError` without the listing or any image folder, `ValueError` naming a file that cannot be parsed.
    """
    instances_path, refs_path = listing(root, folder, name)
    images_at = next((candidate for candidate in coco_folders(folder) if (root / candidate).is_dir()), None)
    if images_at is None:
        raise FileNotFoundError(
            f"no images for sources.{name}: looked below paths.root ({root}) in {', '.join(coco_folders(folder))}"
        )
    present = {entry.name for entry in os.scandir(root / images_at)}
    images, annotations, categories = _read_instances(instances_path)
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    places: dict[int, int] = {}
    for place, ref in enumerate(load_refs(refs_path)):
        number = _field(ref, "ref_id", int, refs_path)
        if (first := places.setdefault(number, place)) != place:
            raise ValueError(f"{refs_path}: ref_id {number} occurs twice: refs[{first}] and refs[{place}]")
        _split_name(ref, place, refs_path)
        by_image[_field(ref, "image_id", int, refs_path)].append(ref)
    found = []
    for image_id in sorted(by_image):
        image, refs = images.get(image_id), by_image[image_id]
        wanted = {ann_id for ref in refs for ann_id in _ann_ids(ref, refs_path)}
        targets = {ann_id: annotations[ann_id] for ann_id in wanted & annotations.keys()}
        missing = "" if image else "image not in instances.json"
        path = f"{images_at}/{image['file_name']}" if image else ""
        if image and image["file_name"] not in present:
            plain = "/" not in image["file_name"] and is_text(image["file_name"])
            path = spelled(root, path) if plain else path
            missing = "" if plain and os.path.basename(path) in present else f"image file not in {images_at}"
        found.append(Unread(image or {}, path, refs, targets, categories, refs_path, missing))
    return found


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield the image with its referred regions; and for what cannot be used one `Skipped` per ref.

    Raises `ValueError` naming the refs file where a ref is not as published.
    """
    if unread.missing:
        yield from (Skipped(f"ref {_field(ref, 'ref_id', int, unread.file)}", unread.missing) for ref in unread.refs)
        return
    drawn = {ann_id: _mask(ann_id, unread) for ref in unread.refs for ann_id in _ann_ids(ref, unread.file) if ann_id != -1}
    regions: dict[tuple[int, str], Region] = {}
    for ref in unread.refs:
        yield from _notes(ref, unread, drawn)
        outcome = _union(ref, unread, drawn) if unread.file.suffix == ".json" else _region(ref, unread, drawn)
        if isinstance(outcome, Skipped):
            yield outcome
            continue
        key = (outcome.region_id, outcome.split)  # several refs may describe one object
        region = _joined(regions[key], outcome) if key in regions else outcome
        regions[key] = replace(region, expressions=_once(region, unread.file))
        if len(regions[key].expressions) < len(region.expressions):
            yield Noted(
                f"ref {_field(ref, 'ref_id', int, unread.file)}", "sentence of an object that is listed twice, taken once"
            )
    if regions:
        yield ImageRecord(unread.image["id"], unread.path, unread.image["width"], unread.image["height"], tuple(regions.values()))


def _read_instances(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]], dict[int, str]]:
    try:
        instances = parse_json(path.read_bytes())
        images = by_id(field(instances, "images", list), "images")
        annotations = by_id(field(instances, "annotations", list), "annotations")
        categories = class_names(field(instances, "categories", list))
        for image in images.values():
            for key, kind in (("file_name", str), ("width", int), ("height", int)):
                field(image, key, kind)
    except ValueError as error:
        raise ValueError(f"{path}: not a COCO listing: {error}") from error
    return images, annotations, categories


def _field(record: Any, key: str, kind: type, path: Path) -> Any:
    try:
        return field(record, key, kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _split_name(ref: dict[str, Any], place: int, path: Path) -> None:
    try:
        split_name(field(ref, "split", str))
    except ValueError as error:
        raise ValueError(f"{path}: refs[{place}]: {error}") from error


def _ann_ids(ref: dict[str, Any], path: Path) -> list[int]:
    """Return the annotations of a ref; gRefCOCO has lists of them, and [-1] for none."""
    ids = ref.get("ann_id")
    ids = ids if isinstance(ids, list) and path.suffix == ".json" else [ids]
    return [_field({"ann_id": id_}, "ann_id", int, path) for id_ in ids]


Drawn = dict[int, str | ValueError]
"""Annotation -> its mask, or why there is none."""


def _region(ref: dict[str, Any], unread: Unread, drawn: Drawn) -> Region | Skipped:
    key = f"ref {_field(ref, 'ref_id', int, unread.file)}"
    counts = drawn[ref["ann_id"]]
    if isinstance(counts, ValueError):
        return Skipped(key, str(counts))
    area, bbox = masks.measure(counts, unread.image["height"], unread.image["width"])
    if area == 0:
        return Skipped(key, "mask without a pixel")
    split, category = _field(ref, "split", str, unread.file), _category(ref["ann_id"], unread)
    return Region(ref["ann_id"], split, category, area, bbox, counts, _sentences(ref, unread.file))


def _union(ref: dict[str, Any], unread: Unread, drawn: Drawn) -> Region | Skipped:
    """Return a ref of gRefCOCO. Crowds among its objects are left out, as its own reader does."""
    ref_id, height, width = _field(ref, "ref_id", int, unread.file), unread.image["height"], unread.image["width"]
    ids = [id_ for id_ in _ann_ids(ref, unread.file) if id_ != -1]
    counts = [drawn[id_] for id_ in ids if not unread.annotations.get(id_, {}).get("iscrowd")]
    wrong = next((error for error in counts if isinstance(error, ValueError)), None)
    if wrong or (ids and not counts):
        return Skipped(f"ref {ref_id}", str(wrong or "only crowds"))
    union = masks.union([of for of in counts if isinstance(of, str)], height, width)
    area, bbox = masks.measure(union, height, width)
    if ids and not area:
        return Skipped(f"ref {ref_id}", "mask without a pixel")
    names = dict.fromkeys(_category(id_, unread) for id_ in ids)
    category = next(iter(names)) if len(names) == 1 else ""
    return Region(ref_id, _field(ref, "split", str, unread.file), category, area, bbox, union, _sentences(ref, unread.file))


def _category(ann_id: int, unread: Unread) -> str:
    return class_of(unread.annotations[ann_id], unread.categories)[0]


def _mask(ann_id: int, unread: Unread) -> str | ValueError:
    annotation = unread.annotations.get(ann_id)
    if annotation is None:
        return ValueError("annotation not in instances.json")
    if annotation.get("image_id") != unread.image["id"]:
        return ValueError("annotation of another image")
    try:
        return masks.from_segmentation(annotation.get("segmentation"), unread.image["height"], unread.image["width"])
    except ValueError as error:
        return error


def _once(region: Region, path: Path) -> tuple[Expression, ...]:
    """Return the expressions of an object, each once. Raises `ValueError` where two have one id: results are told apart by it."""
    found: dict[int, Expression] = {}
    for one in region.expressions:
        if (other := found.setdefault(one.sent_id, one)).sent != one.sent:
            raise ValueError(
                f"{path}: sent_id {one.sent_id} occurs twice: {other.sent!r:.80} and {one.sent!r:.80}, of one object"
            )
    return tuple(found.values())


def _sentences(ref: dict[str, Any], path: Path) -> tuple[Expression, ...]:
    found = []
    for sentence in _field(ref, "sentences", list, path):
        number, text, raw = (_field(sentence, key, kind, path) for key, kind in (("sent_id", int), ("sent", str), ("raw", str)))
        if not isinstance(usable := _usable(text), ValueError):
            found.append(Expression(number, usable, raw))
    return tuple(found)


def _usable(text: str) -> str | ValueError:
    """Return a text as it is used; of a sound one not even a space is changed, since evaluations elsewhere have it too."""
    try:
        found = clean(text)
    except ValueError as error:
        return error
    return text if found == text.strip() else found


def _notes(ref: dict[str, Any], unread: Unread, drawn: Drawn) -> Iterator[Noted]:
    """Yield what is left out of a ref that is used, and masks that are not as instances.json states them. They are used as they are:
    they are what the published results were measured on."""
    key = f"ref {_field(ref, 'ref_id', int, unread.file)}"
    for sentence in _field(ref, "sentences", list, unread.file):
        if isinstance(error := _usable(_field(sentence, "sent", str, unread.file)), ValueError):
            yield Noted(key, f"expression left out: {error}")
    for ann_id in _ann_ids(ref, unread.file):
        if isinstance(counts := drawn.get(ann_id), str):
            annotation = unread.annotations[ann_id]
            if note := class_of(annotation, unread.categories)[1]:
                yield Noted(key, note)
            if masks.degenerate(annotation["segmentation"]):
                yield Noted(key, "outline of fewer than three points, left out beside sound ones")
            try:
                stated = annotation.get("area"), annotation.get("bbox")
                said = masks.compare_stated(*stated, counts, unread.image["height"], unread.image["width"])
            except ValueError:
                said = "mask that is not where, or not as large as, instances.json states"
            if said:
                yield Noted(key, said)


def _joined(first: Region, second: Region) -> Region:
    return replace(first, expressions=first.expressions + second.expressions)
