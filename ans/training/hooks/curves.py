"""Curves as DVC and DVCLive have them: one TSV per curve, a row longer after every step, and the last values as JSON."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ans.files import replacing, write_json
from ans.training.hooks import Hook

MAIN = re.compile(r"loss|grad_norm|cosine_all|\w+_train_iou|val_\w+")
"""The curves whose last values are metrics of DVC; of fifty columns nobody reads one."""


class Curves(Hook):
    """`plots/<name>.tsv` (step, value) and at the end `last_steps.json` and, of the main ones, `metrics.json` in `folder`; None (a
    process that is not the first): nothing. A run that is killed at any moment leaves the rows of all steps that it has done.

    `rows`: curve -> (step, value) of every step that had it. `best`: values that the metrics have in place of their own.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: dict[str, list[tuple[int, float]]] = {}
        self.best: Mapping[str, float] = {}
        self.begun: set[str] = set()

    def after(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.rows.setdefault(name, []).append((step, value))
            if name not in self.begun:  # a file of that name is of another run
                self._begin(name)
            elif self.folder is not None:
                with open(self._path(self.folder, name), "a", encoding="utf-8") as file:
                    file.write(_lines([(step, value)]))

    def finish(self) -> None:
        """Rewrite all curves, whatever became of their files, and the mean of the last tenth of each: one step alone is mostly
        noise."""
        means = {}
        for name, rows in self.rows.items():
            tail = rows[-max(1, len(rows) // 10) :]
            means[name] = self.best.get(name, sum(value for _, value in tail) / len(tail))
        if self.folder is None:
            return
        for name, rows in self.rows.items():
            with replacing(self._path(self.folder, name)) as temporary:
                temporary.write_text(_header(name) + _lines(rows), encoding="utf-8")
        write_json(self.folder / "last_steps.json", means)
        write_json(self.folder / "metrics.json", {name: value for name, value in means.items() if MAIN.fullmatch(name)})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state. The files then have the rows of the state: those of later steps are learnt again."""
        self.rows = state["rows"]
        for name in self.rows:
            self._begin(name)

    def _begin(self, name: str) -> None:
        """Write a curve's file as far as it is known."""
        self.begun.add(name)
        if self.folder is not None:
            path = self._path(self.folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_header(name) + _lines(self.rows[name]), encoding="utf-8")

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / "plots" / f"{name}.tsv"


def _header(name: str) -> str:
    return f"step\t{name}\n"


def _lines(rows: Iterable[tuple[int, float]]) -> str:
    return "".join(f"{step}\t{value:.6g}\n" for step, value in rows)
