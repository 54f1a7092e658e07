"""SA-V as published (facebookresearch/sam2): masks of objects through videos, and the videos or their frames.

    train      **/<video>_manual.json, **/<video>_auto.json, and beside them <video>.mp4, or <video>/<frame number, 5 digits>.jpg
    val, test  JPEGImages_24fps/<video>/00000.jpg, Annotations_6fps/<video>/<object, 3 digits>/00000.png

Annotated frame i is frame 4 * i of the video. An object that is not seen has an empty mask, no mask, or no PNG.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from ans.data import masks
from ans.data.disk import spelled
from ans.data.images import BROKEN_IMAGE, drawn, frame, open_mask
from ans.data.records import ImageRecord, Region, Skipped
from ans.data.sources.common import field, is_junk, parse_json, source_folder

ANNOTATED_EVERY = 4
PAIRS_EVERY = 6
"""Of the annotated frames (6 per second) every sixth is a record, with the one after it as its second frame."""

NAME = re.compile(r"(.+)_(manual|auto)\.json")
IMAGES, MASKS = "JPEGImages_24fps", "Annotations_6fps"


@dataclass(frozen=True)
class Masklets:
    """One video's objects. `rles[i][k]` is object k in annotated frame i, None where there is no mask; `ids[k]` its number.

    `areas` (frames, objects) is in pixels; `visibility_changes` (objects,) counts how often each comes or goes after its first
    frame.
    """

    height: int
    width: int
    ids: list[int]
    rles: list[list[dict[str, Any] | None]]
    areas: np.ndarray
    visibility_changes: np.ndarray


Unread = tuple[Path, Path, int]
"""A JSON or a folder of PNGs; the video, or the folder of its frames; the video's position."""


def plan(root: Path, folder: str, name: str) -> list[Unread]:
    """Return every annotated video, in order of their paths. Raises `FileNotFoundError` without the folder."""
    base = source_folder(root, folder, name)
    found = []
    for path in sorted(base.rglob("*_*.json")):
        if (match := NAME.fullmatch(path.name)) and not is_junk(path.name):
            frames = path.with_name(match[1])
            below = frames.relative_to(root).as_posix()
            found.append((path, frames if frames.is_dir() else root / spelled(root, f"{below}.mp4")))
    for place in sorted(base.rglob(MASKS)):
        found += [(path, place.with_name(IMAGES) / path.name) for path in sorted(place.iterdir()) if path.is_dir()]
    return [(annotation, video, number) for number, (annotation, video) in enumerate(found)]


def fingerprint(root: Path, folder: str, name: str) -> list[str]:
    """Return names of the videos, sizes of the JSONs."""
    base = source_folder(root, folder, name)
    lines = []
    for annotation, video, _ in plan(root, folder, name):
        size = f"{annotation.stat().st_size} bytes" if annotation.is_file() else "frames"
        lines.append(f"{annotation.relative_to(base).as_posix()}: {size}, {video.name}")
    return lines


def read_one(root: Path, unread: Unread) -> Iterator[ImageRecord | Skipped]:
    """Yield the records of a video: two frames in a row of the annotated ones, every second. `image_id` is 100,000 times the video's
    position and the frame's number, `region_id` the object's number."""
    annotation, video, number = unread
    key = annotation.relative_to(root).as_posix()
    if not video.exists():
        yield Skipped(key, "neither video nor frames")
        return
    try:
        masklets = read_masklets(annotation)
        records = list(_records(root, masklets, video, split_of(annotation), 100_000 * number))
    except (ValueError, FileNotFoundError) as error:
        yield Skipped(key, str(error).removeprefix(f"{annotation}: "))
        return
    yield from records or [Skipped(key, "no object is seen")]


def split_of(annotation: Path) -> str:
    """Return the split of an annotated video: `train`, `val` or `test`."""
    return "train" if annotation.is_file() else annotation.parent.parent.name.removeprefix("sav_")


def _records(root: Path, masklets: Masklets, video: Path, split: str, first_id: int) -> Iterator[ImageRecord]:
    for i in range(0, len(masklets.rles), PAIRS_EVERY):
        later = min(i + 1, len(masklets.rles) - 1)
        seconds = [_counts(masklets, later, k) if later > i else "" for k in range(len(masklets.ids))]
        regions = []
        for k, object_id in enumerate(masklets.ids):
            if counts := _counts(masklets, i, k):
                area, bbox = masks.measure(counts, masklets.height, masklets.width)
                regions.append(Region(object_id, split, "", area, bbox, counts, second_counts=seconds[k]))
        if regions:
            paths = [video_frame(root, video, ANNOTATED_EVERY * at) for at in (i, later)]
            second = paths[1] if any(region.second_counts for region in regions) else ""
            number = ANNOTATED_EVERY * i
            yield ImageRecord(first_id + number, paths[0], masklets.width, masklets.height, tuple(regions), second)


def _counts(masklets: Masklets, i: int, k: int) -> str:
    """Return the mask of object k in annotated frame i, "" where it is not seen."""
    if not masklets.areas[i, k]:
        return ""
    return masks.from_segmentation(masklets.rles[i][k], masklets.height, masklets.width)


