"""A folder of your own data, checked line by line (see docs/your-data.md)."""

from dataclasses import dataclass
from pathlib import Path

from ans.data.records import Skipped
from ans.data.sources import own
from ans.data.sources.common import read


@dataclass(frozen=True)
class Validated:
    """`problems`: the lines that cannot be used, in order, and why. The rest is counted."""

    problems: list[Skipped]
    images: int
    objects: int
    expressions: int


def validate(folder: Path) -> Validated:
    """Read the whole folder. Raises `FileNotFoundError` or `ValueError` when there is nothing to go through."""
    problems, records = [], []
    for item in read(own, folder.parent, folder.name, folder.name):
        (problems if isinstance(item, Skipped) else records).append(item)
    regions = [region for record in records for region in record.regions]
    problems.sort(key=lambda problem: int(problem.key.rpartition(":")[2]))
    return Validated(problems, len(records), len(regions), sum(len(region.expressions) for region in regions))
