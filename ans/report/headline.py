"""What one should know first: which data, which variant is best and whether it differs, where it fails, which run this is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ans import record
from ans.config import Config
from ans.evaluation.metrics import FEWEST_IMAGES
from ans.groups import TRAINABLE
from ans.report.failures import FAILED_BELOW, REASONS
from ans.report.results import BASE, Results
from ans.report.tables import MEAN, Scores, difference
from ans.report.training import Training
from ans.workspace import Workspace

Headline = dict[str, str]
"""What a line is about -> the line."""


def headline(
    config: Config,
    workspace: Workspace,
    results: Results,
    scores: Scores,
    training: Training,
    protocols: Mapping[str, Mapping[str, Any]],
    reasons: Mapping[str, pd.Series],
) -> Headline:
    """Return the first lines of the report. `reasons`: variant -> why each of its expressions failed."""
    best = max(results.variants, key=lambda variant: scores[variant, MEAN].ciou)
    return {
        "Data": _data(config, workspace, results, training, protocols),
        "Best variant": _best(config, results, scores, best),
        "Where it fails": _failures(best, reasons[best]),
        "Run": _run(workspace, training, protocols),
    }


def _data(
    config: Config, workspace: Workspace, results: Results, training: Training, protocols: Mapping[str, Mapping[str, Any]]
) -> str:
    where = "The data sets below paths.root, not ANS’s synthetic world."
    if Path(config.paths.root).resolve() == workspace.world.resolve():
        where = (
            "Synthetic: drawings of coloured shapes that ANS makes itself, in the layouts of the published data sets. The splits have "
            "the published names, but none of the numbers is about photographs or comparable with published ones."
        )
    samples = ", ".join(f"{name} ({count:,})" for name, count in training.manifest["samples"].items())
    asked = sum(results.metrics[BASE, split]["n"] for split in results.splits)
    part = ", a part of each" if any(protocol["capped"] for protocol in protocols.values()) else ""
    return f"{where} Trained on samples of {samples}; evaluated on {asked:,} expressions of {', '.join(results.splits)}{part}."


def _best(config: Config, results: Results, scores: Scores, best: str) -> str:
    """Return it with its gain over the base, and which other variants it is told apart from."""
    score = scores[best, MEAN]
    mean = f", mean of {len(results.splits)} splits" if len(results.splits) > 1 else ""
    if best == BASE:
        return f"{BASE}, the model before training (cIoU {100 * score.ciou:.1f} %{mean}): no variant is above it."
    what = "; ".join(TRAINABLE[group].about for group in config.variants[best] if group in config.train.trained)
    change, low, high = (100 * value for value in score.difference)
    text = (
        f"{best}, cIoU {100 * score.ciou:.1f} %{mean}: {change:+.1f} points on {BASE} (95 % interval {low:+.1f} to {high:+.1f})."
    )
    text += f" It has from the training: {what}; the rest is the base’s."
    if score.images < FEWEST_IMAGES:
        return f"{text} With {score.images} images nothing can be said about the difference."
    others = [variant for variant in results.variants if variant != best]
    differs = {}
    for other in others:
        _, low, high = difference(results, best, other, config.report.bootstrap, config.report.seed)
        differs[other] = low > 0 or high < 0
    for words, kind in (("It differs from", True), ("It is not told apart from", False)):
        if named := [other for other in others if differs[other] == kind]:
            text += f" {words} {', '.join(named)}."
    return text


def _failures(variant: str, reasons: pd.Series) -> str:
    failed = reasons[reasons != ""]
    if failed.empty:
        return f"No expression has an IoU below {FAILED_BELOW} ({variant})."
    counts = failed.value_counts()
    first = str(counts.index[0])
    return (
        f"{len(failed) / len(reasons):.0%} of the expressions have an IoU below {FAILED_BELOW} ({variant}). The main reason, in "
        f"{counts.iloc[0] / len(failed):.0%} of these: {first} ({REASONS[first]})."
    )


def _run(workspace: Workspace, training: Training, protocols: Mapping[str, Mapping[str, Any]]) -> str:
    """Return settings, and of the last run of `train` in this folder experiment, commit, date, duration and machine."""
    manifest = training.manifest
    how, preset = " + ".join(task["title"] for task in manifest["tasks"].values()), manifest["preset"]
    parts = [f"Preset {preset}, {manifest['steps']} steps, {how}."]
    if best := manifest.get("best"):
        parts = [f"Preset {preset}, {how}: step {best['step']}, the best of the validation (evaluation {best['number']})."]
    run = record.read(workspace.records, "train")
    if run is None or run.seconds is None:
        return " ".join([*parts, "Commit, date, duration and machine of the training were not recorded in this folder."])
    parts += [f"Experiment {run.experiment}."] if run.experiment else []
    parts += [f"Commit {run.commit}."] if run.commit else []
    parts.append(f"Trained {run.began} in {record.duration(run.seconds)} on {run.machine}.")
    evaluations = [record.read(workspace.records, f"evaluate@{variant}") for variant in protocols]
    if (seconds := [of.seconds for of in evaluations if of is not None and of.seconds]) and len(seconds) == len(evaluations):
        parts.append(f"Evaluated in {record.duration(sum(seconds))}.")
    return " ".join(parts)
