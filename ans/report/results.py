"""What evaluation left on disk, read back: only the variants and splits that the configuration names."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ans.data import masks
from ans.data.records import QUERY_KINDS

BASE = "base"
"""The variant that all others are compared with."""

METRICS = ("ciou", "miou", "p50", "p60", "p70", "p80", "p90", "seg_rate", "ciou_forced", "n")
SPECIAL_METRICS = ("giou", "n_acc", "t_acc", *(f"{key}_{kind}" for kind in QUERY_KINDS.values() for key in ("ciou", "miou", "n")))
"""Those that only some splits have: of gRefCOCO, and of ReasonSeg's long and short queries."""

CAPTION_METRICS = ("cider", "exact", "cycle_ciou", "cycle_miou", "n", "images")
CAPTION_TRUTH = ("facts_right", "all_right", "wrong_object")
"""Those of captions whose truth is known."""
KEY = ["image_path", "region_id", "sent_id"]
"""Columns that name one expression within a split."""


class ResultsError(ValueError):
    """A file of results is missing, or does not fit the others. The message names it."""


@dataclass(frozen=True)
class Results:
    """`metrics[variant, split]` is the flat JSON, `captions[variant, result]` that of captioning.

    `expressions[variant, split]` has one row per expression in the order of `KEY`, with columns `KEY`, sent, iou, intersection,
    union and has_seg. Every variant has the same expressions in a split.
    """

    variants: tuple[str, ...]
    splits: tuple[str, ...]
    metrics: dict[tuple[str, str], dict[str, Any]]
    captions: dict[tuple[str, str], dict[str, Any]]
    expressions: dict[tuple[str, str], pd.DataFrame]


def read_results(
    reports: Path, data: Path, variants: Sequence[str], splits: Sequence[str], captions: Sequence[str] = ()
) -> Results:
    """Read reports/eval/<variant>/<split>.json and data/eval/<variant>/<split>.parquet for all that are named, and the JSON of
    each captioning.

    Raises `ResultsError` naming the file that is missing, lacks a metric, or was made from other expressions than the rest.
    """
    metrics, expressions = {}, {}
    for split in splits:
        for variant in variants:
            path = reports / "eval" / variant / f"{split}.json"
            metrics[variant, split] = _read_metrics(path, METRICS)
            table = expressions_path(data, variant, split)
            frame = _read_table(table, [*KEY, "sent", "iou", "intersection", "union", "has_seg"])
            expressions[variant, split] = frame.sort_values(KEY, ignore_index=True)
            if len(frame) != metrics[variant, split]["n"]:
                raise ResultsError(f"{path}: n is {metrics[variant, split]['n']}, but {table} has {len(frame)} expressions")
            if not expressions[variant, split][KEY].equals(expressions[variants[0], split][KEY]):
                first = expressions_path(data, variants[0], split)
                raise ResultsError(f"{table}: other expressions than {first}; evaluate both on the same data")
    described = {}
    for variant in variants:
        for name in captions:
            described[variant, name] = _read_metrics(reports / "eval" / variant / f"{name}.json", CAPTION_METRICS)
            _read_table(expressions_path(data, variant, name), ["iou"])
    return Results(tuple(variants), tuple(splits), metrics, described, expressions)


def read_rows(
    reports: Path, data: Path, variants: Sequence[str], names: Sequence[str], kind: str, key: Sequence[str]
) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[tuple[str, str], list[dict[str, Any]]]]:
    """Read `reports/eval/<variant>/<name>_<kind>.json` and the rows of `data/eval/<variant>/<name>_<kind>.jsonl`; return both by
    (variant, name).

    Raises `ResultsError` naming the file that is missing, or whose rows differ in `key` from those of the first variant.
    """
    metrics, rows = {}, {}
    for name in names:
        for variant in variants:
            file = f"{name}_{kind}"
            paths = reports / "eval" / variant / f"{file}.json", data / "eval" / variant / f"{file}.jsonl"
            for path in paths:
                if not path.is_file():
                    raise ResultsError(f"{path}: missing; params.yaml names {name} below `evaluate`, so evaluate {variant} first")
            metrics[variant, name] = json.loads(paths[0].read_text(encoding="utf-8"))
            rows[variant, name] = [json.loads(line) for line in paths[1].read_text(encoding="utf-8").splitlines()]
            asked, first = ([[row[part] for part in key] for row in rows[of, name]] for of in (variant, variants[0]))
            if asked != first:
                raise ResultsError(f"{paths[1]}: other questions than those of {variants[0]}; evaluate both on the same data")
    return metrics, rows


def expressions_path(data: Path, variant: str, split: str) -> Path:
    """Return where evaluation leaves its per-expression table."""
    return data / "eval" / variant / f"{split}.parquet"


def read_expression(data: Path, variant: str, split: str, key: Sequence[Any]) -> pd.Series:
    """Return the whole row, masks included, of the expression with these values of `KEY`. Raises `ResultsError` if it is missing."""
    path = expressions_path(data, variant, split)
    rows = pd.read_parquet(path, filters=[(name, "==", value) for name, value in zip(KEY, key, strict=True)])
    if len(rows) != 1:
        raise ResultsError(f"{path}: {len(rows)} rows for {dict(zip(KEY, key, strict=True))}")
    return rows.iloc[0]


def decode(counts: str, height: int, width: int) -> np.ndarray:
    """Return (height, width) bool mask of a compressed COCO RLE."""
    return masks.decode(counts, height, width).astype(bool)


def _read_metrics(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise ResultsError(f"{path}: missing; the configuration names this variant and split, so evaluate it first")
    values = json.loads(path.read_text(encoding="utf-8"))
    for key in keys:
        if key not in values:
            raise ResultsError(f"{path}: has no key {key!r}")
    return values


def _read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise ResultsError(f"{path}: missing; it is made together with the metrics, so evaluate this variant again")
    return pd.read_parquet(path, columns=columns)
