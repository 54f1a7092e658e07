"""Metric curves as DVC reads them: one TSV per curve, and the last values as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path

from ans.files import replacing


class Curves:
    """Rows in memory, written atomically at the end: `plots/<name>.tsv` (step, value) and `metrics.json`. With `folder` None (a
    process that is not the first) nothing is written."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: dict[str, list[tuple[int, float]]] = {}

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.rows.setdefault(name, []).append((step, value))

    def state_dict(self) -> dict[str, list[tuple[int, float]]]:
        return self.rows

    def load_state_dict(self, state: dict[str, list[tuple[int, float]]]) -> None:
        self.rows = state

    def finish(self, best: Mapping[str, float] | None = None) -> None:
        """Write all curves, and as metrics the mean of the last tenth of each (one step alone is mostly noise), or its value in
        `best`, the epoch that is kept."""
        metrics = {}
        for name, rows in self.rows.items():
            self._write(f"plots/{name}.tsv", f"step\t{name}\n" + "".join(f"{step}\t{value:.6g}\n" for step, value in rows))
            tail = rows[-max(1, len(rows) // 10) :]
            metrics[name] = sum(value for _, value in tail) / len(tail)
            if best and name.startswith("val_"):
                metrics[name] = best[name]
        if self.folder is not None:
            write_json(self.folder / "metrics.json", metrics)

    def _write(self, name: str, text: str) -> None:
        if self.folder is not None:
            _replace(self.folder / name, text)


def write_json(path: Path, values: object) -> None:
    """Write `values` under `path`, never half."""
    _replace(path, json.dumps(values, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
