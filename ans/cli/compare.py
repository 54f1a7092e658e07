"""Two evaluations of the same questions, side by side: `python -m ans compare A B [--split SPLIT]`.

A and B are variants of this run (full, base) or folders of another's tables (/elsewhere/data/eval/full). A set of videos of
`evaluate.videos` is the split `<set>_video`, a split of `evaluate.grounded` is `<split>_grounded`. Of two of the same clips or images, for
example one by the memory and one frame by frame, A's can be the other one, `--against`.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ans.captions import cider
from ans.data.masks import run_lengths
from ans.data.records import QUERY_KINDS
from ans.evaluation.metrics import FEWEST_IMAGES, iou, paired_bootstrap
from ans.evaluation.video_metrics import VideoScore, by_clip
from ans.report.results import KEY, ResultsError

HELP = "two variants side by side: by size of the object, length of the expression, ..."
DATA = Path("data/eval")
RESAMPLES, SEED = 2000, 0
ALL = "all"
EXPRESSIONS, CAPTIONS = "cIoU", "cIoU of what was found again by the caption"
"""What is compared: headings of results about expressions, and about described regions."""
WANTED = [
    *KEY,
    "sent",
    "references",
    "caption",
    "facts_right",
    "facts",
    "intersection",
    "union",
    "gt_counts",
    "height",
    "width",
    "category",
]
COLUMNS = ["group", "n", "images", "first", "second", "difference", "low", "high"]

SIZES = {"small, < 3 % of the image": 0.03, "medium, 3 to 10 %": 0.10, "large, > 10 %": np.inf}
LENGTHS = {"1 to 2 words": 2, "3 to 5 words": 5, "6 words and more": np.inf}
PHRASES = {"1 to 2 phrases": 2, "3 to 4 phrases": 4, "5 phrases and more": np.inf}
POSITIONS = (
    r"\b(?:left|right|top|bottom|upper|lower|middle|center|centre|corner|side|leftmost|rightmost|topmost|above|below|under|over"
    r"|behind|front|back|between|near|nearest|next|beside|far|farthest|closest|first|second|third|last|end)\b"
)
"""Words by which an expression says where its object is."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a variant, or a folder of tables")
    parser.add_argument("second", metavar="B", help="the one whose gain over A is shown")
    parser.add_argument("--split", help="one result, e.g. refcoco_val (default: all that both have)")
    parser.add_argument(
        "--against", metavar="SPLIT", help="A's result, where it is another of the same videos or images than that of --split"
    )


def run(chosen: argparse.Namespace) -> None:
    names = [Path(chosen.first).name, Path(chosen.second).name]
    if names[0] == names[1]:  # the same variant of two runs
        names = [chosen.first, chosen.second]
    folders = [_folder(where) for where in (chosen.first, chosen.second)]
    if chosen.against:
        if (kind := _kind(chosen.split or "")) is None or kind is not _kind(chosen.against):
            endings = " or ".join(f"<...>{ending}" for ending in KINDS)
            raise ValueError(f"--against: goes with --split, and both name results of one kind: {endings}")
        rows, others = (read_rows(*of) for of in zip(folders, (chosen.against, chosen.split), strict=True))
        names = [f"{name} in {split}" for name, split in zip(names, (chosen.against, chosen.split), strict=True)]
        print(text(kind.compare(rows, others), chosen.split, *names, heading=kind.heading, things=kind.things))
        return
    pairs = {}
    for split in [chosen.split] if chosen.split else splits(*folders):
        if kind := _kind(split):
            rows, others = (read_rows(folder, split) for folder in folders)
            print(text(kind.compare(rows, others), split, *names, heading=kind.heading, things=kind.things), end="\n\n")
            continue
        first, second = (read(folder, split) for folder in folders)
        print(text(compare(first, second), split, *names, heading=_heading(first)), end="\n\n")
        if _heading(first) == CAPTIONS:
            print(text(compare_captions(first, second), split, *names, heading="the captions"), end="\n\n")
        pairs[split] = first, second
    for heading in (EXPRESSIONS, CAPTIONS):
        alike = {split: pair for split, pair in pairs.items() if _heading(pair[0]) == heading}
        if len(alike) > 1:
            mean = means(list(alike.values()))
            print(text(mean, f"mean of {len(alike)} results", *names, heading=heading), end="\n\n")


