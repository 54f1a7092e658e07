"""Exact resume. A run's state lies in `${ANS_RUNS:-runs}/train-<fingerprint>/`, not among DVC's outputs, which DVC deletes before
it runs a stage again. The fingerprint is of all that decides the result: settings, indexes and base weights.

Killed at any moment and started again, a run ends in the same bits: a state is written under another name and renamed, and all
that comes after it is a function of the state and of keyed randomness. It is written by a thread, from a copy, while the training
goes on; the other processes wait for the copy alone.
"""

import fcntl
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ans.checkpoints.save import save_durably
from ans.config import Config
from ans.files import write_json
from ans.formats.shards import sha256
from ans.progress import duration

STATE = "state.pt"
DESCRIPTION = "run.json"
BAD_IMAGES = "bad_images_"
WRITER = "state"
"""Name of the thread that writes."""

SHARE = 0.02
"""Of the time, at most so much goes into the saving of states."""


class ResumeError(ValueError):
    """A run was begun under other conditions than it would be continued. The message names them and the choice."""


def describe(config: Config, base: str, inputs: Iterable[Path], others: Mapping[str, str], processes: int) -> dict[str, Any]:
    """Return all that decides a run's result, by name: settings, the base weights' checksum, those of the input files, and `others`. Of
    batch and accumulation only their product with `processes` does: the same samples make the same step, however they are shared
    out."""
    train = config.train.model_dump(exclude={"batch", "accumulation"})
    tasks = {name: of.model_dump() for name, of in config.tasks.items()}
    values: dict[str, Any] = {"preset": config.preset, "the effective batch": config.train.effective_batch(processes)}
    values |= _flat({"train": train | tasks})
    values |= {f"the contents of {path.name}": sha256(path) for path in sorted(inputs)}
    values |= {f"the contents of {name}": checksum for name, checksum in others.items()}
    return json.loads(json.dumps(values | {"the base weights": base}))


def run_fingerprint(description: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]


class ResumeFolder:
    """The folder of one run, described by `description`. `conditions` must be the same when it is continued. A state is saved every
    `seconds`, or less often where that would take more than `SHARE` of the time; 0: after every step."""

    def __init__(self, runs: Path, description: Mapping[str, Any], conditions: Mapping[str, Any], seconds: float) -> None:
        self.folder = runs / f"train-{run_fingerprint(description)}"
        self.description, self.conditions, self.seconds = dict(description), dict(conditions), seconds
        self.last = time.monotonic()
        self.cost = 0.0  # seconds that the last saving took
        self._locks: list[IO[str]] = []
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def lock(self, results: Path) -> None:
        """Keep others out until this process ends: of the run, and of `results`, the folder that it writes, where runs with other settings
        would mix their files. Raises `ResumeError` when another is at work on either."""
        what = {
            self.folder / "lock": f"{self.folder}: this run",
            results.with_name(f"{results.name}.lock"): f"{results}: this folder",
        }
        for path, named in what.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._locks.append(open(path, "w"))  # noqa: SIM115
            try:
                fcntl.flock(self._locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResumeError(f"{named} is locked by another training; wait for it or stop it") from error
        for half_written in self.folder.glob(f".*.{STATE}"):  # by one that was killed
            half_written.unlink()
        for counted in self.folder.glob(f"{BAD_IMAGES}*"):  # whoever starts it again may have mended them
            counted.unlink()
        write_json(self.folder / DESCRIPTION, self.description)

    def bad_images(self, task: str) -> Path:
        """Return where all processes write down the images that a task could not use."""
        return self.folder / f"{BAD_IMAGES}{task}"

    def load(self) -> dict[str, Any] | None:
        """Return the last state, on the CPU, or None. Raises `ResumeError` when it was begun under other conditions."""
        path = self.folder / STATE
        if not path.is_file():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, now in self.conditions.items():
            before = state["conditions"].get(name)
            if before != now:
                raise ResumeError(
                    f"{path}: this run was started with {name} {before}, now it is {now}. Go back to that and start again to "
                    f"continue at step {state['step']}, or remove {self.folder} to start from the beginning"
                )
        return state

    def similar(self) -> list[str]:
        """Return unfinished runs beside this one that differ from it in at most three things: where each lies, how old it is, and in what
        it differs."""
        lines = []
        for path in sorted(self.folder.parent.glob(f"train-*/{DESCRIPTION}")):
            state = path.with_name(STATE)
            if path.parent == self.folder or not state.is_file():
                continue
            other = json.loads(path.read_text(encoding="utf-8"))
            names = sorted(n for n in self.description.keys() | other.keys() if self.description.get(n) != other.get(n))
            if len(names) <= 3:
                differs = "; ".join(
                    f"{name} was {_short(other.get(name))}, is {_short(self.description.get(name))}" for name in names
                )
                lines.append(f"{path.parent}, saved {duration(time.time() - state.stat().st_mtime)} ago: {differs}")
        return lines

    def due(self) -> bool:
        """Return whether the last state is old enough for another."""
        return time.monotonic() - self.last >= (max(self.seconds, self.cost / SHARE) if self.seconds else 0)

    def save(self, state: Mapping[str, Any], wait: bool = False) -> None:
        """Replace the last state, or leave it as it is; with `wait` it is on the disk when this returns.

        Raises `OSError` naming the file when it cannot be written, or when the one before could not.
        """
        self.wait()
        self.last = time.monotonic()
        content = {**_copy(state), "conditions": self.conditions}
        self._writer = threading.Thread(target=self._write, args=[content, self.last], name=WRITER)
        self._writer.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until what is being written is on the disk. Raises `OSError` when it could not be."""
        if self._writer is not None:
            self._writer.join()
        self._writer, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def _write(self, content: Mapping[str, Any], begun: float) -> None:
        try:
            save_durably(self.folder / STATE, content)
        except BaseException as error:  # for the thread that trains
            self._error = error
        self.cost = time.monotonic() - begun

    def remove(self) -> None:
        self.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        for lock in self._locks:
            lock.close()


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return flat


def _short(value: object) -> str:
    """Return a checksum by its first digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _copy(value: Any) -> Any:
    """Return a copy that later steps do not change, its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return tuple(_copy(item) for item in value) if isinstance(value, tuple) else value
