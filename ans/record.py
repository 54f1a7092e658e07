"""When, where and on which commit a stage of DVC ran: for a reader, in `.dvc/tmp`, which is neither a result nor in git."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from ans.files import write_json

RESULTS = ("reports", "dvc.lock")
"""What a run changes itself, so that it does not count as a change of what was run."""


@dataclass(frozen=True)
class Record:
    """`began`: local time, to the minute. `seconds`: None while the stage runs. `experiment`: DVC's name for it, or ""."""

    began: str
    commit: str
    machine: str
    experiment: str
    seconds: float | None = None


@contextmanager
def recorded(folder: Path, stage: str) -> Iterator[None]:
    """Write the record of `stage` into `folder` when the work within has succeeded."""
    start, record = time.monotonic(), now()
    yield
    write_json(folder / f"stage-{stage}.json", asdict(record) | {"seconds": round(time.monotonic() - start, 1)})


def read(folder: Path, stage: str) -> Record | None:
    """Return the last run of a stage here; None where its results came from DVC's cache, or it was started without DVC."""
    path = folder / f"stage-{stage}.json"
    return Record(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def now() -> Record:
    """Return the record of what begins now."""
    return Record(datetime.now().strftime("%Y-%m-%d %H:%M"), _commit(), _machine(), os.environ.get("DVC_EXP_NAME", ""))


def duration(seconds: float) -> str:
    """Return it for a reader: "42 s", "3 min 5 s", "5 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _commit() -> str:
    if not (commit := _git("rev-parse", "--short=12", "HEAD")):
        return ""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":(exclude){name}" for name in RESULTS))
    return f"{commit} with changes that are not committed" if changed else commit


def _git(*arguments: str) -> str:
    """Return what git answers; "" where there is none, or no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _machine() -> str:
    """Return its processors and its GPUs, as Linux names them."""
    names = _values(Path("/proc/cpuinfo"), "model name")
    gpus = [_values(path, "Model")[0] for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    counted = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    return ", ".join([*counted, f"{len(os.sched_getaffinity(0))} CPU cores" + (f" ({names[0]})" if names else "")])


def _values(path: Path, key: str) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key]
