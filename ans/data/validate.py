"""A folder of your own data, checked line by line (see docs/your-data.md)."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ans.data.records import Noted, Skipped
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
    return Validated(problems, notes, len(records), totals["objects"], totals["expressions"], splits)


def advice(found: Validated) -> list[str]:
    """What a folder lacks, or has, that a training or an evaluation will stumble over."""
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
