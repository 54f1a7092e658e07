"""Evaluation as users start it, killed with SIGKILL at random points, in one process and in two."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = pipeline.prepare(tmp_path_factory.mktemp("killed"))
    shutil.copytree(work / "models" / "base", work / "models" / "variants" / "base")
    return work


def results(work: Path) -> dict[str, bytes]:
    folders = (work / "reports" / "eval" / "base", work / "data" / "eval" / "base")
    return {path.name: path.read_bytes() for folder in folders for path in folder.iterdir()}


def clear(work: Path) -> None:
    """As DVC does before a stage runs."""
    for folder in ("reports/eval", "data/eval"):
        shutil.rmtree(work / folder, ignore_errors=True)


@pytest.fixture(scope="module")
def uninterrupted(work: Path) -> dict[str, bytes]:
    pipeline.write_params(work, pipeline.small_values(work.parent / "world"))
    pipeline.run(work, "evaluate", "base")
    assert not list((work / "runs").iterdir())
    return results(work)


def kill_after(work: Path, batches: int, delay: float) -> int:
    """Start the stage and kill all its processes `delay` seconds after the `batches`-th file was kept; how many there are."""
    environment = os.environ | {"PYTHONPATH": str(pipeline.REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "stages.evaluate", "base"]
    started = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while started.poll() is None and len(list(work.glob("runs/evaluate-base-*/[0-9]*.json"))) < batches:
            time.sleep(0.005)
        time.sleep(delay)
    finally:  # every process has a session of its own, so a signal to the group would leave it running
        processes = [psutil.Process(started.pid)] if started.poll() is None else []
        processes += [child for parent in processes for child in parent.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)
        started.wait()
    return len(list(work.glob("runs/evaluate-base-*/[0-9]*.json")))


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_anywhere(work: Path, uninterrupted: dict[str, bytes], processes: int) -> None:
    """Three kills on the way, each a little later, and then to the end: the same bytes as without any, on one process."""
    clear(work)
    pipeline.write_params(work, pipeline.small_values(work.parent / "world", launch__processes=processes))
    rng = random.Random(processes)
    kept = 0
    for _ in range(3):
        now = kill_after(work, kept + 1, rng.uniform(0, 0.1))
        assert now > kept or not work.joinpath("runs").exists() or not list((work / "runs").iterdir())
        kept = now
    done = pipeline.run(work, "evaluate", "base")
    assert results(work) == uninterrupted
    assert kept == 0 or "continuing runs/evaluate-base-" in done.stdout
    assert not list((work / "runs").iterdir())
