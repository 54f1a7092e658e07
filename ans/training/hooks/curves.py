"""Curves as DVC reads them: one TSV per curve, growing while the run goes on, and the last values as JSON."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ans.files import replacing, write_json
from ans.training.hooks import Hook

SECONDS = 30.0
"""Between two writings."""

MAIN = re.compile(r"loss|grad_norm|cosine_all|\w+_train_iou|val_\w+")
"""The curves whose last values are metrics of DVC; of fifty columns nobody reads one."""


class Curves(Hook):
    """`plots/<name>.tsv` (step, value) and at the end `last_steps.json` and, of the main ones, `metrics.json` in `folder`; None (a
    process that is not the first): nothing.

    `rows`: curve -> (step, value) of every step that had it. `best`: values that the metrics have in place of their own.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: dict[str, list[tuple[int, float]]] = {}
        self.best: Mapping[str, float] = {}
        self.written = time.monotonic()

    def after(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.rows.setdefault(name, []).append((step, value))
        if time.monotonic() - self.written >= SECONDS:
            self.write()

    def write(self) -> None:
        """Write all curves as far as they are known."""
        self.written = time.monotonic()
        if self.folder is None:
            return
        for name, rows in self.rows.items():
            with replacing(self.folder / "plots" / f"{name}.tsv") as temporary:
                lines = "".join(f"{step}\t{value:.6g}\n" for step, value in rows)
                temporary.write_text(f"step\t{name}\n{lines}", encoding="utf-8")

    def finish(self) -> None:
        """Write all curves, and the mean of the last tenth of each: one step alone is mostly noise."""
        self.write()
        means = {}
        for name, rows in self.rows.items():
            tail = rows[-max(1, len(rows) // 10) :]
            means[name] = self.best.get(name, sum(value for _, value in tail) / len(tail))
        if self.folder is not None:
            write_json(self.folder / "last_steps.json", means)
            write_json(self.folder / "metrics.json", {name: value for name, value in means.items() if MAIN.fullmatch(name)})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]
