"""What annotation tools export -> a folder of your own data (docs/your-data.md): COCO's JSON, labelme, Pascal VOC, folders of masks.

Masks are written as run lengths into annotations.json, images are copied. What cannot be used is left out and said.
"""

import hashlib
import json
import posixpath
import re
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

from ans.data import masks
from ans.data.disk import below, read_file, spelled
from ans.data.images import BROKEN_IMAGE, SUFFIXES, content, open_image, open_mask
from ans.data.mask_files import read_mask
from ans.data.matching import check_size
from ans.data.records import Noted, Skipped
from ans.data.samples import TRAIN_SPLIT
from ans.data.sources.common import by_id, class_names, class_of, clean, entry_of, field, is_junk, parse_json, whole
from ans.data.sources.own import ANNOTATIONS, EXPRESSIONS
from ans.data.sources.reason_seg import draw_shape

VOID = 255
"""Of VOC's masks: the border between objects."""


@dataclass(frozen=True)
class MaskedObject:
    """An object: its image, a path below the folder of images, whose size is (width, height) in pixels; its class; its mask."""

    image: str
    size: tuple[int, int]
    category: str
    counts: str


@dataclass(frozen=True)
class Imported:
    """What was written, and what was left out or noted."""

    images: dict[str, int]
    objects: int
    said: list[Skipped]


def bring(source: Path, out: Path, images: Path | None, masks_in: Path | None, val: float, group: str, named: bool) -> Imported:
    """Write the folder `out`. `images`: where they lie, if not where the format has them; `masks_in`: masks named after them. A share
    `val` of the photographs, or of the groups that the regular expression `group` finds in their names, gets the split val; copies
    of one photograph stay together. `named`: the category is the object's text.

    Raises `FileExistsError` where `out` is there, `ValueError` or `FileNotFoundError` where there is nothing to bring.
    """
    if out.exists():
        raise FileExistsError(f"{out}: exists already; name a folder that does not")
    place, items = _read(source, images, masks_in)
    found, said = [], []
    for item in items:
        (said if isinstance(item, Skipped) else found).append(item)
    if not found:
        reasons = "; ".join(f"{item.key}: {item.reason}" for item in said[:5])
        raise ValueError(f"{source}: no object that can be used{': ' + reasons if reasons else ''}")
    names = sorted({one.image for one in found})
    splits = _split(place, names, val, group)
    for name in names:
        target = out / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / name, target)
    sizes = {one.image: one.size for one in found}
    numbers = {name: number for number, name in enumerate(names)}
    listing = {
        "images": [{"id": numbers[name], "file_name": name, "width": sizes[name][0], "height": sizes[name][1]} for name in names],
        "annotations": [_annotation(number, numbers[one.image], one) for number, one in enumerate(found)],
    }
    (out / ANNOTATIONS).write_text(json.dumps(listing) + "\n", encoding="utf-8")
    with open(out / EXPRESSIONS, "w", encoding="utf-8") as file:
        for number, one in enumerate(found):
            line: dict[str, Any] = {"image": one.image, "annotation": number, "split": splits[one.image]}
            line |= {"category": one.category} if one.category else {}
            line |= {"text": one.category} if one.category and named else {}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    if named and (without := sum(not one.category for one in found)):
        said.append(Noted(ANNOTATIONS, f"objects without a class, and so without a text: {without}"))
    counts = {split: sum(of == split for of in splits.values()) for split in sorted(set(splits.values()))}
    return Imported(counts, len(found), said)


def _annotation(number: int, image: int, one: MaskedObject) -> dict[str, Any]:
    width, height = one.size
    return {"id": number, "image_id": image, "segmentation": {"size": [height, width], "counts": one.counts}}


def _split(place: Path, names: list[str], val: float, group: str) -> dict[str, str]:
    """Return image -> split. By digests, so that the same images give the same split wherever they lie."""
    try:
        pattern = re.compile(group) if group else None
    except re.error as error:
        raise ValueError(f"--group: {group!r} is not a regular expression: {error}") from None
    keys = {}
    for name in names:
        match = pattern.search(name) if pattern else None
        keys[name] = (match[1] if match.groups() else match[0]) if match else content((place / name).read_bytes())
    if pattern and not any(map(pattern.search, names)):
        raise ValueError(f"--group: {group!r} is found in no name of an image, such as {names[0]}")
    ordered = sorted(set(keys.values()), key=lambda key: hashlib.sha256(key.encode()).digest())
    wanted = min(max(round(val * len(ordered)), 1), len(ordered) - 1) if val and len(ordered) > 1 else 0
    chosen = set(ordered[:wanted])
    return {name: "val" if key in chosen else TRAIN_SPLIT for name, key in keys.items()}


