"""Metric curves as DVC reads them: one TSV per curve, and the last values as JSON."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from ans.files import replacing

SECONDS = 30.0


class Curves:
    """`plots/<name>.tsv` (step, value), written every `SECONDS` while the run goes on, and at the end `metrics.json` too. With
    `folder` None (a process that is not the first) nothing is written."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.written = time.monotonic()
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
        self.write()
        metrics = {}
        for name, rows in self.rows.items():
            tail = rows[-max(1, len(rows) // 10) :]
            metrics[name] = sum(value for _, value in tail) / len(tail)
            if best and name.startswith("val_"):
                metrics[name] = best[name]
        if self.folder is not None:
            write_json(self.folder / "metrics.json", metrics)

    def write_when_due(self) -> None:
        """Write all curves when the last time is `SECONDS` ago."""
        if time.monotonic() - self.written >= SECONDS:
            self.write()

    def write(self) -> None:
        """Write all curves as far as they are known."""
        self.written = time.monotonic()
        if self.folder is not None:
            for name, rows in self.rows.items():
                lines = "".join(f"{step}\t{value:.6g}\n" for step, value in rows)
                _replace(self.folder / f"plots/{name}.tsv", f"step\t{name}\n{lines}")


def write_json(path: Path, values: object) -> None:
    """Write `values` under `path`, never half."""
    _replace(path, json.dumps(values, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
