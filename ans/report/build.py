"""The whole report, from what the other stages left."""

import json
from pathlib import Path
from typing import Any

from ans.config import SUBSET, Config
from ans.report.gallery import CHANGED, candidates, choose, draw_chains, draw_gallery, order
from ans.report.page import Page, write_page
from ans.report.plots import plot_ciou, plot_panels
from ans.report.results import ResultsError, read_results
from ans.report.tables import score, write_csv, write_markdown, write_means
from ans.report.training import conflict_panels, panels, read_training


def build(config: Config, reports: Path, data: Path, checkpoint: Path) -> None:
    """Write summary.{csv,md,json}, variants.csv, figures/*.png and report.html below `reports`.

    Reads eval/, train/plots/ and data/ below `reports`, eval/ below `data`, the manifest and the chains in `checkpoint`, and the
    pictures' images below `paths.root`; only what the configuration names. Raises `ResultsError` naming the first file that is
    missing or does not fit.
    """
    settings, root, figures = config.report, Path(config.paths.root), reports / "figures"
    names = config.questions.split_results(), config.questions.caption_results()
    results = read_results(reports, data, tuple(config.variants), *names)
    training = read_training(reports / "train" / "plots", checkpoint)
    indexes = [_read(reports / "data" / f"{source}.json", "index") for source in (*config.sources, *config.own, SUBSET)]
    protocols = {name: _read(data / "eval" / name / "protocol.json", "evaluate") for name in config.variants}
    scores = score(results, settings.bootstrap, settings.seed)

    plot_panels(panels(training.curves), figures / "loss.png")
    plot_panels(conflict_panels(training.curves), figures / "conflict.png", columns=2)
    plot_ciou(results, scores, figures / "ciou.png")
    draw_chains(training.chains, root, figures / "chains.png")
    table = candidates(results, settings.seed)
    for name, kinds in {"gallery": CHANGED, "best": ("best",), "worst": ("worst",)}.items():
        chosen = choose(table, {kind: order(table, kind) for kind in kinds}, settings.gallery)
        draw_gallery(results, chosen, data, root, figures / f"{name}.png")

    write_csv(results, scores, reports / "summary.csv")
    write_means(results, scores, reports / "variants.csv", reports / "summary.json")
    write_markdown(results, scores, reports / "summary.md")
    page = Page(results, scores, training, indexes, protocols, data, root, settings.examples, settings.seed)
    write_page(page, reports / "report.html")


def _read(path: Path, stage: str) -> dict[str, Any]:
    if not path.is_file():
        raise ResultsError(f"{path}: not there; the `{stage}` stage writes it")
    return json.loads(path.read_text(encoding="utf-8"))
