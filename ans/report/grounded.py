"""What evaluation left of grounded conversation, read back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ans.evaluation.metrics import mean_interval
from ans.report.results import BASE, ResultsError


@dataclass(frozen=True)
class Grounded:
    """`metrics[variant, split]` is the flat JSON; `rows[variant, split]` has one entry per image, the same ones for every variant."""

    variants: tuple[str, ...]
    splits: tuple[str, ...]
    metrics: dict[tuple[str, str], dict[str, Any]]
    rows: dict[tuple[str, str], list[dict[str, Any]]]

    def difference(self, variant: str, split: str, resamples: int, seed: int) -> tuple[float, float, float]:
        """Return mIoU, x 100, of a variant less that of the base, with its interval over images."""
        own, base = (np.array([row["miou"] for row in self.rows[name, split]]) for name in (variant, BASE))
        low, high = mean_interval(own - base, resamples, seed)
        return 100 * float(np.mean(own - base)), 100 * low, 100 * high


def read_grounded(reports: Path, data: Path, variants: Sequence[str], splits: Sequence[str]) -> Grounded:
    """Read `reports/eval/<variant>/<split>_grounded.json` and `data/eval/<variant>/<split>_grounded.jsonl` for all that are named.

    Raises `ResultsError` naming the file that is missing, or was made from other images than the rest.
    """
    metrics, rows = {}, {}
    for split in splits:
        for variant in variants:
            paths = reports / "eval" / variant / f"{split}_grounded.json", data / "eval" / variant / f"{split}_grounded.jsonl"
            for path in paths:
                if not path.is_file():
                    raise ResultsError(f"{path}: not there; `evaluate.grounded` names this split, so evaluate {variant} first")
            metrics[variant, split] = json.loads(paths[0].read_text(encoding="utf-8"))
            rows[variant, split] = [json.loads(line) for line in paths[1].read_text(encoding="utf-8").splitlines()]
            asked, first = ([row["image"] for row in rows[key, split]] for key in (variant, variants[0]))
            if asked != first:
                raise ResultsError(f"{paths[1]}: other images than those of {variants[0]}; evaluate both on the same data")
    return Grounded(tuple(variants), tuple(splits), metrics, rows)
