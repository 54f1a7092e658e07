"""Check that a finished run left whole results: every variant on every split, with figures. Run from the root of the clone."""

import json
import sys
from pathlib import Path

import pandas as pd

from ans.config import load


def problems(reports: Path) -> list[str]:
    """What is wrong with the results below `reports`, one line each; empty if they are whole."""
    config = load()
    expected = {(variant, split) for variant in config.variants for split in config.questions.splits}
    table = pd.read_csv(reports / "summary.csv").set_index(["variant", "split"])
    found = []
    if sorted(table.index) != sorted(expected):
        found.append(f"summary.csv: rows that are in it or in params.yaml but not in both: {sorted(expected ^ set(table.index))}")
    for variant, split in sorted(expected & set(table.index)):
        row, file = table.loc[(variant, split)], reports / "eval" / variant / f"{split}.json"
        if not row["n"] > 0 or not 0 <= row["ciou"] <= 1 or not 0 <= row["miou"] <= 1:
            found.append(f"summary.csv: {variant} {split}: {row.to_dict()}")
        metrics = json.loads(file.read_text(encoding="utf-8"))
        if metrics["n"] != row["n"] or abs(metrics["ciou"] - row["ciou"]) > 1e-6:
            found.append(f"{file}: n {metrics['n']}, ciou {metrics['ciou']}, but summary.csv has {row['n']}, {row['ciou']}")
    for name in ("ciou.png", "gallery.png", "loss.png"):
        figure = reports / "figures" / name
        if not figure.is_file() or not figure.read_bytes().startswith(b"\x89PNG"):
            found.append(f"{figure}: no such picture")
    return found


def main() -> None:
    found = problems(Path("reports"))
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if found:
        sys.exit(1)
    table = pd.read_csv("reports/summary.csv")
    print(table.pivot(index="split", columns="variant", values="ciou").to_string())


if __name__ == "__main__":
    main()
