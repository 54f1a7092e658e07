"""A folder of your own data, checked line by line (see docs/your-data.md), and every image of an index, opened."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ans.config.training import TrainSettings
from ans.data import parts
from ans.data.arrow import read_index
from ans.data.images import open_image
from ans.data.index import IMAGES_PER_PART, broken
from ans.data.matching import region_mask
from ans.data.records import ImageRecord, Noted, Skipped
from ans.data.samples import TRAIN_SPLIT
from ans.data.sources import own
from ans.data.sources.common import read


@dataclass(frozen=True)
class Validated:
    """`problems`: the lines that cannot be used, in order, and why; `notes`: what looks wrong about lines that are used. The rest is
    counted; `splits`: split -> images, objects and expressions of it."""

    problems: list[Skipped]
    notes: list[Noted]
    images: int
    objects: int
    expressions: int
    splits: dict[str, Counter[str]]
    records: list[ImageRecord]


def validate(folder: Path) -> Validated:
    """Read the whole folder, every image and mask of it. Raises `FileNotFoundError` or `ValueError` when there is nothing to go
    through."""
    problems, notes, records = [], [], []
    for item in read(own, folder.parent, folder.name, folder.name):
        kept = notes if isinstance(item, Noted) else problems if isinstance(item, Skipped) else records
        kept.append(item)
    for said in (problems, notes):
        said.sort(key=lambda item: int(item.key.rpartition(":")[2]))
    splits: dict[str, Counter[str]] = {}
    for record in records:
        for split in dict.fromkeys(region.split for region in record.regions):
            splits.setdefault(split, Counter())["images"] += 1
        for region in record.regions:
            splits[region.split].update(objects=1, expressions=len(region.expressions))
    totals = sum(splits.values(), Counter())
    return Validated(problems, notes, len(records), totals["objects"], totals["expressions"], splits, records)


class _Rows:
    """Numbers of an index's rows, as items."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, wanted: slice) -> Sequence[int]:
        return range(*wanted.indices(self.rows))


def decode(path: Path, root: Path, runs: Path, workers: int | None = None) -> tuple[int, list[Skipped]]:
    """Return how many rows the index at `path` has, and the images that training could not open, each with the reason.

    Every image is opened as training does, by `workers` processes (None: one per core). Killed, it is taken up where it was.
    """
    with open(path, "rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    index = read_index(path)
    place = runs / f"decode-{index.source}-{key}"
    write = partial(_decode, path, root)
    with parts.locked(place):
        paths = parts.write_parts(_Rows(len(index)), write, place, IMAGES_PER_PART, f"decode {index.source}", "image", workers)
        found = [Skipped(*item) for part in paths for item in json.loads(part.read_bytes())]
        shutil.rmtree(place)
    return len(index), found


def _decode(path: Path, root: Path, rows: Sequence[Any], out: Path) -> None:
    index = read_index(path)
    records = (index.record(row) for row in rows)
    reasons = [(record.path, reason) for record in records if (reason := broken(root, record))]
    out.write_text(json.dumps(reasons), encoding="utf-8")


TILE, COLUMNS, ROWS = 240, 6, 8
"""Of a contact sheet, in pixels and tiles."""


def contact_sheet(found: Validated, root: Path) -> Image.Image:
    """Return masks over their images with their text or class: of the objects, evenly spread, as many as there is room for."""
    objects = [(record, region) for record in found.records for region in record.regions]
    chosen = objects[:: -(-len(objects) // (COLUMNS * ROWS)) or 1]
    sheet = Image.new("RGB", (COLUMNS * TILE, max(-(-len(chosen) // COLUMNS), 1) * (TILE + 16)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (record, region) in enumerate(chosen):
        pixels = np.asarray(open_image(root, record.path)).astype(float)
        inside = region_mask(record, region).astype(bool)
        pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array([255, 0, 0])
        tile = Image.fromarray(pixels.astype(np.uint8))
        tile.thumbnail((TILE - 4, TILE - 4))
        x, y = number % COLUMNS * TILE, number // COLUMNS * (TILE + 16)
        sheet.paste(tile, (x + 2, y + 2))
        text = region.expressions[0].sent if region.expressions else region.category
        pen.text(
            (x + 2, y + TILE), f"{region.region_id}: {text}"[:38].encode("latin-1", "replace").decode("latin-1"), fill="black"
        )
    return sheet


PASSES = 10
"""Over the images, by the preset `own`."""


def steps_of(found: Validated) -> str:
    """Return how many steps the preset `own` makes of what there is to learn from; "" where there is nothing."""
    images = found.splits.get(TRAIN_SPLIT, Counter())["images"] if found.splits.get(TRAIN_SPLIT, Counter())["expressions"] else 0
    if not images:
        return ""
    train = TrainSettings()
    steps = train.epoch_steps(images, processes=1)
    return (
        f"to learn from: {images} images; a pass over them is {steps} steps of {train.effective_batch(1)} images on one GPU, and "
        f"preset own makes {PASSES} passes, {PASSES * steps} steps (train.epochs)"
    )


def advice(found: Validated) -> list[str]:
    """Return what a folder lacks, or has, that a training or an evaluation will stumble over."""
    said = []
    evaluated = [split for split in found.splits if split != TRAIN_SPLIT]
    if not evaluated:
        said.append("no line has a split but train, so nothing can be evaluated; give some images a split such as val")
    said += [
        f"split {split}: none of its objects has a text, so it asks nothing"
        for split in evaluated
        if not found.splits[split]["expressions"]
    ]
    if found.splits and TRAIN_SPLIT not in found.splits:
        said.append(f"no line has the split train, so nothing can be learnt; there are {', '.join(sorted(evaluated))}")
    return said
