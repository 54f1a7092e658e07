"""The whole report, from what evaluation and training left."""

from collections.abc import Sequence
from pathlib import Path

from ans.config import Report
from ans.report.gallery import draw_gallery
from ans.report.plots import plot_ciou, plot_curves
from ans.report.results import read_results
from ans.report.tables import score, write_csv, write_markdown


def build(
    variants: Sequence[str],
    splits: Sequence[str],
    captions: Sequence[str],
    settings: Report,
    root: Path,
    reports: Path,
    data: Path,
) -> None:
    """Write summary.csv, summary.md and figures/*.png below `reports`.

    Reads eval/ and train/plots/ below `reports`, eval/ below `data`, and the gallery's images below `root`.
    Raises `ResultsError` naming the first file that is missing or does not fit.
    """
    results = read_results(reports, data, variants, splits, captions)
    scores = score(results, settings.bootstrap, settings.seed)
    write_csv(results, reports / "summary.csv")
    write_markdown(results, scores, reports / "summary.md")
    plot_curves(reports / "train" / "plots", reports / "figures" / "loss.png")
    plot_ciou(results, scores, reports / "figures" / "ciou.png")
    draw_gallery(results, data, root, settings.gallery, settings.seed, reports / "figures" / "gallery.png")
