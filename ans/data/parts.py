"""Long work cut into parts: done by several processes, streamed, and taken up again after a kill.

A part is the file of `size` items in a row. It gets its name when it is whole, so what lies there after a kill is done. And sorting by
parts what does not fit into memory.
"""

import fcntl
import gc
import heapq
import logging
import os
import pickle
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from ans.files import replacing
from ans.progress import Progress

log = logging.getLogger(__name__)

LOCK = "lock"

CONNECTING, WORKERLESS, LOOK = 10, 300, 10
"""Seconds within which a scheduler answers; for which it may have no worker, since a cluster that has just been asked for starts slowly and
one that died is replaced; and between two looks at that."""

SORTED_AT_ONCE, SORTED_CHUNK = 200_000, 1000
"""Rows in memory at a time while more are sorted, some 60 MB of names; and of those that one file gives."""

Row = TypeVar("Row", bound=tuple[str, ...])

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
                same = os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK))
            except FileNotFoundError:
                same = False
            if same:  # else the folder has gone in the meantime
                yield
                return


def write_parts(
    items: Items,
    write: Write,
    folder: Path,
    size: int,
    name: str,
    unit: str,
    workers: int | None = None,
    scheduler: str | None = None,
) -> list[Path]:
    """Do all items and return the parts in order, those of an interrupted run in `folder` included.

    What is written does not depend on `workers` (None: one per core), nor on whether a Dask `scheduler` has others do it; these need the
    same files at the same places. Raises what `write` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(items), size)
    paths = [folder / f"{start // size:06d}" for start in starts]
    missing = [(start, path) for start, path in zip(starts, paths, strict=True) if not path.exists()]
    workers = min(workers or processes(), len(missing))
    with Progress(len(items), name, unit) as progress:
        progress.start_at(len(items) - sum(min(size, len(items) - start) for start, _ in missing))
        results = (
            _results(missing, items, write, size, workers) if scheduler is None else _afar(missing, items, write, size, scheduler)
        )
        for done in results:
            progress.update(done)
    return paths


def _results(missing: list[tuple[int, Path]], items: Items, write: Write, size: int, workers: int) -> Iterator[int]:
    """Yield the number of items of every part that has been written."""
    if workers <= 1:
        for start, path in missing:
            yield _whole(write, items[start : start + size], path)
        return
    # A forked process must not collect what this one has left: a closed video, say, waits for threads that do not exist in it.
    with ProcessPoolExecutor(workers, initializer=gc.freeze) as pool:
        yield from _in_turn(pool.submit, missing, items, write, size, 2 * workers)


def _afar(missing: list[tuple[int, Path]], items: Items, write: Write, size: int, scheduler: str) -> Iterator[int]:
    """Yield as `_results` does, what the workers of a Dask cluster have written. What a worker was doing when it died another does again:
    a part is written whole, or not at all."""
    try:
        from distributed import Client, KilledWorker  # an extra
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"index.scheduler needs Dask: pip install 'ans[dask]' ({error})", name="distributed") from error
    try:
        client = Client(scheduler, timeout=CONNECTING)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"index.scheduler: {scheduler}: no Dask scheduler answers: {error}") from error
    with client:
        nobody = ConnectionError(
            f"index.scheduler: {scheduler}: had no Dask worker for {WORKERLESS:g} s; start one: dask worker {scheduler}"
        )
        try:
            client.wait_for_workers(1, timeout=WORKERLESS)
        except TimeoutError:
            raise nobody from None

        def result(future: Any) -> int:
            last = time.monotonic()  # at which there was a worker
            while True:
                try:
                    return future.result(timeout=LOOK)
                except TimeoutError:
                    if future.done():  # the work's own, or it has just come
                        return future.result()
                last = time.monotonic() if client.ncores() else last
                if time.monotonic() - last > WORKERLESS:
                    raise nobody

        submit = partial(client.submit, _in_folder, Path.cwd(), pure=False)
        try:
            yield from _in_turn(submit, missing, items, write, size, max(1, 4 * sum(client.ncores().values())), result)
        except KilledWorker as error:
            raise BrokenExecutor(f"index.scheduler: workers died again and again of the same part: {error}") from error


def _in_folder(folder: Path, work: Callable[..., int], *given: Any) -> int:
    """Do some work where the paths that it is given begin."""
    os.chdir(folder)
    return work(*given)


def _in_turn(
    submit: Callable[..., Any],
    missing: list[tuple[int, Path]],
    items: Items,
    write: Write,
    size: int,
    ahead: int,
    result: Callable[[Any], int] = Future.result,
) -> Iterator[int]:
    """Yield what becomes of the parts, in their order; items are not sent out faster than they are done. `result` waits for one."""
    running: deque[Any] = deque()
    try:
        for start, path in missing:
            if len(running) == ahead:
                yield result(running.popleft())
            running.append(submit(_whole, write, items[start : start + size], path))
        while running:
            yield result(running.popleft())
    finally:
        for future in running:
            future.cancel()


def _whole(write: Write, items: Sequence[Any], path: Path) -> int:
    with replacing(path) as temporary:
        write(items, temporary)
    return len(items)


def ordered(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows in ascending order. Of more than `SORTED_AT_ONCE`, runs of so many are sorted, laid into temporary files (below
    `TMPDIR`), and merged."""
    left, runs = iter(rows), []
    while run := sorted(islice(left, SORTED_AT_ONCE)):
        if not runs and len(run) < SORTED_AT_ONCE:
            yield from run
            return
        runs.append(_lay(run))
    yield from heapq.merge(*map(_taken, runs))


def _lay(run: list[Row]) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # closed by whoever has read it
    for start in range(0, len(run), SORTED_CHUNK):
        pickle.dump(run[start : start + SORTED_CHUNK], file)
    file.seek(0)
    return file


def _taken(file: IO[bytes]) -> Iterator[Row]:
    with file:
        while True:
            try:
                rows = pickle.load(file)
            except EOFError:
                return
            yield from rows
