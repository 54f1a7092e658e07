"""The tables of a run: reports/summary.csv, variants.csv and summary.json for programs, reports/summary.md for readers."""

import csv
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ans.data.records import QUERY_KINDS
from ans.evaluation.metrics import FEWEST_IMAGES, THRESHOLDS, bootstrap_interval, iou, paired_bootstrap
from ans.files import replacing
from ans.report.results import BASE, METRICS, SPECIAL_METRICS, Results

MEAN = "mean"
"""Stands for the unweighted mean over all splits, where a split is named."""


@dataclass(frozen=True)
class SplitScore:
    """cIoU of one variant on one split of `images` images in [0, 1], its 95 % interval, and (difference to base, low, high)."""

    ciou: float
    interval: tuple[float, float]
    difference: tuple[float, float, float]
    images: int

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference to base excludes 0, and enough images stand behind it."""
        return self.images >= FEWEST_IMAGES and (self.difference[1] > 0 or self.difference[2] < 0)


Scores = dict[tuple[str, str], SplitScore]

MEANS_SHOWN = {"miou": "mIoU", **{f"p{percent}": f"P@0.{percent // 10}" for percent in THRESHOLDS}, "seg_rate": "says [SEG]"}
MEANS_SHOWN["ciou_forced"] = "cIoU, [SEG] given"
CAPTIONS_SHOWN = {
    "facts_right": ("facts right", 100),
    "all_right": ("all right", 100),
    "wrong_object": ("of another object", 100),
}
CAPTIONS_SHOWN |= {"cider": ("CIDEr-D", 1), "exact": ("exact", 100)}
CAPTIONS_SHOWN |= {"cycle_ciou": ("cycle cIoU", 100), "cycle_miou": ("cycle mIoU", 100)}
"""Metric -> heading, and for captions what it is multiplied by."""

CAPTIONS_NOTE = (
    "Free greedy captions of the true regions. CIDEr-D is in 0 to 10, the rest in percent. The cycle: a mask is described, and found "
    "again by that description alone; a caption that works so need not be true. Where the truth is known, as in the synthetic world: "
    "the share of an object’s facts (size, stripes, colour, shape) that its caption has right, of captions in which all are right, and "
    "of captions that fit another object of the image better."
)

SPECIAL_SHOWN = {"n_acc": "N-acc", "t_acc": "T-acc"}
SPECIAL_SHOWN |= {
    f"{key}_{kind}": f"{name}, {kind}" for kind in QUERY_KINDS.values() for key, name in (("miou", "mIoU"), ("ciou", "cIoU"))
}
"""Metric -> heading, of those that only some splits have."""

SPECIAL_NOTE = (
    "In percent. N-acc: expressions of nothing that are answered by no pixel; T-acc: the others that are answered by some; there "
    "mIoU is what gRefCOCO calls gIoU, and P@ is over expressions of something. Long and short: ReasonSeg’s queries."
)

PICTURES = {
    "ciou": "cIoU of each variant on each split",
    "loss": "Curves of training",
    "conflict": "Cosine and norms of the two loops' gradients",
    "examples": "What the tasks did: an object, two captions, the predicted mask",
    "gallery": "Expressions that changed most, masks of each variant",
    "best": "Expressions with the best masks",
    "worst": "Expressions with the worst masks",
}
"""Figure -> what it shows."""

Further = Mapping[tuple[str, str], Mapping[str, float]]
"""(variant, name of a result) -> its main metrics, and the difference to the base in the first of them."""

INTERVALS = ("ciou_low", "ciou_high", "difference", "difference_low", "difference_high")
"""Columns of the tables for programs, as `_intervals` gives them."""


def score(results: Results, resamples: int, seed: int) -> Scores:
    """Return `SplitScore` for each (variant, split), and for each (variant, `MEAN`).

    Images, not expressions, are resampled; for the mean, an image that several splits share is drawn for all of them at once.
    """
    scores = {}
    for split in (*results.splits, MEAN):
        splits = results.splits if split == MEAN else (split,)
        base = _image_sums(results, BASE, splits)
        for variant in results.variants:
            sums = _image_sums(results, variant, splits)
            scores[variant, split] = SplitScore(
                ciou=float(np.mean([iou(*total) for total in zip(*(values.sum(axis=0) for values in sums), strict=True)])),
                interval=bootstrap_interval(*sums, resamples, seed),
                difference=paired_bootstrap(sums, base, resamples, seed),
                images=len(base[0]),
            )
    return scores


def difference(results: Results, first: str, second: str, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the cIoU of one variant less that of another in the mean over splits, with its paired interval; as `score` has it for the
    base."""
    one, other = (_image_sums(results, variant, results.splits) for variant in (first, second))
    return paired_bootstrap(one, other, resamples, seed)


