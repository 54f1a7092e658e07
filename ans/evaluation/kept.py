"""Finished batches of an evaluation, kept on disk until all are done: a killed run continues behind the last of them."""

import json
import shutil
from pathlib import Path

from ans.evaluation.plan import Row
from ans.files import replacing


class Kept:
    """One JSON file of rows per batch in `folder`, which belongs to one variant and protocol.

    A file has its name only when it is whole, and JSON gives every number back exactly, so that what is read of an earlier run
    is what this one would have computed. Processes write different batches and need no lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, batch: int) -> bool:
        return self._path(batch).is_file()

    def write(self, batch: int, rows: list[Row]) -> None:
        with replacing(self._path(batch)) as path:
            path.write_text(json.dumps(rows), encoding="utf-8")

    def read(self, batch: int) -> list[Row]:
        """Read a batch. Raises `FileNotFoundError` for a batch that no process has left where this one looks."""
        path = self._path(batch)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; all processes must see one folder (set ANS_RUNS to a shared one), and no other evaluation of the "
                "same may have finished in it meanwhile; if one has, start this one again"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def remove(self) -> None:
        """Also while another evaluation of the same, in a clone with this `$ANS_RUNS`, writes into it: what it writes may stay."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, batch: int) -> Path:
        return self.folder / f"{batch:06d}.json"
