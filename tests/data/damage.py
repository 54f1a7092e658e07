"""Damaged files: what a bad disk or a broken download leaves of the world's, and what the readers make of it."""

import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import yaml

from ans import config
from ans.config.schema import World
from ans.data import arrow, index, masks
from ans.data.images import open_image
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import common, describe_anything, open_images, own, reason_seg, refcoco, sav, sav_video
from ans.data.subset_sa1b import subset_sa1b
from ans.toy import world
from ans.workspace import Workspace
from tests.indexes import write_records

LOOPS = {"sa1b_images": 2, "sav_pairs": 2, "openimages_images": 2, "describe_images": 8, "reasonseg_images": 4}
SIZE = World(seed=3, train_images=4, val_images=1, test_images=1, **LOOPS, shift=0.0)
VALUES = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
Reader = Callable[[Path], Iterator[ImageRecord | Skipped]]


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, a part removed, zeroed or doubled, a few bytes changed, or digits and brackets swapped for others."""
    start, stop = sorted(rng.integers(len(content) + 1, size=2).tolist())
    stop = min(stop, start + int(rng.integers(1, 200)))
    match rng.integers(6):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + content[stop:]
        case 2:
            return content[:start] + bytes(stop - start) + content[stop:]
        case 3:
            return content[:stop] + content[start:]
        case 4:
            changed = np.frombuffer(content, np.uint8).copy()
            changed[rng.integers(len(content), size=int(rng.integers(1, 6)))] = rng.integers(256)
            return changed.tobytes()
    kinds = b"0123456789-e.[]{},\"'", b'9-e]}"'
    places = [i for i in range(len(content)) if content[i] in kinds[0]]
    changed = bytearray(content)
    for place in rng.choice(places, size=3) if places else ():
        changed[place] = kinds[1][rng.integers(len(kinds[1]))]
    return bytes(changed)


def _reader(source: object, folder: str, name: str) -> Reader:
    return lambda root: common.read(source, root, folder, name)


def _read_sa1b(root: Path) -> Iterator[ImageRecord | Skipped]:
    """By way of its two indexes, which is how SA-1B is read: a listing, and the masks of some of its images."""
    workspace = Workspace(root.parent / "work")

    def settings(images: int) -> config.Config:
        changes = {"paths": {"root": str(root)}, "index": {"max_bad_fraction": 1.0}, "subset_sa1b": {"images": images}}
        return config.Config(VALUES | {name: VALUES[name] | change for name, change in changes.items()})

    listed = index.build("sa1b", settings(1), workspace, workers=1)
    images = listed["images"]
    yield from (Skipped(one["examples"][0], reason) for reason, one in listed["skipped"].items())
    report = subset_sa1b(settings(images), workspace, workers=1)
    yield from (Skipped(one["examples"][0], reason) for reason, one in report["skipped"].items())
    yield from arrow.read_index(workspace.index("sa1b_subset")).records()


READ: dict[str, Reader] = {
    "ref_seg/refcoco/refs(unc).p": _reader(refcoco, "ref_seg/refcoco", "refcoco"),
    "ref_seg/refcoco+/refs(unc).p": _reader(refcoco, "ref_seg/refcoco+", "refcoco_plus"),
    "ref_seg/refcoco/instances.json": _reader(refcoco, "ref_seg/refcoco", "refcoco"),
    "ref_seg/grefcoco/grefs(unc).json": _reader(refcoco, "ref_seg/grefcoco", "grefcoco"),
    "reason_seg/ReasonSeg/train/*.json": _reader(reason_seg, "reason_seg/ReasonSeg", "reasonseg"),
    "sa1b/sa_223750.json": _read_sa1b,
    "sa1b/sa_000000.tar": _read_sa1b,
    "sav/npz/sav_000/masklet_data_00001.npz": _reader(sav, "sav/npz", "sav"),
    "sav/videos/**/*_auto.json": _reader(sav_video, "sav/videos", "sav_video"),
    "sav/videos/sav_val/Annotations_6fps/*/001/*.png": _reader(sav_video, "sav/videos", "sav_video"),
    "openimages/train-annotations-object-segmentation.csv": _reader(open_images, "openimages", "openimages"),
    "openimages/oidv7-class-descriptions.csv": _reader(open_images, "openimages", "openimages"),
    "openimages/masks/train/*.png": _reader(open_images, "openimages", "openimages"),
    "openimages/images/train/*.jpg": _reader(open_images, "openimages", "openimages"),
    "describe/COCOStuff/annotations.json": _reader(describe_anything, "describe", "describe"),
    "describe/SAV/annotations.json": _reader(describe_anything, "describe", "describe"),
    "describe/LVIS/images/00000.tar": _reader(describe_anything, "describe", "describe"),
    "own/expressions.jsonl": _reader(own, "own", "own"),
    "own/annotations.json": _reader(own, "own", "own"),
    "own/masks/*.png": _reader(own, "own", "own"),
}
"""A file of the world -> what reads it."""


def use(root: Path, path: Path, reader: Reader, scratch: Path) -> bool:
    """Read, store, and open as training does; whether the file could be read at all. An error names the file."""
    try:
        found = list(reader(root))
    except ValueError as error:
        assert path.name in str(error), f"{path}: {error}"
        return False
    records = [item for item in found if not isinstance(item, Skipped)]
    write_records(scratch / "x", records, {"source": "x", "folder": "x", "reader": "sav", "root_listing": ""})
    assert list(arrow.read_index(scratch / "x").records()) == records
    for record in records:
        for region in record.regions:
            for counts in (region.counts, region.second_counts, region.ignore_counts):
                if counts:
                    masks.decode(counts, record.height, record.width)
        for locator in (record.path, record.second):
            if locator and path.name in locator:
                try:
                    open_image(root, locator)
                except ValueError as error:
                    assert path.name in str(error), f"{path}: {error}"
    return True


def trial_run(folder: Path, trials: int) -> dict[str, int]:
    """Damage files of a world in `folder`, `trials` in all, each in its own way; how many there were, and how many went wrong."""
    world.write_world(folder / "world", SIZE)
    paths = {pattern: sorted((folder / "world").glob(pattern))[0] for pattern in READ}
    unnamed = 0
    for trial, pattern in zip(range(trials), (pattern for _ in count() for pattern in READ), strict=False):
        path, whole = paths[pattern], paths[pattern].read_bytes()
        path.write_bytes(damage(whole, np.random.default_rng([trial, len(pattern)])))
        try:
            with warnings.catch_warnings(action="ignore"):
                use(folder / "world", path, READ[pattern], folder)
        except Exception as error:  # whatever it is, it is what is counted here
            print(f"{pattern}, trial {trial}: {type(error).__name__}: {error}")
            unnamed += 1
        path.write_bytes(whole)
    return {"damaged": trials, "unnamed": unnamed}
