"""Figures from numbers: training curves and the cIoU of the variants. Colours are those of Okabe and Ito, told apart by all."""

import math
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from ans.files import replacing
from ans.report.results import BASE, Results
from ans.report.tables import Scores
from ans.report.training import smooth
from ans.shown import Panel

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be chosen first)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

GREY = "#8c8c8c"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
WIDTH, DPI = 6.3, 110
"""Inches and pixels per inch: 693 pixels, so that `dvc plots diff` shows two runs' pictures side by side."""
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.titlesize": 11}


def plot_panels(drawn: list[tuple[Panel, dict[str, pd.Series]]], path: Path, columns: int = 2) -> None:
    """Draw one panel each: every step in pale, a centred moving average in full with its last value.

    Without any panel no figure is left: one of an earlier run is removed.
    """
    if not drawn:
        path.unlink(missing_ok=True)
        return
    rows = math.ceil(len(drawn) / columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 2.3 * rows), layout="constrained", squeeze=False)
        for axis, (panel, lines) in zip(axes.flat, drawn, strict=False):
            _draw_panel(axis, panel, lines)
        for axis in axes.flat[len(drawn) :]:
            axis.set_axis_off()
        for axis in axes.flat[max(0, len(drawn) - columns) : len(drawn)]:
            axis.set_xlabel("step")
        save(figure, path)


def plot_ciou(results: Results, scores: Scores, path: Path) -> None:
    """Draw grouped bars, one group per split and one bar per variant, with 95 % intervals and the cIoU in percent on each bar."""
    most = max(1, int(WIDTH / (0.42 * (len(results.variants) + 1))))  # for figures on bars to have room
    rows = math.ceil(len(results.splits) / most)
    per_row = math.ceil(len(results.splits) / rows)
    colours = variant_colours(results.variants)
    top = 100 * max(scores[variant, split].interval[1] for variant in results.variants for split in results.splits)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, 1, figsize=(WIDTH, 0.7 + 2.2 * rows), layout="constrained", squeeze=False, sharey=True)
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
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
        note = "bars: cIoU under free generation; lines: 95 % bootstrap intervals over images"
        figure.supxlabel(note, fontsize=9, color="#555555")
        save(figure, path)


def variant_colours(variants: tuple[str, ...]) -> dict[str, str]:
    """Return grey for the base, and one colour for each other variant in their order."""
    others = [variant for variant in variants if variant != BASE]
    return {BASE: GREY, **{variant: COLOURS[i % len(COLOURS)] for i, variant in enumerate(others)}}


def save(figure: Figure, path: Path, colours: int = 96) -> None:
    """Write a PNG in place of `path` and free the figure. A palette of `colours` entries takes a fifth of the bytes."""
    figure.set(dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # `savefig` would draw twice, and write and read a larger file
    reduced = (
        Image.fromarray(np.asarray(canvas.buffer_rgba()))
        .convert("RGB")
        .quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    )
    with replacing(path) as temporary:
        reduced.save(temporary, format="png", optimize=True)
    plt.close(figure)


def _draw_panel(axis: Axes, panel: Panel, lines: dict[str, pd.Series]) -> None:
    for colour, (label, curve) in zip(COLOURS, lines.items(), strict=False):
        mean = smooth(curve)
        axis.plot(curve.index, curve, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(mean.index, mean, color=colour, linewidth=1.8, label=f"{label} {mean.iloc[-1]:.3g}")
    axis.set_title(textwrap.fill(panel.title, 30), loc="left")
    if panel.log:
        axis.set_yscale("log")
    elif panel.share:
        axis.set_ylim(0, 1.02)
    else:
        low, high = min(curve.min() for curve in lines.values()), max(curve.max() for curve in lines.values())
        axis.set_ylim(min(0, 1.05 * low), max(0, 1.05 * high) or 1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, handlelength=1.2, borderaxespad=0.2)


def _draw_bars(axis: Axes, scores: Scores, variant: str, splits: tuple[str, ...], place: int, places: int, colour: str) -> None:
    """Draw the bars of one variant: the `place`-th of `places` in each split's group."""
    bar = 0.86 / places
    x = np.arange(len(splits)) + (place - (places - 1) / 2) * bar
    height = 100 * np.array([scores[variant, split].ciou for split in splits])
    ends = 100 * np.array([scores[variant, split].interval for split in splits])
    axis.bar(x, height, 0.92 * bar, color=colour, label=variant)
    axis.vlines(x, ends[:, 0], ends[:, 1], color="#222222", linewidth=1.2)
    for at, value, end in zip(x, height, ends[:, 1], strict=True):
        axis.annotate(f"{value:.1f}", (at, max(value, end)), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
