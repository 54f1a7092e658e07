"""Charts as SVG text for the page: they take their colours from its style sheet, so that they fit light and dark."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from ans.report.training import smooth
from ans.shown import Panel

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
POINTS = 240
"""Most points per line: more cannot be told apart at this width, and cost bytes."""


def line_chart(panel: Panel, lines: Mapping[str, pd.Series]) -> str:
    """Return an `<figure>` with one line per curve (each step pale, the moving average in full) and a legend with its last value.

    The curves' index is the step; the page's script shows the averages' values under the pointer. For a
    screen reader the picture is one sentence: where each curve starts and ends.
    """
    values = pd.concat(list(lines.values()))
    steps = (float(values.index.min()), float(values.index.max()))
    low, high = (0.0, 1.0) if panel.share else _limits(values, panel.log)
    ticks = _log_ticks(low, high) if panel.log else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def y(value: np.ndarray | float) -> np.ndarray:
        at = np.log(value / low) / math.log(high / low) if panel.log else (np.asarray(value) - low) / (high - low)
        return TOP + (1 - np.clip(at, 0, 1)) * (HEIGHT - TOP - BOTTOM)

    def x(step: np.ndarray | float) -> np.ndarray:
        return LEFT + (np.asarray(step) - steps[0]) / max(1.0, steps[1] - steps[0]) * (WIDTH - LEFT - RIGHT)

    parts = []
    for tick in ticks:
        at = float(y(tick))
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    for step, anchor in ((steps[0], "start"), (steps[1], "end")):
        parts.append(f'<text x="{float(x(step)):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">step {step:.0f}</text>')
    keys, spoken = [], []
    for number, (label, curve) in enumerate(lines.items()):
        curve = curve[curve > 0] if panel.log else curve
        if curve.empty:
            continue
        mean = smooth(curve)
        drawn = _chosen(mean)
        shown = f'data-name="{escape(label)}" data-steps="{" ".join(f"{step:g}" for step in drawn.index)}" '
        shown += f'data-values="{" ".join(f"{value:.3g}" for value in drawn)}"'
        parts.append(f'<path class="line raw c{number}" d="{_path(x, y, curve)}"/>')
        parts.append(f'<path class="line c{number}" {shown} d="{_path(x, y, mean)}"/>')
        keys.append(f'<li class="c{number}">{escape(label)} <b>{mean.iloc[-1]:.3g}</b></li>')
        spoken.append(f"{label} from {mean.iloc[0]:.3g} to {mean.iloc[-1]:.3g}")
    said = escape(f"{panel.title}, step {steps[0]:.0f} to {steps[1]:.0f}: {'; '.join(spoken)}")
    return (
        f'<figure class="chart"><figcaption>{escape(panel.title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
        f'<ul class="legend" aria-hidden="true">{"".join(keys)}</ul><p class="read" aria-hidden="true"></p></figure>'
    )


def interval_chart(title: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Return a `<figure>` with a row per (label, value, low, high): a dot on its interval, and a line at 0."""
    low, high = min(0.0, *(row[2] for row in rows)), max(0.0, *(row[3] for row in rows))
    left, width, line = 96, 400, 26
    height = line * len(rows) + 26
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(value: float) -> float:
        return left + (value - low) / (high - low or 1) * (width - left - 48)

    parts = [f'<path class="{"zero" if t == 0 else "grid"}" d="M{x(t):.1f} 0V{height - 22}"/>' for t in ticks]
    parts += [f'<text x="{x(t):.1f}" y="{height - 7}" text-anchor="middle">{_signed(t)}</text>' for t in ticks]
    spoken = []
    for number, (label, value, start, end) in enumerate(rows):
        at = line * number + line / 2
        parts.append(f'<text x="{left - 10}" y="{at + 4}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<path class="line c0" d="M{x(start):.1f} {at}H{x(end):.1f}"/>')
        parts.append(f'<circle class="c0" cx="{x(value):.1f}" cy="{at}" r="5"/>')
        parts.append(f'<text class="value" x="{x(end) + 8:.1f}" y="{at + 4}">{value:+.1f}</text>')
        spoken.append(f"{label} {value:+.1f} ({start:+.1f} to {end:+.1f})")
    said = escape(f"{title}: {'; '.join(spoken)}")
    return (
        f'<figure class="chart wide"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{"".join(parts)}</svg></figure>'
    )


def _signed(tick: float) -> str:
    return f"{tick:+.4g}" if tick else "0"


def _chosen(curve: pd.Series) -> pd.Series:
    """Return at most `POINTS` of its points, evenly, the first and the last among them."""
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, min(POINTS, len(curve))).round().astype(int))]


Scale = Callable[[np.ndarray], np.ndarray]
"""Values to pixels."""


def _path(x: Scale, y: Scale, curve: pd.Series) -> str:
    chosen = _chosen(curve)
    points = zip(x(chosen.index.to_numpy(float)), y(chosen.to_numpy(float)), strict=True)
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _limits(values: pd.Series, log: bool) -> tuple[float, float]:
    if log:
        positive = values[values > 0]
        if positive.empty:
            return 0.1, 1.0
        return 10 ** math.floor(math.log10(positive.min())), 10 ** math.ceil(math.log10(positive.max()) + 1e-9)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return (low, high) if high > low else (low, low + 1)


def _ticks(low: float, high: float) -> list[float]:
    """Return about four round numbers that cover low..high."""
    span = high - low or 1.0
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = round(math.log10(low)), round(math.log10(high))
    return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 4))]
