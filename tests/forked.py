"""`python -m stages.<stage>` in a process forked from one that has imported every package, which else takes a stage seconds each time.

A training or evaluation by one process runs within the stage's own, where the pipeline starts another: what is tested with these is
what stages make of each other's files. How processes are started and end is tested on the commands themselves
(tests/training/test_ranks.py, test_resume.py, tests/test_commands.py), and `.ci/run` runs the whole pipeline by DVC.
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

from ans import launch
from ans.config.schema import Launch

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["ans.training.__main__", "ans.evaluation.__main__", "ans.checkpoints.convert", "ans.report.build"]
)


def run_stage(
    work: Path, stage: str, arguments: tuple[str, ...], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a stage in `work` and wait for it."""
    streams = [work / f".{stage}.{name}" for name in ("out", "err")]
    process = _SERVER.Process(target=_run, args=(work, stage, arguments, environment, streams))
    process.start()
    process.join()
    out, err = (stream.read_text(encoding="utf-8") for stream in streams)
    for stream in streams:
        stream.unlink()
    return subprocess.CompletedProcess([stage, *arguments], process.exitcode or 0, out, err)


def _run(work: Path, stage: str, arguments: tuple[str, ...], environment: dict[str, str], streams: list[Path]) -> None:
    """Within the process: as `python -m` would."""
    for number, stream in enumerate(streams, 1):
        with stream.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    multiprocessing.set_start_method("fork", force=True)  # as an interpreter begins
    os.chdir(work)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [stage, *arguments]
    started = launch.launch
    launch.launch = lambda module, settings, *given: (
        _within(module, given) if _is_one(settings) else started(module, settings, *given)
    )
    code: str | int | None = 0
    try:
        runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except Exception:  # as an interpreter says it
        traceback.print_exc()
        code = 1
    gc.collect()  # the exception's frames held data-loading processes, which end with what started them
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _is_one(settings: Launch) -> bool:
    return settings.scheduler != "slurm" and settings.machines == settings.processes == 1


def _within(module: str, arguments: tuple[str, ...]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
