"""Check what a finished run left: every variant on every split, with figures, and numbers that agree with the committed ones.

Run from the root of the clone: reports/ is what the run left, the committed files are HEAD's. On one machine a run gives the same
bits again. On another the last digits of a sum differ, and training makes more of that; docs/measured.md says how much. So

- there are as many questions, and all other numbers of `base`, of which nothing is trained, lie within `BASE_WIDTH`;
- a variant's cIoU less the base's lies in the committed 95 % interval of that difference, on every split and in their mean;
- its other numbers lie within `WIDTHS` of the committed ones, and those of the training within `TRAIN_WIDTHS`.

Widths are about two and a half times the largest distance that was measured; the intervals of cIoU are as much. Those of the facts
(`facts_right`, `all_right`, `wrong_object`) are not measured yet: they are chosen, about four captions in a hundred at most.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path

import pandas as pd

from ans.config import Config, load
from ans.report.results import BASE

BASE_WIDTH = 0.003
WIDTHS = {
    **{"miou": 0.016, "p50": 0.06, "p60": 0.06, "p70": 0.06, "p80": 0.06, "p90": 0.06, "seg_rate": 0.01, "ciou_forced": 0.016},
    **{
        "cider": 0.012,
        "exact": 0.008,
        "facts_right": 0.02,
        "all_right": 0.04,
        "wrong_object": 0.02,
        "cycle_ciou": 0.023,
        "cycle_miou": 0.01,
        "cycle_seg_rate": 0.01,
    },
}
TRAIN_WIDTHS = {r"norm\d_|grad_norm": 0.16, r"cosine_|along_|.*_(gradient|non_empty|different)": 0.045, ".*": 0.015}
"""By the beginning of the name, the first that fits."""
EXACT = ("n", "images", "capped", "lr")
TRAINING = ("training", "last steps")

Numbers = Mapping[str, float]
Rows = dict[tuple[str, str], Numbers]


def from_disk(name: str) -> str:
    return (Path("reports") / name).read_text(encoding="utf-8")


def from_head(name: str) -> str:
    return subprocess.run(["git", "show", f"HEAD:reports/{name}"], check=True, capture_output=True, text=True).stdout


def read_rows(read: Callable[[str], str], config: Config) -> Rows:
    """(variant, split, result of captioning or "mean") -> its numbers, and those of the training."""
    summary = pd.read_csv(StringIO(read("summary.csv"))).to_dict("records")
    means = pd.read_csv(StringIO(read("variants.csv"))).to_dict("records")
    rows: Rows = {(row.pop("variant"), row.pop("split")): row for row in summary}
    rows |= {(row.pop("variant"), "mean"): row for row in means}
    for variant in config.variants:
        rows |= {
            (variant, name): json.loads(read(f"eval/{variant}/{name}.json")) for name in config.evaluate.scope.caption_results()
        }
    return rows | {TRAINING: json.loads(read("train/last_steps.json"))}


def interval(variant: str, metric: str, row: Numbers) -> tuple[float, float] | None:
    """Where a run's value must lie, from the committed numbers; None: anywhere."""
    value = row[metric]
    if metric in EXACT:
        return value, value
    if variant == TRAINING[0]:
        width = next(width for pattern, width in TRAIN_WIDTHS.items() if re.match(pattern, metric))
    elif variant == BASE:
        width = BASE_WIDTH if metric in ("ciou", *WIDTHS) else None
    elif metric in ("ciou", "difference"):
        shift = value - row["difference"]
        return row["difference_low"] + shift, row["difference_high"] + shift
    else:
        width = WIDTHS.get(metric)
    return None if width is None else (value - width, value + width)


def disagreements(run: Rows, committed: Rows) -> list[str]:
    """What of a run's numbers does not lie where the committed ones say, one line each."""
    odd = sorted(run.keys() ^ committed.keys())
    found = [f"{' '.join(key)}: is in the run or in what is committed, not in both" for key in odd]
    for key in sorted(run.keys() & committed.keys()):
        for metric, value in committed[key].items():
            bounds, now = interval(key[0], metric, committed[key]), run[key].get(metric, float("nan"))
            if bounds is not None and not bounds[0] <= now <= bounds[1]:
                expected = f"expected {bounds[0]:.6g} to {bounds[1]:.6g} (committed: {value:.6g})"
                found.append(f"{' '.join(key)}: {metric} is {now:.6g}, {expected}")
    return found


def gaps(reports: Path, rows: Rows, config: Config) -> list[str]:
    """What is missing below `reports`, or does not fit together, one line each."""
    splits = config.evaluate.scope.split_results()
    names = (*splits, *config.evaluate.scope.caption_results(), "mean")
    expected = {(variant, name) for variant in config.variants for name in names} | {TRAINING}
    found = [f"{' '.join(key)}: is in the results or in params.yaml, not in both" for key in sorted(rows.keys() ^ expected)]
    for variant, split in sorted(rows.keys() & expected):
        if split in splits:
            row, file = rows[variant, split], reports / "eval" / variant / f"{split}.json"
            metrics = json.loads(file.read_text(encoding="utf-8"))
            if metrics["n"] != row["n"] or abs(metrics["ciou"] - row["ciou"]) > 1e-6:
                found.append(f"{file}: n {metrics['n']}, ciou {metrics['ciou']}, but summary.csv has {row['n']}, {row['ciou']}")
    for name in ("ciou.png", "gallery.png", "loss.png"):
        figure = reports / "figures" / name
        if not figure.is_file() or not figure.read_bytes().startswith(b"\x89PNG"):
            found.append(f"{figure}: no such picture")
    return found


def main() -> None:
    config = load()
    rows = read_rows(from_disk, config)
    found = gaps(Path("reports"), rows, config) + disagreements(rows, read_rows(from_head, config))
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if found:
        sys.exit(1)
    table = pd.read_csv("reports/summary.csv")
    print(table.pivot(index="split", columns="variant", values="ciou").to_string())


if __name__ == "__main__":
    main()
