"""Which files this process opens, as the interpreter tells it (`sys.addaudithook`): to see what is read again and what is not,
and to be interrupted at a certain file."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_watches: list[Callable[[Path], None]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watches and isinstance(arguments[0], str | bytes | os.PathLike):
        for watch in list(_watches):
            watch(Path(os.fsdecode(arguments[0])))


sys.addaudithook(_hook)  # which cannot be taken back, hence the list


@contextmanager
def opened(folder: Path, at: Callable[[list[Path]], None] | None = None) -> Iterator[list[Path]]:
    """The files below `folder`, but for `facts.json`, that are opened meanwhile. `at` sees the list before the last of them is opened,
    and may raise."""
    found: list[Path] = []

    def watch(path: Path) -> None:
        if path.is_relative_to(folder) and path.name != "facts.json":
            found.append(path)
            if at is not None:
                at(found)

    _watches.append(watch)
    try:
        yield found
    finally:
        _watches.remove(watch)


def interrupt(number: int) -> Callable[[list[Path]], None]:
    """For `at`: Ctrl-C when the `number`-th file would be opened."""

    def at(found: list[Path]) -> None:
        if len(found) == number:
            raise KeyboardInterrupt

    return at
