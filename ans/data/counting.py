"""Counts of an index: what it holds, and what was skipped and why."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ans.data.arrow import sizes
from ans.data.records import Noted, Skipped

EXAMPLES = 5
AREAS = (1, 32**2, 96**2, 256**2, 512**2, 1024**2)
"""Lower edges of the reported histogram of areas, in pixels; the second and third are those of COCO."""


class Reasons:
    """Counts by reason, with the first few examples of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, count: int, examples: list[str]) -> None:
        self.counts[reason] += count
        self.examples[reason] += examples[: EXAMPLES - len(self.examples[reason])]

    def report(self) -> dict[str, Any]:
        """Return reason -> `count` and `examples`."""
        return {reason: {"count": n, "examples": self.examples[reason]} for reason, n in sorted(self.counts.items())}


class Skips:
    """What was skipped, and what was noted of records that are used."""

    def __init__(self) -> None:
        self.skipped, self.noted = Reasons(), Reasons()

    def drop(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items that are no `Skipped`."""
        for item in items:
            if isinstance(item, Skipped):
                self.count(item)
            else:
                yield item

    def count(self, item: Skipped, times: int = 1) -> None:
        (self.noted if isinstance(item, Noted) else self.skipped).add(item.reason, times, [item.key])

    def add(self, report: dict[str, dict[str, Any]]) -> None:
        """Add another's report."""
        for reasons, key in ((self.skipped, "skipped"), (self.noted, "noted")):
            for reason, entry in report.get(key, {}).items():
                reasons.add(reason, entry["count"], entry["examples"])

    def check(self, good: int, name: str, limit: float) -> None:
        bad = self.skipped.counts.total()
        if good == 0 or bad > limit * (good + bad):
            said = self.skipped if bad else self.noted
            reasons = "; ".join(
                f"{n} x {reason} ({', '.join(said.examples[reason])})" for reason, n in said.counts.most_common(5)
            )
            raise ValueError(
                f"sources.{name.removesuffix('_subset')}: {bad} of {good + bad} records cannot be used, "
                f"index.max_bad_fraction is {limit}: {reasons or 'there are none'}"
            )

    def report(self) -> dict[str, Any]:
        """Return `skipped`, and `noted` where anything was: reason -> `count` and `examples`."""
        noted = self.noted.report()
        return {"skipped": self.skipped.report()} | ({"noted": noted} if noted else {})


class Counts:
    """Images, regions and expressions, in all and per split, and regions by area."""

    def __init__(self) -> None:
        self.images = self.regions = self.expressions = 0
        self.splits: dict[str, Counter[str]] = defaultdict(Counter)
        self.areas: Counter[int] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self.images += batch.num_rows
        if "regions" not in batch.schema.names:
            return
        regions = batch["regions"].flatten()
        rows = np.repeat(np.arange(batch.num_rows), sizes(batch))
        expressions = pc.list_value_length(regions.field("expressions")).to_numpy()
        areas = np.searchsorted(AREAS, regions.field("area").to_numpy(), side="right")
        self.areas = (self.areas or Counter()) + Counter(areas.tolist())
        self.regions += len(rows)
        self.expressions += int(expressions.sum())
        for split in regions.field("split").unique().to_pylist():
            inside = pc.equal(regions.field("split"), split).to_numpy(zero_copy_only=False)
            counts = {"images": len(np.unique(rows[inside])), "regions": int(inside.sum())}
            self.splits[split].update(counts, expressions=int(expressions[inside].sum()))

    def report(self) -> dict[str, Any]:
        if self.areas is None:
            return {"images": self.images}
        counts: dict[str, Any] = {"images": self.images, "regions": self.regions, "expressions": self.expressions}
        names = ["no pixel", *(f"{low}..{high - 1}" for low, high in pairwise(AREAS)), f"{AREAS[-1]}.."]
        counts["regions_by_area"] = {name: self.areas[number] for number, name in enumerate(names) if self.areas[number]}
        if set(self.splits) - {""}:
            counts["splits"] = {split: dict(self.splits[split]) for split in sorted(self.splits)}
        return counts
