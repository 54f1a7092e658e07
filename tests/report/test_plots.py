"""Figures: nothing that is written leaves the picture."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ans.report import plots
from ans.shown import Panel
from ans.tasks import load
from ans.training.manifest import panels

TASKS = {name: object.__new__(load(name)) for name in ("referring", "loop1", "loop2")}


@pytest.mark.second
def test_titles_lie_within_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = pd.Series([0.0006, 0.0002], index=[1, 200])  # labels of the axis are wide, so the panels are narrow
    drawn = [(panel, {label: curve for label in panel.curves.values()}) for panel in (Panel(**one) for one in panels(TASKS))]
    seen: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: seen.append(figure))
    plots.plot_panels(drawn, tmp_path / "loss.png")
    (figure,) = seen
    figure.draw_without_rendering()
    titles = [text for axis in figure.axes for text in axis.get_children() if isinstance(text, Text) and text.get_text()]
    assert len(titles) == len(drawn) > 10
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in titles), "cut off at the right edge"
