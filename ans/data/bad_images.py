"""Images that only opening finds to be damaged: skipped, counted, and no more than a share of them."""

import logging
from collections.abc import Callable
from typing import TypeVar

from ans.data.mixing import Pool

log = logging.getLogger(__name__)

T = TypeVar("T")


class BadImages:
    """Those that a process met among the `total` images of a task. More than `limit` (a share) of them end the training."""

    def __init__(self, total: int, limit: float) -> None:
        self.total, self.limit = total, limit
        self.seen: set[str] = set()

    def instead(self, pool: Pool, position: int, take: Callable[[int, int], T]) -> T:
        """What `take` makes of the sample at `position`; where that raises, of the one at the same place of the next epoch's order,
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
        if str(error) in self.seen:
            return
        self.seen.add(str(error))
        if len(self.seen) > self.limit * self.total or len(self.seen) >= self.total:
            raise ValueError(
                f"{error}; {len(self.seen)} of {self.total} images cannot be used, index.max_bad_fraction is {self.limit}"
            ) from error
        log.warning(f"skipped, {len(self.seen)} so far: {error}")
