"""Two evaluations of the same expressions, side by side: `python -m ans compare A B [--split SPLIT]`.

A and B are variants of this run (full, base) or folders of another's tables (/elsewhere/data/eval/full).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ans.data.masks import run_lengths
from ans.data.records import QUERY_KINDS
from ans.evaluation.metrics import FEWEST_IMAGES, iou, paired_bootstrap
from ans.report.results import KEY, ResultsError

HELP = "two variants side by side: by size of the object, length of the expression, ..."
DATA = Path("data/eval")
RESAMPLES, SEED = 2000, 0

SIZES = {"small, < 3 % of the image": 0.03, "medium, 3 to 10 %": 0.10, "large, > 10 %": np.inf}
LENGTHS = {"1 to 2 words": 2, "3 to 5 words": 5, "6 words and more": np.inf}
POSITIONS = (
    r"\b(?:left|right|top|bottom|upper|lower|middle|center|centre|corner|side|leftmost|rightmost|topmost|above|below|under|over"
    r"|behind|front|back|between|near|nearest|next|beside|far|farthest|closest|first|second|third|last|end)\b"
)
"""Words by which an expression says where its object is."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a variant, or a folder of tables")
    parser.add_argument("second", metavar="B", help="the one whose gain over A is shown")
    parser.add_argument("--split", help="one result, e.g. refcoco_val (default: all that both have)")


def run(chosen: argparse.Namespace) -> None:
    names = [Path(chosen.first).name, Path(chosen.second).name]
    if names[0] == names[1]:  # the same variant of two runs
        names = [chosen.first, chosen.second]
    for split in [chosen.split] if chosen.split else splits(chosen.first, chosen.second):
        table = compare(read(chosen.first, split), read(chosen.second, split))
        print(text(table, split, *names), end="\n\n")


def groups(table: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """(name, rows as bool) of: all, each object size, each length of expression, with and without position words, and ReasonSeg's
    long and short queries.

    Sizes are shares of the image, not COCO's pixels: images of a few hundred pixels and of 4,000 then mean the same by "small".
    """
    share = table["area"] / (table["height"] * table["width"])
    length = table["sent"].str.split().str.len()
    placed = table["sent"].str.contains(POSITIONS, case=False, regex=True).to_numpy()
    yield "all", np.ones(len(table), bool)
    for values, bins in ((share, SIZES), (length, LENGTHS)):
        low = -np.inf
        for name, high in bins.items():
            yield name, ((values > low) & (values <= high)).to_numpy()
            low = high
    yield "with a position word", placed
    yield "without", ~placed
    for kind in QUERY_KINDS.values():
        yield f"{kind} query", (table["category"] == kind).to_numpy()


def compare(first: pd.DataFrame, second: pd.DataFrame, resamples: int = RESAMPLES, seed: int = SEED) -> pd.DataFrame:
    """One row per group that is not empty: n, images, cIoU of both in [0, 1], and second - first with its 95 % interval.

    Both tables hold the same expressions, with the columns of `ans.evaluation.tables.EXPRESSIONS` and `area` (of the true mask in
    pixels). Images are resampled, the same for both. Raises `ValueError` where the expressions differ.
    """
    first, second = (table.sort_values(KEY, ignore_index=True) for table in (first, second))
    if not first[[*KEY, "gt_counts"]].equals(second[[*KEY, "gt_counts"]]):
        raise ValueError(
            f"the two tables ({len(first)} and {len(second)} rows) are not about the same expressions and true masks"
        )
    rows = []
    for name, chosen in groups(first):
        if chosen.any():
            images, (a, b) = first["image_path"][chosen].nunique(), (_sums(table[chosen]) for table in (first, second))
            difference, low, high = paired_bootstrap(b, a, resamples, seed)
            totals = [iou(int(i.sum()), int(u.sum())) for i, u in (a, b)]
            rows.append((name, int(chosen.sum()), images, *totals, difference, low, high))
    return pd.DataFrame(rows, columns=["group", "n", "images", "first", "second", "difference", "low", "high"])


def read(where: str, split: str) -> pd.DataFrame:
    """The table of a split, of a variant or in a folder. Raises `ResultsError` naming the file that is not there, and those that
    are."""
    path = _folder(where) / f"{split}.parquet"
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.parquet"))) or "none"
        raise ResultsError(f"{path}: not there; evaluate it first (tables in that folder: {there})")
    if "caption" in pq.read_schema(path).names:
        raise ResultsError(f"{path}: is about captions; only results about expressions are compared, see the report for captions")
    columns = [*KEY, "sent", "intersection", "union", "gt_counts", "height", "width", "category"]
    table = pd.read_parquet(path, columns=columns)
    return table.assign(area=[_area(counts) for counts in table["gt_counts"]])


def splits(first: str, second: str) -> list[str]:
    """Names of the results about expressions that both have. Raises `ResultsError` when there is none."""
    found = [
        {path.stem for path in _folder(where).glob("*.parquet") if "_captions" not in path.stem} for where in (first, second)
    ]
    if not found[0] & found[1]:
        raise ResultsError(f"{_folder(first)} and {_folder(second)}: no result is in both; evaluate the same splits")
    return sorted(found[0] & found[1])


def text(table: pd.DataFrame, split: str, first: str, second: str) -> str:
    """The comparison as a Markdown table in percent; bold where the interval excludes 0."""
    lines = [
        f"## {split}: {second} - {first}",
        "",
        f"| cIoU (%) | n / images | {first} | {second} | difference (95 % interval) |",
    ]
    lines += ["| :-- | --: | --: | --: | --: |"]
    for row in table.itertuples():
        mark = "**" if row.images >= FEWEST_IMAGES and (row.low > 0 or row.high < 0) else ""
        interval = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}" if row.images >= FEWEST_IMAGES else "too few images"
        change = f"{mark}{100 * row.difference:+.1f}{mark} ({interval})"
        values = f"{100 * row.first:.1f} | {100 * row.second:.1f}"
        lines.append(f"| {row.group} | {row.n} / {row.images} | {values} | {change} |")
    return "\n".join(lines)


def _folder(where: str) -> Path:
    return Path(where) if Path(where).is_dir() else DATA / where


def _sums(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    sums = table.groupby("image_path")[["intersection", "union"]].sum().sort_index()
    return sums["intersection"].to_numpy(), sums["union"].to_numpy()


def _area(counts: str) -> int:
    """Pixels of a compressed RLE: the sum of its every second run."""
    return int(run_lengths(counts)[1::2].sum())