def _read(source: Path, images: Path | None, masks_in: Path | None) -> tuple[Path, Iterator[MaskedObject | Skipped]]:
    """Return the folder of images, and what is found. The format is told by what is there."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if masks_in is not None:
        return source, _from_masks(source, masks_in)
    if source.is_file():
        here = [place for place in (source.parent / "images", source.parent) if place.is_dir()]
        place = images or here[0]
        return place, _from_coco(source, place)
    if (source / "SegmentationObject").is_dir():
        place = images or source / "JPEGImages"
        return place, _from_voc(source, place)
    listings = sorted(path for path in source.rglob("*.*") if path.suffix.lower() == ".json" and not is_junk(path.name))
    if listings:
        return images or source, _from_labelme(source, images or source, listings)
    raise ValueError(
        f"{source}: neither COCO's JSON, nor a folder with labelme's JSONs, nor VOC's (with SegmentationObject/); for a folder of "
        "images name the folder of their masks with --masks"
    )


@lru_cache(maxsize=1024)
def _size(place: Path, name: str) -> tuple[int, int]:
    """Return (width, height) of an image, opened whole: a damaged one is left out here."""
    return open_image(place, name).size


def _name(place: Path, name: str) -> str:
    """Return a path below the folder of images in the disk's spelling; of a missing one, as Windows may have written it, or as a part of a
    URL (Label Studio)."""
    last = posixpath.basename(name.replace("\\", "/"))
    for form in (name, name.replace("\\", "/"), last, unquote(last)):
        if ".." not in form.split("/") and not form.startswith("/"):
            found = spelled(place, posixpath.normpath(form))
            if below(place, found).is_file():
                return found
    raise FileNotFoundError(f"no such image: {name}")


def _from_coco(path: Path, place: Path) -> Iterator[MaskedObject | Skipped]:
    try:
        listing = parse_json(read_file(path))
        images = by_id(field(listing, "images", list), "images")
        names = class_names(field({"categories": []} | listing, "categories", list))
        annotations = by_id(field(listing, "annotations", list), "annotations")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a COCO listing: {error}") from error
    owners: dict[str, str] = {}
    unused = set(images)
    for number, annotation in annotations.items():
        key = f"annotation {number}"
        try:
            image = entry_of(images, annotation.get("image_id"))
            if image is None:
                raise ValueError("image_id that is not in images")
            unused.discard(image["id"])
            stated = field(image, "file_name", str)
            name = _name(place, stated)
            if owners.setdefault(name, stated) != stated:
                raise ValueError(f"{stated} and {owners[name]} are both taken for {name}; name the folder of both with --images")
            width, height = _size(place, name)
            if image.get("width") is not None or image.get("height") is not None:
                check_size(name, (width, height), (whole(image, "width"), whole(image, "height")), path.name)
            segmentation = annotation.get("segmentation")
            if not segmentation and annotation.get("bbox"):
                raise ValueError("a box without a mask")
            counts = masks.from_segmentation(segmentation, height, width)
            if masks.degenerate(segmentation):
                yield Noted(key, "outline of fewer than three points, left out beside sound ones")
            if note := masks.compare_stated(annotation.get("area"), annotation.get("bbox"), counts, height, width):
                yield Noted(key, note)
            if annotation.get("iscrowd"):
                yield Noted(key, "several objects in one mask (iscrowd), taken for one")
            category, note = class_of(annotation, names)
            if note:
                yield Noted(key, note)
            yield _found(name, (width, height), category, counts)
        except (ValueError, TypeError, AttributeError, FileNotFoundError) as error:
            yield Skipped(key, str(error))
    yield from (Noted(f"image {number}", "image without an object, left out") for number in sorted(unused))


def _found(name: str, size: tuple[int, int], category: str, counts: str) -> MaskedObject:
    if masks.measure(counts, size[1], size[0])[0] == 0:
        raise ValueError("mask without a pixel")
    return MaskedObject(name, size, clean(category) if category.strip() else "", counts)


def _from_labelme(source: Path, place: Path, listings: list[Path]) -> Iterator[MaskedObject | Skipped]:
    owners: dict[str, str] = {}
    stated_in: set[str] = set()
    for path in listings:
        key = path.relative_to(source).as_posix()
        try:
            listing = parse_json(read_file(path))
            shapes = field(listing, "shapes", list)
            stated = field(listing, "imagePath", str)
            beside = posixpath.normpath(posixpath.join(posixpath.dirname(key), stated.replace("\\", "/")))
            name = _name(place, beside if not beside.startswith("..") else posixpath.basename(beside))
            stated_in.add(name)
            width, height = _size(place, name)
            if listing.get("imageWidth") and listing.get("imageHeight"):
                check_size(name, (width, height), (whole(listing, "imageWidth"), whole(listing, "imageHeight")), key)
            if owners.setdefault(name, key) != key:
                raise ValueError(f"{name} is the image of {owners[name]}, too")
            if not shapes:
                yield Noted(key, "no shape")
        except (ValueError, TypeError, FileNotFoundError) as error:
            yield Skipped(key, str(error))
            continue
        drawn: dict[Any, tuple[str, np.ndarray]] = {}
        for number, shape in enumerate(shapes):
            try:
                label, mask = field(shape, "label", str), draw_shape(shape, height, width)
                if (shape.get("shape_type") or "polygon") == "polygon" and len(shape["points"]) < 3:
                    raise ValueError("polygon of fewer than three points")
                group = shape.get("group_id")
                one = (label, group) if type(group) is int else number  # pieces of one object have one number
                drawn[one] = (label, mask | drawn[one][1] if one in drawn else mask)
            except ValueError as error:
                yield Skipped(f"{key}, shape {number}", str(error))
        for one, (label, mask) in drawn.items():
            try:
                yield _found(name, (width, height), label, masks.from_array(mask))
            except ValueError as error:
                yield Skipped(f"{key}, shape {one}", str(error))
    there = {
        path.relative_to(place).as_posix()
        for path in place.rglob("*.*")
        if path.suffix.lower() in SUFFIXES and not is_junk(path.name)
    }
    if without := there - stated_in:
        yield Noted(min(without), f"one of {len(without)} images that no JSON names, left out")


def _from_voc(source: Path, place: Path) -> Iterator[MaskedObject | Skipped]:
    """Read VOC: the n-th object of an XML is number n of its SegmentationObject."""
    images = _by_stem(place, sorted(place.iterdir()))
    for path in sorted((source / "SegmentationObject").iterdir()):
        if path.suffix.lower() not in SUFFIXES or is_junk(path.name):
            continue
        key = f"SegmentationObject/{path.name}"
        try:
            if _form(path.stem) not in images:
                raise FileNotFoundError(f"no such image: {path.stem}")
            name = _only(images[_form(path.stem)])
            width, height = _size(place, name)
            numbers = np.asarray(open_mask(path, key))
            if numbers.ndim != 2:
                raise ValueError("numbers of objects are the values of one channel; this image has colours")
            check_size("it", numbers.shape[::-1], (width, height), name)
            classes = _voc_classes(source / "Annotations" / f"{path.stem}.xml")
        except BROKEN_IMAGE as error:
            yield Skipped(key, str(error))
            continue
        present = sorted({*map(int, np.unique(numbers))} - {0, VOID})
        if classes and (without := [number for number in range(1, len(classes) + 1) if number not in present]):
            yield Noted(key, f"objects of Annotations/{path.stem}.xml without a pixel: {', '.join(map(str, without))}")
        for number in present:
            try:
                if classes and number > len(classes):
                    raise ValueError(f"Annotations/{path.stem}.xml has only {len(classes)} objects")
                category = classes[number - 1] if number <= len(classes) else ""
                yield _found(name, (width, height), category, masks.from_array(numbers == number))
            except ValueError as error:
                yield Skipped(f"{key}, object {number}", str(error))


def _by_stem(place: Path, paths: list[Path]) -> dict[str, list[str]]:
    """Return name without suffix, in one form of Unicode -> the images of that name, below `place`."""
    found: dict[str, list[str]] = {}
    for path in paths:
        if path.suffix.lower() in SUFFIXES and not is_junk(path.name):
            name = path.relative_to(place)
            found.setdefault(_form(name.with_suffix("").as_posix()), []).append(name.as_posix())
    return found


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _only(names: list[str]) -> str:
    """Return the only one. Raises `ValueError` where there are several: nothing says of which of them a mask is."""
    if len(names) > 1:
        raise ValueError(f"may be of {' or of '.join(names)}; remove one")
    return names[0]


def _voc_classes(path: Path) -> list[str]:
    """Return the classes of the objects of an XML, in order; of none without one."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    if b"<!" in data.replace(b"<!--", b""):
        raise ValueError(f"{path.name}: XML with declarations of its own (<!...>); refused")
    try:
        return [entry.findtext("name", "") for entry in ElementTree.fromstring(data).iter("object")]
    except ElementTree.ParseError as error:
        raise ValueError(f"{path.name}: not XML: {error}") from error