def video_frame(root: Path, video: Path, number: int) -> str:
    """Return the locator of a frame of a video, or of the folder of its frames. Raises `FileNotFoundError`."""
    below = video.relative_to(root).as_posix()
    if video.suffix.lower() == ".mp4":
        return frame(below, number)
    path = spelled(root, f"{below}/{number:05d}.jpg")
    if not (root / path).is_file():
        raise FileNotFoundError(f"no frame {number:05d}.jpg")
    return path


def read_masklets(annotation: Path) -> Masklets:
    """Read a `<video>_manual.json`, a `<video>_auto.json` or a folder of PNGs.

    Raises `ValueError` naming what is not as published: also a JSON whose stated areas or visibility
    changes do not match its masks.
    """
    if annotation.is_dir():
        return _from_pngs(annotation)
    try:
        content = parse_json(annotation.read_bytes())
        height, width = (_whole(content, key) for key in ("video_height", "video_width"))
        ids = [field({"masklet_id": id_}, "masklet_id", int) for id_ in field(content, "masklet_id", list)]
        if len(set(ids)) < len(ids):
            raise ValueError("duplicate masklet_id")
        rles = [_row(row, len(ids)) for row in field(content, "masklet", list)]
        masklets = _measured(height, width, ids, rles)
        _compare(masklets, content)
    except ValueError as error:
        raise ValueError(f"{annotation}: {error}") from error
    return masklets


def _whole(content: Any, key: str) -> int:
    """Read a number: sides are written as 848.0."""
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= masks.MAX_SIDE or value != int(value):
        raise ValueError(f"{key} is {value!r:.80}, expected an integer number of pixels")
    return int(value)


def _row(row: Any, objects: int) -> list[dict[str, Any] | None]:
    """Return one annotated frame. None stands for an object, or for all of them, where nothing is seen."""
    if row is None:
        return [None] * objects
    if not isinstance(row, list) or len(row) != objects or not all(rle is None or isinstance(rle, dict) for rle in row):
        raise ValueError("a row of masklet does not have one mask per object")
    return row


def _measured(height: int, width: int, ids: list[int], rles: list[list[dict[str, Any] | None]]) -> Masklets:
    given = [(i, k, rle) for i, row in enumerate(rles) for k, rle in enumerate(row) if rle is not None]
    if any(rle.get("size") != [height, width] for *_, rle in given):
        raise ValueError("RLE of another size than the video")
    masks.check_counts([rle.get("counts") for *_, rle in given], height, width)
    areas = np.zeros((len(rles), len(ids)), np.int64)
    for i, k, rle in given:
        areas[i, k] = coco.area(rle)  # one by one: pycocotools fails on lists of more than 255
    seen = areas > 0
    changes = [int(np.count_nonzero(np.diff(column[np.argmax(column) :].astype(np.int8)))) for column in seen.T]
    return Masklets(height, width, ids, rles, areas, np.array(changes, np.int64))


def _compare(masklets: Masklets, content: dict[str, Any]) -> None:
    seen = (masklets.areas > 0).sum(0)
    means = masklets.areas.sum(0) / np.maximum(seen, 1)
    for key, found in (("masklet_size_abs", means), ("masklet_visibility_changes", masklets.visibility_changes)):
        stated = field(content, key, list)
        if not all(type(value) in (int, float) and abs(value) < math.inf for value in stated) or len(stated) != len(found):
            raise ValueError(f"{key} is not one number per object")
        if not np.allclose(stated, found, rtol=1e-6, atol=1e-6):
            raise ValueError(f"{key} in the file does not match the masks")


def _from_pngs(place: Path) -> Masklets:
    folders = {path.name: path for path in sorted(place.iterdir()) if path.is_dir()}
    if wrong := [name for name in folders if not re.fullmatch(r"[0-9]{3}", name)]:
        raise ValueError(f"{place}: the folder of an object is named by three digits, found {wrong[0]}")
    ids = [int(name) for name in folders]
    pngs = {
        name: [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".png"] for name, folder in folders.items()
    }
    frames = sorted({int(path.stem) for paths in pngs.values() for path in paths if path.stem.isdigit()})
    if not frames:
        raise ValueError(f"{place}: no masks")
    rles: list[list[dict[str, Any] | None]] = [[None] * len(ids) for _ in range(frames[-1] // ANNOTATED_EVERY + 1)]
    size: tuple[int, ...] = ()
    for k, paths in enumerate(pngs.values()):
        for path in paths:
            try:
                mask = drawn(open_mask(path))
            except BROKEN_IMAGE:
                raise ValueError(f"{place}: a mask that cannot be read") from None
            if size not in ((), mask.shape) or not path.stem.isdigit() or int(path.stem) % ANNOTATED_EVERY:
                raise ValueError(f"{place}: a mask of another size, or of a frame that is not annotated")
            size = mask.shape
            rles[int(path.stem) // ANNOTATED_EVERY][k] = {"size": list(size), "counts": masks.from_array(mask)}
    height, width = size
    return _measured(height, width, ids, rles)