def rows_shown(results: Results) -> tuple[str, ...]:
    """Return the splits, and their mean where there are several."""
    return results.splits if len(results.splits) == 1 else (*results.splits, MEAN)


def is_number(cell: str) -> bool:
    """Return whether a cell of a table, as text, is a number or begins with one, or is empty: such columns are right-aligned."""
    return re.match(r"[*+\-−]*\d|\s*$", cell) is not None


def write_csv(results: Results, scores: Scores, path: Path) -> None:
    """Write one row per variant and split, in the order of the configuration: values as evaluation wrote them, and `INTERVALS`; then
    those of `SPECIAL_METRICS` that any split has, empty where another has none."""
    present = [key for key in SPECIAL_METRICS if any(key in values for values in results.metrics.values())]
    rows = []
    for variant in results.variants:
        for split in results.splits:
            values = results.metrics[variant, split]
            special = (values.get(key, "") for key in present)
            rows.append([variant, split, *(values[key] for key in METRICS), *_intervals(scores[variant, split]), *special])
    _write_csv(path, ["variant", "split", *METRICS, *INTERVALS, *present], rows)


def write_means(results: Results, scores: Scores, further: Sequence[Further], csv_path: Path, json_path: Path) -> None:
    """Write one row per variant, for plots, and the same as JSON, for `dvc exp show`: cIoU in [0, 1] as the mean over splits. `further`:
    what JSON has beside it, each by the variant that it is of.
    """
    rows: list[list[object]] = [
        [variant, scores[variant, MEAN].ciou, *_intervals(scores[variant, MEAN])] for variant in results.variants
    ]
    _write_csv(csv_path, ["variant", "ciou", *INTERVALS], rows)
    means: dict[str, dict[str, Any]] = {
        str(variant): {"ciou": ciou} | ({"difference": difference} if variant != BASE else {})
        for variant, ciou, _, _, difference, *_ in rows
    }
    for of in further:
        for (variant, name), values in of.items():
            means[variant][name] = values
    with replacing(json_path) as temporary:
        temporary.write_text(json.dumps(means, indent=2) + "\n", encoding="utf-8")


def write_markdown(results: Results, scores: Scores, first: Mapping[str, str], path: Path) -> None:
    """Write the lines to know `first`, the table with intervals, the differences to base, and the other metrics in the mean over splits.

    Those of `PICTURES` that lie in figures/ beside `path` are shown.
    """
    pictures = {picture.stem for picture in (path.parent / "figures").glob("*.png")}
    with replacing(path) as temporary:
        temporary.write_text(markdown(results, scores, first, pictures), encoding="utf-8")


def markdown(results: Results, scores: Scores, first: Mapping[str, str], pictures: Collection[str]) -> str:
    """Return the text of reports/summary.md: the lines to know `first`, tables, and those of `PICTURES` that are named."""
    others = [variant for variant in results.variants if variant != BASE]
    images = {split: results.expressions[BASE, split]["image_path"].nunique() for split in results.splits}
    counts = {split: results.metrics[BASE, split]["n"] for split in results.splits}
    total = f"{sum(counts.values())} expressions in {len(results.splits)} splits"

    def by_split(variants: list[str], cell: Callable[[SplitScore], str]) -> list[str]:
        rows = [
            [split, f"{counts[split]} / {images[split]}", *(cell(scores[variant, split]) for variant in variants)]
            for split in results.splits
        ]
        if MEAN in rows_shown(results):
            rows.append([f"**{MEAN}**", "", *(cell(scores[variant, MEAN]) for variant in variants)])
        return _table(["split", "n / images", *variants], rows)

    lines = [
        "# Results",
        "",
        *(f"- **{name}.** {text}" for name, text in first.items()),
        "",
        "cIoU in percent (sum of intersections / sum of unions over a split's expressions) under free greedy generation, "
        f"n = {total}; an answer without `[SEG]` counts as an empty mask. "
        "In brackets: 95 % bootstrap intervals over images"
        + ("; the last row is the unweighted mean over splits." if MEAN in rows_shown(results) else "."),
        "",
        *by_split(list(results.variants), _ciou_cell),
        "",
    ]
    if others:
        lines += [
            f"## Difference to {BASE}",
            "",
            f"cIoU of the variant minus that of `{BASE}`, in points, with paired bootstrap intervals over the same images; "
            f"**bold** where the interval excludes 0 (never below {FEWEST_IMAGES} images).",
            "",
            *by_split(others, _difference_cell),
            "",
        ]
    means = [[variant, *(mean_over_splits(results, variant, key) for key in MEANS_SHOWN)] for variant in results.variants]
    lines += [
        "## Other metrics",
        "",
        "Mean over the splits, in percent; per split in [summary.csv](summary.csv). The last column is an upper "
        "bound, not a result: the cIoU where the answer is given, with its `[SEG]`, instead of generated.",
        "",
        *_table(["variant", *MEANS_SHOWN.values()], means),
        "",
        *_special(results),
        *_captions(results),
        "## Pictures",
        "",
        "All of this and more is in [report.html](report.html), to be opened in a browser.",
        "",
        *(line for name, text in PICTURES.items() if name in pictures for line in (f"![{text}](figures/{name}.png)", "")),
    ]
    return "\n".join(lines)


