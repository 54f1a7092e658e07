"""What evaluation left of grounded conversation, read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ans.evaluation.metrics import mean_interval
from ans.report.results import BASE, read_rows


@dataclass(frozen=True)
class Grounded:
    """`metrics[variant, split]` is the flat JSON; `rows[variant, split]` has one entry per image, the same ones for every variant."""

    variants: tuple[str, ...]
    splits: tuple[str, ...]
    metrics: dict[tuple[str, str], dict[str, Any]]
    rows: dict[tuple[str, str], list[dict[str, Any]]]

    def main(self) -> dict[tuple[str, str], dict[str, float]]:
        """Return mIoU, with its difference to the base, and AP50, in [0, 1], by (variant, result)."""
        found = {}
        for (variant, split), values in self.metrics.items():
            own = {key: values[key] for key in ("gcg_miou", "gcg_ap50")}
            if variant != BASE:
                own["difference"] = values["gcg_miou"] - self.metrics[BASE, split]["gcg_miou"]
            found[variant, f"{split}_grounded"] = own
        return found

    def difference(self, variant: str, split: str, resamples: int, seed: int) -> tuple[float, float, float]:
        """Return mIoU, x 100, of a variant less that of the base, with its interval over images."""
        own, base = (np.array([row["miou"] for row in self.rows[name, split]]) for name in (variant, BASE))
        low, high = mean_interval(own - base, resamples, seed)
        return 100 * float(np.mean(own - base)), 100 * low, 100 * high


def read_grounded(reports: Path, data: Path, variants: Sequence[str], splits: Sequence[str]) -> Grounded:
    """Read what evaluation left of all that are named. Raises `ResultsError` as `read_rows` does."""
    return Grounded(tuple(variants), tuple(splits), *read_rows(reports, data, variants, splits, "grounded", ("image",)))