def groups(table: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, rows as bool) of: all, each object size, each length of expression (of a described region: of its first reference), with
    and without position words, and ReasonSeg's long and short queries.

    Sizes are shares of the image, not COCO's pixels: images of a few hundred pixels and of 4,000 then mean the same by "small".
    """
    share = table["area"] / (table["height"] * table["width"])
    length = table["sent"].str.split().str.len()
    placed = table["sent"].str.contains(POSITIONS, case=False, regex=True).to_numpy()
    yield ALL, np.ones(len(table), bool)
    yield from _binned(share.to_numpy(), SIZES)
    yield from _binned(length.to_numpy(), LENGTHS)
    yield "with a position word", placed
    yield "without", ~placed
    for kind in QUERY_KINDS.values():
        yield f"{kind} query", (table["category"] == kind).to_numpy()


def compare(first: pd.DataFrame, second: pd.DataFrame, resamples: int = RESAMPLES, seed: int = SEED) -> pd.DataFrame:
    """Return one row per group that is not empty: n, images, cIoU of both in [0, 1], and second - first with its 95 % interval.

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
    return pd.DataFrame(rows, columns=COLUMNS)


def compare_captions(first: pd.DataFrame, second: pd.DataFrame, resamples: int = RESAMPLES, seed: int = SEED) -> pd.DataFrame:
    """Compare as `compare` does, of described regions the captions themselves, a row per metric of `CaptionTable`: CIDEr-D, of its 10, and
    where the truth is known the share of facts that are right and of captions in which all are. The tables are about the same regions."""
    first, second = (table.sort_values(KEY, ignore_index=True) for table in (first, second))
    scores = [np.array(cider(list(table["caption"]), list(map(list, table["references"])))) / 10 for table in (first, second)]
    facts, others = (table["facts"].to_numpy(np.float64) for table in (first, second))
    known = (facts > 0) & (others > 0)  # none is NaN
    right = [table["facts_right"].to_numpy(np.float64) for table in (first, second)]
    rows = []
    for name, of, counted, chosen in (
        ("CIDEr-D, of 10", scores, np.ones(len(first)), np.ones(len(first), bool)),
        ("facts right", right, facts, known),
        ("all facts right", [own == facts for own in right], np.ones(len(first)), known),
    ):
        if chosen.any():
            images = first["image_path"][chosen]
            total = pd.Series(counted[chosen]).groupby(images.to_numpy()).sum().to_numpy()
            a, b = ((pd.Series(own[chosen]).groupby(images.to_numpy()).sum().to_numpy(), total) for own in of)
            totals = [sums.sum() / total.sum() for sums, _ in (a, b)]
            rows.append((name, int(chosen.sum()), len(total), *totals, *paired_bootstrap(b, a, resamples, seed)))
    return pd.DataFrame(rows, columns=COLUMNS)


def compare_videos(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], resamples: int = RESAMPLES, seed: int = SEED
) -> pd.DataFrame:
    """Compare as `compare` does, J&F: the mean over expressions, clips resampled. Groups: all, each length of expression, objects that
    are seen in every frame and others, and each kind that the data set has. ReVOS's expressions of absent objects count in none.

    Both hold rows of `ans.evaluation.videos` with the same expressions. Raises `ValueError` where these differ, or have no true masks.
    """
    first, second = (sorted(rows, key=lambda row: (row["clip"], row["id"])) for rows in (first, second))
    about = [[(row["clip"], row["id"], row["true"]) for row in rows] for rows in (first, second)]
    if about[0] != about[1]:
        raise ValueError(
            f"the two tables ({len(first)} and {len(second)} rows) are not about the same expressions and true masks"
        )
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a["kind"] != "absent"]
    if not pairs or pairs[0][0]["j"] is None:
        raise ValueError("the true masks of this set are not published, so there is no J&F to compare")
    rows = []
    for name, chosen in _video_groups([a for a, _ in pairs]):
        if chosen.any():
            own = [pair for pair, wanted in zip(pairs, chosen, strict=True) if wanted]
            clips = [a["clip"] for a, _ in own]
            a, b = (by_clip(clips, [VideoScore(pair[i]["j"], pair[i]["f"]) for pair in own]) for i in (0, 1))
            totals = [sums.sum() / counts.sum() for sums, counts in (a, b)]
            rows.append((name, len(own), len(a[0]), *totals, *paired_bootstrap(b, a, resamples, seed)))
    return pd.DataFrame(rows, columns=COLUMNS)


