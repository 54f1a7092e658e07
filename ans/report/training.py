"""What training left, read back: curves in reports/train, the manifest and the tasks' examples beside its tensors."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ans.report.results import ResultsError, decode
from ans.shown import EXAMPLE_SIDE, Panel


@dataclass(frozen=True)
class KeptExample:
    """What a task did with one object. `texts`: two captions by their names, in the order in which they came about. `truth` and
    `mask` are (EXAMPLE_SIDE, EXAMPLE_SIDE) bool over the whole of `image`, a locator."""

    task: str
    step: int
    source: str
    image: str
    texts: dict[str, str]
    truth: np.ndarray
    mask: np.ndarray

    @property
    def iou(self) -> float:
        union = (self.truth | self.mask).sum()
        return float((self.truth & self.mask).sum() / union) if union else 1.0


@dataclass(frozen=True)
class Training:
    """`curves[name]` are values by step (index), only at the steps that had one. `manifest`: what was trained on what."""

    curves: dict[str, pd.Series]
    manifest: dict[str, Any]
    examples: list[KeptExample]


def read_training(plots: Path, checkpoint: Path) -> Training:
    """Read the `plots` folder's curves, and manifest.json and examples.json of `checkpoint`.

    Raises `ResultsError` naming what is missing.
    """
    if not (plots / "loss.tsv").is_file():
        raise ResultsError(f"{plots / 'loss.tsv'}: missing; training writes it")
    curves = {path.stem: _read_curve(path) for path in sorted(plots.glob("*.tsv"))}
    examples = [
        KeptExample(**row | {name: decode(row[name], EXAMPLE_SIDE, EXAMPLE_SIDE) for name in ("truth", "mask")})
        for row in _read_json(checkpoint / "examples.json")
    ]
    return Training(curves, _read_json(checkpoint / "manifest.json"), examples)


def panels(training: Training) -> list[tuple[Panel, dict[str, pd.Series]]]:
    """Return each panel of the manifest that has a curve, and label -> curve of those that it has."""
    curves = training.curves
    wanted = [Panel(**panel) for panel in training.manifest["panels"]]
    found = [(panel, {label: curves[name] for name, label in panel.curves.items() if name in curves}) for panel in wanted]
    return [(panel, lines) for panel, lines in found if lines]


def conflict_panels(curves: dict[str, pd.Series]) -> list[tuple[Panel, dict[str, pd.Series]]]:
    """Return the two gradients per trained group over the steps: their cosine, and how long the auxiliary one is beside the primary one.

    Groups that one of them never reaches are left out. Empty when a loop was off, so that there is one gradient alone. Where the
    first or the second vanishes there is no ratio, and no point.
    """
    groups = [name.removeprefix("cosine_") for name in curves if name.startswith("cosine_")]
    groups = [group for group in groups if min(curves[f"norm1_{group}"].max(), curves[f"norm2_{group}"].max()) > 0]
    if not groups:
        return []
    ratios = {group: curves[f"norm2_{group}"] / curves[f"norm1_{group}"] for group in groups}
    return [
        (Panel("cosine of the two gradients", {}), {group: curves[f"cosine_{group}"] for group in groups}),
        (
            Panel("norm of the auxiliary gradient / of the primary one", {}, log=True),
            {g: r[np.isfinite(r) & (r > 0)] for g, r in ratios.items()},
        ),
    ]


def smooth(curve: pd.Series) -> pd.Series:
    """Return a centred moving average over a fifteenth of the curve."""
    return curve.rolling(max(1, len(curve) // 15), min_periods=1, center=True).mean()


def _read_curve(path: Path) -> pd.Series:
    curve = pd.read_csv(path, sep="\t")
    if list(curve.columns) != ["step", path.stem] or curve.empty:
        found = f"columns {', '.join(curve.columns)} in {len(curve)} rows"
        raise ResultsError(f"{path}: expected rows of step and {path.stem}, found {found}")
    return curve.set_index("step")[path.stem]


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ResultsError(f"{path}: missing; training writes it")
    return json.loads(path.read_text(encoding="utf-8"))
