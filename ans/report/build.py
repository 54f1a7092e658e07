"""The whole report, from what the other stages left."""

import json
from pathlib import Path
from typing import Any

from ans.config import Config
from ans.config.schema import SUBSET
from ans.report.failures import find_reasons
from ans.report.gallery import CHANGED, candidates, choose, draw_examples, draw_gallery, order
from ans.report.grounded import read_grounded
from ans.report.headline import headline
from ans.report.page import Page, write_page
from ans.report.plots import plot_ciou, plot_panels
from ans.report.results import ResultsError, read_results
from ans.report.tables import score, write_csv, write_markdown, write_means
from ans.report.training import conflict_panels, panels, read_training
from ans.report.videos import read_videos
from ans.workspace import Workspace


def build(config: Config, workspace: Workspace = Workspace()) -> None:
    """Write summary.{csv,md,json}, variants.csv, figures/*.png and report.html of the workspace's reports.

    Reads what the other stages left, only what the configuration names, and the pictures' images below `paths.root`. Raises
    `ResultsError` naming the first file that is missing or does not fit.
    """
    settings, root, reports, data = config.report, Path(config.paths.root), workspace.reports, workspace.root / "data"
    figures, scope = reports / "figures", config.evaluate.scope
    names = scope.split_results(), scope.caption_results()
    results = read_results(reports, data, tuple(config.variants), *names)
    training = read_training(workspace.training / "plots", workspace.checkpoint)
    indexes = [_read(workspace.index_report(source), "index") for source in (*config.sources, *config.own, SUBSET)]
    protocols = {name: _read(workspace.predictions(name) / "protocol.json", "evaluate") for name in config.variants}
    scores = score(results, settings.bootstrap, settings.seed)

    plot_panels(panels(training), figures / "loss.png")
    plot_panels(conflict_panels(training.curves), figures / "conflict.png")
    plot_ciou(results, scores, figures / "ciou.png")
    draw_examples(training, root, figures / "examples.png")
    table = candidates(results, settings.seed)
    for name, kinds in {"gallery": CHANGED, "best": ("best",), "worst": ("worst",)}.items():
        chosen = choose(table, {kind: order(table, kind) for kind in kinds}, settings.gallery)
        draw_gallery(results, chosen, data, root, figures / f"{name}.png")

    write_csv(results, scores, reports / "summary.csv")
    videos = read_videos(reports, data, tuple(config.variants), tuple(config.evaluate.videos))
    conversations = read_grounded(reports, data, tuple(config.variants), config.evaluate.grounded)
    further = videos.main(), conversations.main()
    write_means(results, scores, further, reports / "variants.csv", reports / "summary.json")
    reasons = {variant: find_reasons(results, data, variant) for variant in results.variants}
    first = headline(config, workspace, results, scores, training, protocols, reasons)
    if line := videos.line():
        first["Videos"] = line
    write_markdown(results, scores, first, reports / "summary.md")
    page = Page(
        first,
        results,
        scores,
        reasons,
        training,
        indexes,
        protocols,
        data,
        root,
        settings.examples,
        settings.seed,
        videos,
        conversations,
    )
    write_page(page, reports / "report.html")


def _read(path: Path, stage: str) -> dict[str, Any]:
    if not path.is_file():
        raise ResultsError(f"{path}: missing; the `{stage}` stage writes it")
    return json.loads(path.read_text(encoding="utf-8"))
