"""Files that appear whole or not at all."""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

HOST = re.sub(r"\W+", "-", platform.node()) or "here"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the place of `path` at the end, and is removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return a name beside `path`, which ends as it does since a suffix may choose the format, for what this process writes in its place.

    What processes of this machine that were killed have left in place of `path` is removed; those of others, which may write into the
    same folder, are not known here.
    """
    temporary = path.with_name(f".{os.getpid()}-{HOST}.{path.name}")
    for left in (*_left_by_the_dead(str(path.parent)).get(path.name, ()), temporary):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return temporary


@lru_cache(maxsize=64)
def _left_by_the_dead(folder: str) -> dict[str, list[Path]]:
    """Return name -> temporary files and folders in its place whose process is gone. Looked up once per process: folders may be large."""
    found: dict[str, list[Path]] = {}
    for name in os.listdir(folder):
        match = re.fullmatch(rf"\.([0-9]{{1,10}})-{HOST}\.(.+)", name)
        if match and not _lives(int(match[1])):
            found.setdefault(match[2], []).append(Path(folder, name))
    return found


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_json(path: Path, values: object) -> None:
    """Write `values` under `path`, never half."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