def compare_grounded(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], resamples: int = RESAMPLES, seed: int = SEED
) -> pd.DataFrame:
    """Compare as `compare` does, `gcg_miou`: the mean over images, which are resampled. Groups: all, each number of true phrases.

    Both hold rows of `ans.evaluation.grounded` about the same images. Raises `ValueError` where these differ.
    """
    first, second = (sorted(rows, key=lambda row: row["image"]) for rows in (first, second))
    about = [[(row["image"], row["true_counts"]) for row in rows] for rows in (first, second)]
    if about[0] != about[1]:
        raise ValueError(f"the two tables ({len(first)} and {len(second)} rows) are not about the same images and true masks")
    values = np.array([[row["miou"] for row in rows] for rows in (first, second)])
    phrases = np.array([len(row["true_counts"]) for row in first])
    rows = []
    for name, chosen in [(ALL, np.ones(len(first), bool)), *_binned(phrases, PHRASES)]:
        if chosen.any():
            ones = np.ones(chosen.sum())
            a, b = ((own[chosen], ones) for own in values)
            totals = [own.mean() for own, _ in (a, b)]
            rows.append((name, int(phrases[chosen].sum()), len(ones), *totals, *paired_bootstrap(b, a, resamples, seed)))
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True)
class Kind:
    """Results that have no table, but a file of rows: what is compared, by what, and over what the intervals are."""

    heading: str
    compare: Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]]], pd.DataFrame]
    things: str


KINDS = {
    "_video": Kind("J&F", compare_videos, "clips"),
    "_grounded": Kind("mIoU of paired masks", compare_grounded, "images"),
}
"""How the name of such a result ends -> its kind."""


def _kind(split: str) -> Kind | None:
    return next((kind for ending, kind in KINDS.items() if split.endswith(ending)), None)


def _video_groups(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    lengths = np.array([len(row["text"].split()) for row in rows])
    seen = np.array([all(_area(counts) for counts in row["true"]) for row in rows])
    yield ALL, np.ones(len(rows), bool)
    yield from _binned(lengths, LENGTHS)
    yield "seen in every frame", seen
    yield "not in every frame", ~seen
    for kind in sorted({row["kind"] for row in rows} - {""}):
        yield kind, np.array([row["kind"] == kind for row in rows])


def means(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], resamples: int = RESAMPLES, seed: int = SEED) -> pd.DataFrame:
    """Return one row, as `compare` has it, for the unweighted mean over several results; an image that they share is drawn for all at
    once."""
    sums = []
    for tables in zip(*pairs, strict=True):
        joined = pd.concat([_image_sums(table) for table in tables], axis=1, keys=range(len(tables))).fillna(0).sort_index()
        sums.append((joined.xs("intersection", axis=1, level=1).to_numpy(), joined.xs("union", axis=1, level=1).to_numpy()))
    (a, b), images = sums, len(sums[0][0])
    totals = [np.mean([iou(*total) for total in zip(*(part.sum(axis=0) for part in one), strict=True)]) for one in (a, b)]
    row = (ALL, sum(len(table) for table, _ in pairs), images, *totals, *paired_bootstrap(b, a, resamples, seed))
    return pd.DataFrame([row], columns=COLUMNS)


