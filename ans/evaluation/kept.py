"""Finished batches of an evaluation, kept on disk until all are done: a killed run continues behind the last of them."""

import fcntl
import json
import shutil
from pathlib import Path
from typing import IO

from ans.evaluation.plan import Row
from ans.files import replacing


class Kept:
    """One JSON file of rows per batch in `folder`, which belongs to one variant and protocol.

    A file has its name only when it is whole, and JSON gives every number back exactly, so that what is read of an earlier run
    is what this one would have computed. Processes write different batches and need no lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Keep other evaluations of the same out until this one's end: the first that is done removes the folder. Raises
        `BlockingIOError` when another is at work on it, in this clone or in one with the same `$ANS_RUNS`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: a killed one leaves none
        except BlockingIOError as error:
            raise BlockingIOError(f"{self.folder} is locked by another evaluation of the same; wait for it or stop it") from error

    def has(self, batch: int) -> bool:
        return self._path(batch).is_file()

    def write(self, batch: int, rows: list[Row]) -> None:
        with replacing(self._path(batch)) as path:
            path.write_text(json.dumps(rows), encoding="utf-8")

    def read(self, batch: int) -> list[Row]:
        """Read a batch. Raises `FileNotFoundError` for a batch that no process has left where this one looks."""
        path = self._path(batch)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; all processes must see one folder (set ANS_RUNS to a shared one)")
        return json.loads(path.read_text(encoding="utf-8"))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def _path(self, batch: int) -> Path:
        return self.folder / f"{batch:06d}.json"
