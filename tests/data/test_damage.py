"""Whatever a bad disk or a broken download leaves of a file, its reader skips the record or names the file, and nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from ans.config import World
from ans.data import index, world
from ans.data.images import open_image
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import describe_anything, open_images, refcoco, sa1b, sav

LOOPS = {"sa1b_images": 2, "sav_pairs": 2, "openimages_images": 2, "describe_images": 8}
TRIALS = 100


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    world.write_world(path, World(seed=3, train_images=4, val_images=1, test_images=1, **LOOPS, shift=0.0))
    return path


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


def read_sa1b(root: Path, folder: str, name: str) -> Iterator[ImageRecord | Skipped]:
    entries = [entry for entry in sa1b.list_entries(root, folder) if not isinstance(entry, Skipped)]
    return index._read_entries(root, entries)


READ = {
    "ref_seg/refcoco/refs(unc).p": (refcoco.read, "ref_seg/refcoco", "refcoco"),
    "ref_seg/refcoco+/refs(unc).p": (refcoco.read, "ref_seg/refcoco+", "refcoco_plus"),
    "ref_seg/refcoco/instances.json": (refcoco.read, "ref_seg/refcoco", "refcoco"),
    "sa1b/sa_223750.json": (read_sa1b, "sa1b", "sa1b"),
    "sa1b/sa_000000.tar": (read_sa1b, "sa1b", "sa1b"),
    "sav/npz/sav_000/masklet_data_00001.npz": (sav.read, "sav/npz", "sav"),
    "openimages/train-annotations-object-segmentation.csv": (open_images.read, "openimages", "openimages"),
    "openimages/oidv7-class-descriptions.csv": (open_images.read, "openimages", "openimages"),
    "openimages/masks/train/*.png": (open_images.read, "openimages", "openimages"),
    "openimages/images/train/*.jpg": (open_images.read, "openimages", "openimages"),
    "describe/COCOStuff/annotations.json": (describe_anything.read, "describe", "describe"),
    "describe/SAV/annotations.json": (describe_anything.read, "describe", "describe"),
    "describe/LVIS/images/00000.tar": (describe_anything.read, "describe", "describe"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("pattern", READ)
def test_damaged_files_are_skipped_or_named(root: Path, tmp_path: Path, pattern: str) -> None:
    reader, folder, name = READ[pattern]
    path = sorted(root.glob(pattern))[0]
    whole = path.read_bytes()
    refused = 0
    try:
        for trial in range(TRIALS):
            path.write_bytes(damage(whole, np.random.default_rng([trial, len(pattern)])))
            refused += not use(root, path, reader, folder, name, tmp_path)
    finally:
        path.write_bytes(whole)
    assert refused < TRIALS or pattern.endswith((".p", ".json", ".tar", ".csv"))


def use(root: Path, path: Path, reader: Callable, folder: str, name: str, tmp_path: Path) -> bool:
    """Read, store, and open as training does; whether the file could be read at all."""
    try:
        found = list(reader(root, folder, name))
    except ValueError as error:
        assert path.name in str(error)
        return False
    records = [item for item in found if not isinstance(item, Skipped)]
    index.write_records(tmp_path / "x.parquet", records, {"source": name, "folder": folder, "root_listing": ""})
    assert list(index.read_index(tmp_path / "x.parquet").records()) == records
    for record in records:
        for region in record.regions:
            for counts in (region.counts, region.second_counts):
                if counts:
                    assert coco.decode({"size": [record.height, record.width], "counts": counts}).any()
        for locator in (record.path, record.second):
            if locator and path.name in locator:
                try:
                    open_image(root, locator)
                except ValueError as error:
                    assert path.name in str(error)
    return True
