"""Long work cut into parts: done by several processes, streamed, and taken up again after a kill.

A part is the file of `size` items in a row. It gets its name when it is whole, so what lies there after a kill is done.
"""

import fcntl
import gc
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ans.files import replacing
from ans.progress import Progress

log = logging.getLogger(__name__)

LOCK = "lock"

Write = Callable[[Sequence[Any], Path], None]
"""Does some items and writes their file. Runs in another process: a function of a module, or a `partial` of one."""


class Items(Protocol):
    """What is cut into parts: a list, or anything that gives the items of a slice."""

    def __len__(self) -> int: ...

    def __getitem__(self, wanted: slice, /) -> Sequence[Any]: ...


def processes() -> int:
    """Return how many may run at once: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other processes out of it: two that share `ANS_RUNS` may do the same work, and the first removes the
    folder when it is done. The other waits for that. A lock of this process alone, which its workers do not inherit, so that a killed
    one leaves none."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOCK, "w", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                log.info(f"{folder}: another process does this; waiting for it")
                fcntl.lockf(file, fcntl.LOCK_EX)
            try:
                there = os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK))
            except FileNotFoundError:
                there = False
            if there:  # else the folder has gone in the meantime
                yield
                return


def write_parts(
    items: Items, write: Write, folder: Path, size: int, name: str, unit: str, workers: int | None = None
) -> list[Path]:
    """Do all items and return the parts in order, those of an interrupted run in `folder` included.

    What is written does not depend on `workers` (None: one per core). Raises what `write` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(items), size)
    paths = [folder / f"{start // size:06d}" for start in starts]
    missing = [(start, path) for start, path in zip(starts, paths, strict=True) if not path.exists()]
    workers = min(workers or processes(), len(missing))
    with Progress(len(items), name, unit) as progress:
        progress.start_at(len(items) - sum(min(size, len(items) - start) for start, _ in missing))
        for done in _results(missing, items, write, size, workers):
            progress.update(done)
    return paths


def _results(missing: list[tuple[int, Path]], items: Items, write: Write, size: int, workers: int) -> Iterator[int]:
    """Yield the number of items of every part that has been written."""
    if workers <= 1:
        for start, path in missing:
            yield _whole(write, items[start : start + size], path)
        return
    running: deque[Future[int]] = deque()
    # A forked process must not collect what this one has left: a closed video, say, waits for threads that do not exist in it.
    with ProcessPoolExecutor(workers, initializer=gc.freeze) as pool:
        try:
            for start, path in missing:
                if len(running) == 2 * workers:  # items are not sent out faster than they are done
                    yield running.popleft().result()
                running.append(pool.submit(_whole, write, items[start : start + size], path))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _whole(write: Write, items: Sequence[Any], path: Path) -> int:
    with replacing(path) as temporary:
        write(items, temporary)
    return len(items)
