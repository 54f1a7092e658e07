"""What evaluation left of sets of videos, read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ans.evaluation.video_metrics import VideoScore, difference
from ans.report.results import BASE, read_rows


@dataclass(frozen=True)
class Videos:
    """`metrics[variant, set]` is the flat JSON; `rows[variant, set]` has one entry per expression, the same ones for every variant."""

    variants: tuple[str, ...]
    sets: tuple[str, ...]
    metrics: dict[tuple[str, str], dict[str, Any]]
    rows: dict[tuple[str, str], list[dict[str, Any]]]

    def scored(self, name: str) -> bool:
        """Return whether the true masks of a set are published."""
        return "jf" in self.metrics[self.variants[0], name]

    def line(self) -> str:
        """Return J&F of every variant on each set whose true masks are published; "" without any."""
        sets = [name for name in self.sets if self.scored(name)]
        values = {name: [f"{variant} {self.metrics[variant, name]['jf']:.1f}" for variant in self.variants] for name in sets}
        return "J&F in percent: " + "; ".join(f"{name}: {', '.join(of)}" for name, of in values.items()) + "." if sets else ""

    def main(self) -> dict[tuple[str, str], dict[str, float]]:
        """Return J&F in percent, and its difference to the base, by (variant, result), where the true masks are published."""
        found = {}
        for (variant, name), values in self.metrics.items():
            if self.scored(name):
                more = {"difference": values["jf"] - self.metrics[BASE, name]["jf"]} if variant != BASE else {}
                found[variant, f"{name}_video"] = {"jf": values["jf"]} | more
        return found

    def difference(self, variant: str, name: str, resamples: int, seed: int) -> tuple[float, float, float]:
        """Return J&F, x 100, of a variant less that of the base, with its interval over clips."""
        rows = [row for row in self.rows[variant, name] if row["kind"] != "absent"]
        base = [row for row in self.rows[BASE, name] if row["kind"] != "absent"]
        own, theirs = ([VideoScore(row["j"], row["f"]) for row in one] for one in (rows, base))
        change, low, high = difference([row["clip"] for row in rows], own, theirs, resamples, seed)
        return 100 * change, 100 * low, 100 * high


def read_videos(reports: Path, data: Path, variants: Sequence[str], sets: Sequence[str]) -> Videos:
    """Read what evaluation left of all that are named. Raises `ResultsError` as `read_rows` does."""
    return Videos(tuple(variants), tuple(sets), *read_rows(reports, data, variants, sets, "video", ("clip", "id")))
