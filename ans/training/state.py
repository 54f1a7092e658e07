"""Exact resume. A run's state lies in `${ANS_RUNS:-runs}/train-<fingerprint>/`, not among DVC's outputs, which DVC deletes before
it runs a stage again. The fingerprint is of all that decides the result: settings, indexes and base weights.

Killed at any moment and started again, a run ends in the same bits: a state is written under another name and renamed, and all
that comes after it is a function of the state and of keyed randomness.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ans.checkpoints.save import save_durably
from ans.config import Config

STATE = "state.pt"


class ResumeError(ValueError):
    """A run was begun under other conditions than it would be continued. The message names them and the choice."""


def fingerprint(config: Config, base: str, inputs: Iterable[Path]) -> str:
    """12 hexadecimal digits of the training's settings, the base weights' checksum and the contents of the input files."""
    settings = [config.train.model_dump(), {name: of.model_dump() for name, of in config.tasks.items()}]
    digest = hashlib.sha256(json.dumps([config.preset, base, settings]).encode())
    for path in sorted(inputs):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


class ResumeFolder:
    """The folder of one run. `conditions` must be the same when it is continued. A state is saved every `seconds`."""

    def __init__(self, folder: Path, conditions: Mapping[str, Any], seconds: float) -> None:
        self.folder, self.conditions, self.seconds = folder, dict(conditions), seconds
        self.last = time.monotonic()
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Keep others out until this process ends. Raises `ResumeError` when one is at work on the same run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResumeError(f"{self.folder}: this run is locked by another process; wait for it or stop it") from error
        for half_written in self.folder.glob(f".*.{STATE}"):  # by one that was killed
            half_written.unlink()

    def load(self) -> dict[str, Any] | None:
        """The last state, on the CPU, or None. Raises `ResumeError` when it was begun under other conditions."""
        path = self.folder / STATE
        if not path.is_file():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, now in self.conditions.items():
            before = state["conditions"].get(name)
            if before != now:
                raise ResumeError(
                    f"{path}: this run was begun with {name} {before}, now it is {now}. Go back to that and start again to "
                    f"continue at step {state['step']}, or remove {self.folder} to begin anew"
                )
        return state

    def due(self) -> bool:
        """Whether the last state is old enough for another."""
        return time.monotonic() - self.last >= self.seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the last state, or leave it as it is. Raises `OSError` naming the file when it cannot be written."""
        save_durably(self.folder / STATE, {**state, "conditions": self.conditions})
        self.last = time.monotonic()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
