"""What training left, read back: curves in reports/train, the manifest and the loops' chains beside its tensors."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ans.report.results import ResultsError, decode

CHAIN_SIDE = 128
"""Height and width, in pixels, at which the masks of chains are kept whatever the image's shape."""


@dataclass(frozen=True)
class Chain:
    """One object in a loop (1 or 2). Loop 1: the teacher said `before`, the student fed on `after` and so found `mask`. Loop 2:
    from the data's caption, `before`, it found `mask`, and told `after` of that.

    `truth` and `mask` are (CHAIN_SIDE, CHAIN_SIDE) bool over the whole of `image`, a locator; in loop 1 of the second view.
    """

    loop: int
    step: int
    source: str
    image: str
    before: str
    after: str
    truth: np.ndarray
    mask: np.ndarray

    @property
    def words(self) -> list[tuple[str, str]]:
        """(what it is called, text) of the two captions."""
        return list(zip(("said", "heard") if self.loop == 1 else ("given", "told"), (self.before, self.after), strict=True))

    @property
    def iou(self) -> float:
        union = (self.truth | self.mask).sum()
        return float((self.truth & self.mask).sum() / union) if union else 1.0


@dataclass(frozen=True)
class Training:
    """`curves[name]` are values by step (index), only at the steps that had one. `manifest`: what was trained on what."""

    curves: dict[str, pd.Series]
    manifest: dict[str, Any]
    chains: list[Chain]


@dataclass(frozen=True)
class Panel:
    """Curves that belong in one picture, name -> label. `share`: all of them lie in [0, 1]; `log`: drawn on a log axis."""

    title: str
    curves: dict[str, str]
    share: bool = False
    log: bool = False


def _of_each(part: str) -> dict[str, str]:
    return {f"ref_{part}": "RefCOCO", f"loop1_{part}": "loop 1", f"loop2_{part}": "loop 2"}


PANELS = (
    Panel("loss of RefCOCO and loop 1, all parts", {"loss": "loss"}),
    Panel("mask cross-entropy", _of_each("mask")),
    Panel("Dice loss", _of_each("dice")),
    Panel("language loss on the answer", _of_each("language")),
    Panel("caption loss", {"loop2_caption": "loop 2", "loop1_denoising": "loop 1, denoising"}),
    Panel("training IoU", _of_each("train_iou"), share=True),
    Panel("would say [SEG]", _of_each("seg_rate"), share=True),
    Panel(
        "the teacher's captions: share that",
        {"loop1_teacher_ended": "end", "loop1_teacher_different": "differ", "loop1_teacher_empty": "are empty"},
        share=True,
    ),
    Panel("the teacher's captions: confidence", {"loop1_teacher_confidence": "mean probability of a token"}, share=True),
    Panel("the teacher's captions: tokens", {"loop1_teacher_length": "length"}),
    Panel(
        "the student's reading",
        {"loop1_changed_tokens": "tokens changed", "loop1_kept_mass": "probability kept by the top-k"},
        share=True,
    ),
    Panel("gradient norm", {"grad_norm": "step, before clipping", "loop1_caption_gradient": "at loop 1's caption"}, log=True),
    Panel("learning rate", {"lr": "rate"}),
    Panel("validation split", {f"val_{name}": name for name in ("ciou", "miou", "box_giou", "p50", "seg_rate")}),
)
"""What is drawn of a run; curves that it does not have (a loop was off) are left out, and so are panels without any."""


def read_training(plots: Path, checkpoint: Path) -> Training:
    """Read the `plots` folder's curves, and manifest.json and chains.json of `checkpoint`.

    Raises `ResultsError` naming what is missing.
    """
    if not (plots / "loss.tsv").is_file():
        raise ResultsError(f"{plots / 'loss.tsv'}: not there; training writes it")
    curves = {path.stem: _read_curve(path) for path in sorted(plots.glob("*.tsv"))}
    chains = [
        Chain(**row | {name: decode(row[name], CHAIN_SIDE, CHAIN_SIDE) for name in ("truth", "mask")})
        for row in _read_json(checkpoint / "chains.json")
    ]
    return Training(curves, _read_json(checkpoint / "manifest.json"), chains)


def panels(curves: dict[str, pd.Series]) -> list[tuple[Panel, dict[str, pd.Series]]]:
    """Each of `PANELS` that has a curve, and label -> curve of those that it has."""
    found = [(panel, {label: curves[name] for name, label in panel.curves.items() if name in curves}) for panel in PANELS]
    return [(panel, lines) for panel, lines in found if lines]


def conflict_panels(curves: dict[str, pd.Series]) -> list[tuple[Panel, dict[str, pd.Series]]]:
    """The two gradients per trained group over the steps: their cosine, and how long the second is beside the first.

    Groups that one of them never reaches are left out. Empty when a loop was off, so that there is one gradient alone. Where the
    first or the second vanishes there is no ratio, and no point.
    """
    groups = [name.removeprefix("cosine_") for name in curves if name.startswith("cosine_")]
    groups = [group for group in groups if min(curves[f"norm1_{group}"].max(), curves[f"norm2_{group}"].max()) > 0]
    if not groups:
        return []
    ratios = {group: curves[f"norm2_{group}"] / curves[f"norm1_{group}"] for group in groups}
    return [
        (Panel("cosine of the two loops' gradients", {}), {group: curves[f"cosine_{group}"] for group in groups}),
        (
            Panel("norm of loop 2's gradient / of the first", {}, log=True),
            {g: r[np.isfinite(r) & (r > 0)] for g, r in ratios.items()},
        ),
    ]


def smooth(curve: pd.Series) -> pd.Series:
    """Centred moving average over a fifteenth of the curve."""
    return curve.rolling(max(1, len(curve) // 15), min_periods=1, center=True).mean()


def _read_curve(path: Path) -> pd.Series:
    curve = pd.read_csv(path, sep="\t")
    if list(curve.columns) != ["step", path.stem] or curve.empty:
        found = f"columns {', '.join(curve.columns)} in {len(curve)} rows"
        raise ResultsError(f"{path}: expected rows of step and {path.stem}, found {found}")
    return curve.set_index("step")[path.stem]


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ResultsError(f"{path}: not there; training writes it")
    return json.loads(path.read_text(encoding="utf-8"))
