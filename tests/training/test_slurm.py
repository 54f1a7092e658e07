"""`launch.scheduler=slurm` in jobs of a real SLURM: a controller and two nodes on this machine."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import pipeline
from tests.training.slurm import cluster, command, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

SEEN = """
import json, os, sys
from pathlib import Path
from ans.processes import connect
a = connect("float32")
Path(f"{sys.argv[1]}.{a.process_index}").write_text(json.dumps([a.num_processes, os.environ["SLURMD_NODENAME"]]))
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


class Job:
    """A job of two nodes that runs one line, as the script of docs/real-runs.md does, in a folder."""

    def __init__(self, slurm: dict[str, str], folder: Path, line: str) -> None:
        self.slurm, self.output = slurm, folder / f"job-{time.monotonic_ns()}.txt"
        script = folder / "job.sh"
        paths = f"export PYTHONPATH={folder}:{pipeline.REPOSITORY} ANS_RUNS={folder}/runs CUDA_VISIBLE_DEVICES=\n"
        script.write_text(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1\n{paths}exec {line}\n", encoding="utf-8")
        place = [f"--chdir={folder}", f"--output={self.output}", "--open-mode=append"]
        done = command(slurm, "sbatch", "--parsable", *place, str(script))
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""

    def wait(self, text: str | None = None) -> str:
        """Until it has said `text`, or has ended; what it has said."""
        deadline = time.monotonic() + 120
        while (text not in self.said()) if text is not None else self.state() in ("PENDING", "RUNNING", "COMPLETING"):
            ended = text is not None and self.state() not in ("PENDING", "RUNNING")
            assert not ended and time.monotonic() < deadline, self.said()
            time.sleep(0.5)
        return self.said()

    def state(self) -> str:
        return command(self.slurm, "squeue", "--noheader", "--states=all", f"--jobs={self.number}", "--format=%T").stdout.strip()

    def stop(self) -> str:
        """As `--signal=B:TERM@300` does before a job's time is over; what it has said in the end."""
        command(self.slurm, "scancel", "--batch", "--signal=TERM", self.number)
        return self.wait()


def values(work: Path, **changes: object) -> dict:
    slurm = {"launch__machines": 2, "launch__scheduler": "slurm", "launch__workers": 1}
    return pipeline.small_values(work.parent / "world", **slurm, **changes)


def test_every_node_has_its_process(slurm: dict[str, str], tmp_path: Path) -> None:
    pipeline.write_params(tmp_path, values(tmp_path))
    (tmp_path / "seen.py").write_text(SEEN)
    (tmp_path / "begin.py").write_text(
        "from ans.config import load\nfrom ans.launch import launch\nlaunch('seen', load().launch, 'out')"
    )
    job = Job(slurm, tmp_path, f"{sys.executable} begin.py")
    said = job.wait()
    assert job.state() == "COMPLETED", said
    assert [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in (0, 1)] == [[2, "m0"], [2, "m1"]]


def test_a_job_that_is_stopped_saves_and_the_next_goes_on(slurm: dict[str, str], tmp_path: Path) -> None:
    """By the stage that DVC starts. The state is newer than the signal: no other would have been written."""
    work = pipeline.prepare(tmp_path)
    pipeline.write_params(work, values(work, train__steps=3000, train__batch=2, launch__save_state_seconds=1e6))
    before = 0
    for first in ("train: step 1 of 3,000", "continued at step"):
        job = Job(slurm, work, f"{sys.executable} -m stages.train")
        job.wait(first)
        sent = time.time()
        said = job.stop()
        (state,) = (work / "runs").glob("train-*/state.pt")
        assert state.stat().st_mtime > sent, said
        step = torch.load(state, weights_only=True)["step"]
        assert f"stopped at step {step} of 3000, saved" in said and "Traceback" not in said
        assert step >= before and (before == 0 or f"continued at step {before}" in said)
        before = step
