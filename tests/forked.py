"""`python -m <module>` in a process forked from one that has imported every package, which else takes seconds each time.

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
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from ans import launch
from ans.config.schema import Launch

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["ans.training.__main__", "ans.evaluation.__main__", "ans.checkpoints.convert", "ans.report.build"]
)


def run(module: str, *arguments: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the module as a script and wait for it."""
    (done,) = run_together(module, *arguments, cwd=cwd, environments=[env])
    return done


def run_together(
    module: str, *arguments: str, cwd: Path, environments: Sequence[Mapping[str, str]]
) -> list[subprocess.CompletedProcess[str]]:
    """Run the module as a script in a process for each environment, and wait for all. When one fails the others are killed."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [[Path(folder) / f"{name}.{place}" for name in ("out", "err")] for place in range(len(environments))]
        processes = [
            _SERVER.Process(target=_run, args=(module, arguments, cwd, dict(env), own))
            for env, own in zip(environments, streams, strict=True)
        ]
        for process in processes:
            process.start()
        left = {process.sentinel: process for process in processes}
        while left:
            for sentinel in wait(list(left)):
                ended = left.pop(int(sentinel))  # type: ignore[arg-type]
                ended.join()
                if ended.exitcode:
                    for process in left.values():
                        process.kill()
        texts = [[stream.read_text(encoding="utf-8") for stream in own] for own in streams]
    command = [module, *arguments]
    return [
        subprocess.CompletedProcess(command, process.exitcode or 0, out, err)
        for process, (out, err) in zip(processes, texts, strict=True)
    ]


def _run(module: str, arguments: tuple[str, ...], cwd: Path, env: dict[str, str], streams: list[Path]) -> None:
    """Within the process: as an interpreter would."""
    for number, stream in enumerate(streams, 1):
        with stream.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    started = launch.launch

    def launched(name: str, settings: Launch, *given: str) -> None:
        one = settings.scheduler != "slurm" and settings.machines == settings.processes == 1
        _as_main(name, given) if one else started(name, settings, *given)

    launch.launch = launched
    code: str | int | None = 0
    try:
        _as_main(module, arguments)
    except SystemExit as end:
        code = end.code
    except Exception:
        traceback.print_exc()
        code = 1
    gc.collect()  # the exception's frames held data-loading processes, which end with what started them
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _as_main(module: str, arguments: tuple[str, ...]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
