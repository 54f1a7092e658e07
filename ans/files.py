"""Files that appear whole or not at all, and where unfinished work lies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` at the end, and is removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # with the suffix, which may choose the format
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def runs_folder() -> Path:
    """Where unfinished work lies: `ANS_RUNS`, else `runs` beside `dvc.yaml`."""
    return Path(os.environ.get("ANS_RUNS", "runs"))
