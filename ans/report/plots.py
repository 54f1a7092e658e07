"""Figures from numbers: training curves and the cIoU of the variants. Colours are those of Okabe and Ito, told apart by all."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from ans.report.results import BASE, Results, ResultsError, replacing
from ans.report.tables import Scores

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be chosen first)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

CURVES = {
    "loss": "loss, all parts",
    "loss_mask": "mask cross-entropy",
    "loss_dice": "Dice loss",
    "loss_language": "language loss",
    "train_iou": "training IoU",
    "grad_norm": "gradient norm",
}
GREY = "#8c8c8c"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
SPLITS_PER_ROW = 4
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.titlesize": 11}


def plot_curves(plots: Path, path: Path) -> None:
    """One panel per file of `CURVES` in `plots` (tab-separated: step, value): every step in pale, a centred
    moving average in full with its last value.

    Raises `ResultsError` naming a file that is missing or has other columns.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained", sharex=True)
        for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
            _draw_curve(axis, _read_curve(plots / f"{name}.tsv"), title, bounded=name == "train_iou")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        save(figure, path)


def plot_ciou(results: Results, scores: Scores, path: Path) -> None:
    """Grouped bars, one group per split and one bar per variant, with 95 % intervals and the cIoU in percent on each bar."""
    rows = math.ceil(len(results.splits) / SPLITS_PER_ROW)
    per_row = math.ceil(len(results.splits) / rows)
    width = max(6.0, 0.42 * per_row * (len(results.variants) + 1))
    colours = variant_colours(results.variants)
    top = 100 * max(scores[variant, split].interval[1] for variant in results.variants for split in results.splits)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, 1, figsize=(width, 0.7 + 2.8 * rows), layout="constrained", squeeze=False, sharey=True)
        for row, axis in enumerate(axes[:, 0]):
            splits = results.splits[row * per_row : (row + 1) * per_row]
            for i, variant in enumerate(results.variants):
                _draw_bars(axis, scores, variant, splits, i, len(results.variants), colours[variant])
            axis.set_xticks(range(len(splits)), splits)
            axis.set_xlim(-0.5, per_row - 0.5)  # a shorter last row keeps the bars' width
            axis.set_ylim(0, 1.12 * top)
            axis.set_ylabel("cIoU (%)")
            axis.tick_params(axis="x", length=0)
            axis.grid(axis="y", alpha=0.3)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        note = "bars: cIoU under free generation; lines: 95 % bootstrap intervals over images"
        figure.supxlabel(note, fontsize=9, color="#555555")
        save(figure, path)


def variant_colours(variants: tuple[str, ...]) -> dict[str, str]:
    """Grey for the base, and one colour for each other variant in their order."""
    others = [variant for variant in variants if variant != BASE]
    return {BASE: GREY, **{variant: COLOURS[i % len(COLOURS)] for i, variant in enumerate(others)}}


def save(figure: Figure, path: Path, colours: int | None = None) -> None:
    """Write a PNG in place of `path` and free the figure.

    `colours` limits it to a palette of so many: with photographs in it, that takes a fifth of the bytes.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, facecolor="white")
        if colours is not None:
            with Image.open(temporary) as image:
                reduced = image.convert("RGB").quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            reduced.save(temporary, format="png", optimize=True)
    plt.close(figure)


def _read_curve(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ResultsError(f"{path}: not there; training writes it")
    curve = pd.read_csv(path, sep="\t")
    if len(curve.columns) != 2 or curve.columns[0] != "step" or curve.empty:
        found = f"columns {', '.join(curve.columns)} in {len(curve)} rows"
        raise ResultsError(f"{path}: expected rows of step and one value, found {found}")
    return curve.set_axis(["step", "value"], axis=1)


def _draw_curve(axis: Axes, curve: pd.DataFrame, title: str, bounded: bool) -> None:
    colour = COLOURS[2] if bounded else COLOURS[0]
    smooth = curve["value"].rolling(max(1, len(curve) // 15), min_periods=1, center=True).mean()
    axis.plot(curve["step"], curve["value"], color=colour, alpha=0.3, linewidth=1)
    axis.plot(curve["step"], smooth, color=colour, linewidth=2)
    last = (curve["step"].iloc[-1], smooth.iloc[-1])
    axis.plot(*last, "o", color=colour, markersize=4, clip_on=False)
    axis.annotate(f"{last[1]:.3g}", last, xytext=(6, 0), textcoords="offset points", va="center", color=colour, fontweight="bold")
    axis.set_title(title, loc="left")
    axis.set_ylim(0, 1 if bounded else 1.05 * np.nanmax(curve["value"]))
    axis.grid(alpha=0.3)


def _draw_bars(axis: Axes, scores: Scores, variant: str, splits: tuple[str, ...], place: int, places: int, colour: str) -> None:
    """The bars of one variant: the `place`-th of `places` in each split's group."""
    bar = 0.86 / places
    x = np.arange(len(splits)) + (place - (places - 1) / 2) * bar
    height = 100 * np.array([scores[variant, split].ciou for split in splits])
    ends = 100 * np.array([scores[variant, split].interval for split in splits])
    axis.bar(x, height, 0.92 * bar, color=colour, label=variant)
    axis.vlines(x, ends[:, 0], ends[:, 1], color="#222222", linewidth=1.2)
    for at, value, end in zip(x, height, ends[:, 1], strict=True):
        axis.annotate(f"{value:.1f}", (at, max(value, end)), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