def special_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows) of `SPECIAL_SHOWN` in percent, for the splits that have any of it; no rows where none has."""
    present = [key for key in SPECIAL_SHOWN if any(key in values for values in results.metrics.values())]
    rows = []
    for split in results.splits:
        for variant in results.variants:
            values = results.metrics[variant, split]
            if any(key in values for key in present):
                rows.append([split, variant, *(f"{100 * values[key]:.1f}" if key in values else "" for key in present)])
    return ["split", "variant", *(SPECIAL_SHOWN[key] for key in present)], rows


def _special(results: Results) -> list[str]:
    """Return the section about what only some splits have, if any does."""
    header, rows = special_table(results)
    return ["## gRefCOCO and ReasonSeg", "", SPECIAL_NOTE, "", *_table(header, rows), ""] if rows else []


def _captions(results: Results) -> list[str]:
    """Return the section about describing regions, if any result is."""
    if not results.captions:
        return []
    header, rows = captions_table(results)
    return [
        "## Describing regions",
        "",
        CAPTIONS_NOTE,
        "",
        *_table(header, rows),
        "",
    ]


def captions_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return header and rows about describing regions; a metric that no result has is left out, one that a result lacks is empty."""
    shown = {key: of for key, of in CAPTIONS_SHOWN.items() if any(key in values for values in results.captions.values())}
    rows = []
    for (variant, name), values in sorted(results.captions.items(), key=lambda entry: entry[0][1]):
        cells = (f"{scale * values[key]:.{1 if scale > 1 else 2}f}" if key in values else "" for key, (_, scale) in shown.items())
        rows.append([name, variant, *cells])
    return ["result", "variant", *(title for title, _ in shown.values())], rows


def _image_sums(results: Results, variant: str, splits: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return (images, splits) sums of intersections and of unions; 0 where a split does not have the image."""
    sums = {split: results.expressions[variant, split].groupby("image_path")[["intersection", "union"]].sum() for split in splits}
    joined = pd.concat(sums, axis=1).fillna(0).sort_index()
    return tuple(joined.xs(column, axis=1, level=1)[list(splits)].to_numpy(np.int64) for column in ("intersection", "union"))


def mean_over_splits(results: Results, variant: str, key: str) -> str:
    """Return the unweighted mean of a metric in [0, 1], in percent with one decimal."""
    return f"{100 * np.mean([results.metrics[variant, split][key] for split in results.splits]):.1f}"


def _intervals(score: SplitScore) -> tuple[float, ...]:
    return *score.interval, *score.difference


def _write_csv(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _ciou_cell(value: SplitScore) -> str:
    low, high = value.interval
    return f"{100 * value.ciou:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _difference_cell(value: SplitScore) -> str:
    difference, low, high = (f"{100 * number:+.1f}" for number in value.difference)
    mark = "**" if value.differs else ""
    return f"{mark}{difference}{mark} ({low} to {high})"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return Markdown lines, the first column and those of text to the left and the others to the right."""
    marks = ["--:" if all(map(is_number, column)) else ":--" for column in list(zip(*rows, strict=True))[1:]]
    lines = [header, [":--", *marks], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
