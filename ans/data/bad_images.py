"""Images that only opening finds to be damaged: skipped, counted, and no more than a share of them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ans.data.mixing import Pool

log = logging.getLogger(__name__)

T = TypeVar("T")


class BadImages:
    """Those among the `total` images of a task. More than `limit` (a share) of them end the training.

    With `path`, a file with a line for each, all processes of a run that see this file have one count; without, each has its own.
    """

    def __init__(self, total: int, limit: float) -> None:
        self.total, self.limit = total, limit
        self.seen: set[str] = set()
        self.path: Path | None = None

    def instead(self, pool: Pool, position: int, take: Callable[[int, int], T]) -> T:
        """Return what `take` makes of the sample at `position`; where that raises, of the one at the same place of the next epoch's order,
        and so on: a function of the files alone, so that any number of processes, and a resumed run, see the same.

        Raises `ValueError` naming the image when the share is passed.
        """
        while True:
            try:
                return take(*pool.at(position))
            except (ValueError, FileNotFoundError) as error:
                self._count(error)
            position += len(pool)

    def _count(self, error: ValueError | FileNotFoundError) -> None:
        said = " ".join(str(error).split())
        if said in self.seen:
            return
        self.seen.add(said)
        if self.path is not None:
            with open(self.path, "a+", encoding="utf-8") as file:  # a short line is appended whole
                file.write(f"{said}\n")
                file.flush()
                file.seek(0)
                self.seen |= set(file.read().splitlines())
        if len(self.seen) > self.limit * self.total or len(self.seen) >= self.total:
            raise ValueError(
                f"{error}; {len(self.seen)} of {self.total} images cannot be used, index.max_bad_fraction is {self.limit}"
            ) from error
        log.warning(f"skipped, {len(self.seen)} so far: {error}")