def read(folder: Path, split: str) -> pd.DataFrame:
    """Return the table of a split in a folder. Of described regions: what was found again by the caption alone, the first reference as
    `sent`. Raises `ResultsError` naming the missing file and the existing ones."""
    path = folder / f"{split}.parquet"
    if not path.is_file():
        existing = ", ".join(sorted(other.stem for other in folder.glob("*.parquet"))) or "none"
        raise ResultsError(f"{path}: missing; evaluate it first (tables in that folder: {existing})")
    columns = [name for name in WANTED if name in pq.read_schema(path).names]
    table = pd.read_parquet(path, columns=columns)
    if "references" in columns:
        table = table.assign(sent=[texts[0] if len(texts) else "" for texts in table["references"]], sent_id=0)
    return table.assign(area=[_area(counts) for counts in table["gt_counts"]])


def read_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows of a result of `KINDS` in a folder. Raises `ResultsError` naming the missing file and the existing ones."""
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        existing = ", ".join(sorted(other.stem for other in folder.glob("*.jsonl") if _kind(other.stem))) or "none"
        raise ResultsError(f"{path}: missing; evaluate it first (such results in that folder: {existing})")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def splits(first: Path, second: Path) -> list[str]:
    """Return names of the results that both have, without sets of videos whose true masks are not published. Raises `ResultsError` when
    there is none."""
    found = [
        {path.stem for path in folder.glob("*.parquet")} | {path.stem for path in folder.glob("*.jsonl") if _scored(path)}
        for folder in (first, second)
    ]
    if not found[0] & found[1]:
        raise ResultsError(f"{first} and {second}: no result is in both; evaluate the same splits")
    return sorted(found[0] & found[1])


def text(table: pd.DataFrame, split: str, first: str, second: str, heading: str = EXPRESSIONS, things: str = "images") -> str:
    """Return the comparison as a Markdown table in percent; bold where the interval excludes 0."""
    lines = [
        f"## {split}: {second} - {first}",
        "",
        f"| {heading} (%) | n / {things} | {first} | {second} | difference (95 % interval) |",
    ]
    lines += ["| :-- | --: | --: | --: | --: |"]
    for row in table.itertuples():
        mark = "**" if row.images >= FEWEST_IMAGES and (row.low > 0 or row.high < 0) else ""
        interval = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}" if row.images >= FEWEST_IMAGES else f"too few {things}"
        change = f"{mark}{100 * row.difference:+.1f}{mark} ({interval})"
        values = f"{100 * row.first:.1f} | {100 * row.second:.1f}"
        lines.append(f"| {row.group} | {row.n} / {row.images} | {values} | {change} |")
    return "\n".join(lines)


def _scored(path: Path) -> bool:
    """Return whether a file of rows is of `KINDS`, and not of videos whose true masks are not published."""
    if _kind(path.stem) is None:
        return False
    with path.open(encoding="utf-8") as file:
        return json.loads(file.readline()).get("j", 0) is not None


def _binned(values: np.ndarray, bins: Mapping[str, float]) -> Iterator[tuple[str, np.ndarray]]:
    low = -np.inf
    for name, high in bins.items():
        yield name, (values > low) & (values <= high)
        low = high


def _heading(table: pd.DataFrame) -> str:
    return CAPTIONS if "references" in table else EXPRESSIONS


def _folder(where: str) -> Path:
    """Return the tables of a variant, or in a folder. Raises `ResultsError` for an unknown variant, naming the existing ones."""
    folder = Path(where) if Path(where).is_dir() else DATA / where
    if not folder.is_dir():
        existing = ", ".join(sorted(path.name for path in DATA.glob("*") if path.is_dir())) or "none"
        raise ResultsError(f"{where}: no such folder, and no such variant in {DATA} (existing ones: {existing})")
    return folder


def _image_sums(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby("image_path")[["intersection", "union"]].sum().sort_index()


def _sums(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    sums = _image_sums(table)
    return sums["intersection"].to_numpy(), sums["union"].to_numpy()


def _area(counts: str) -> int:
    """Return pixels of a compressed RLE: the sum of its every second run."""
    return int(run_lengths(counts)[1::2].sum())