def _from_masks(images: Path, folder: Path) -> Iterator[MaskedObject | Skipped]:
    """Read a folder of masks: `001.png` and `001_cup.png` are masks of `001.jpg`, the latter of a cup."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of masks")
    stems = _by_stem(images, [path for path in sorted(images.rglob("*")) if not path.is_relative_to(folder)])
    unused = set(stems)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or is_junk(path.name):
            continue
        key = path.relative_to(folder).as_posix()
        stem = _form(path.relative_to(folder).with_suffix("").as_posix())
        fitting = [of for of in stems if stem == of or re.match(re.escape(of) + "[-_. ]", stem)]
        try:
            if not fitting:
                raise FileNotFoundError("no image of that name")
            owner = max(fitting, key=len)
            unused.discard(owner)
            name = _only(stems[owner])
            width, height = _size(images, name)
            inside, notes = read_mask(path, key)
            check_size("it", inside.shape[::-1], (width, height), name)
            rest = re.sub(r"[-_. ]+", " ", stem[len(owner) :]).strip()
            category = "" if re.fullmatch(r"(?:mask|seg|gt|label|[0-9 ])*", rest) else rest
            yield from (Noted(key, note) for note in notes)
            yield _found(name, (width, height), category, masks.from_array(inside))
        except (ValueError, FileNotFoundError) as error:
            yield Skipped(key, str(error))
    yield from (Noted(name, "image without a mask, left out") for stem in sorted(unused) for name in stems[stem])
