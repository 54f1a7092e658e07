"""A run of DVC whose params.yaml is changed by another command stops with the reason, and nothing wrong is recorded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ans import record
from tests.pipeline import REPOSITORY

PIPELINE = """
stages:
  one:
    cmd: python one.py
    params: [train.beta]
    outs: [one]
  two:
    cmd: python two.py
    deps: [one]
    params: [train.beta]
    outs: [two]
"""
STAGE = """
import sys, yaml
from pathlib import Path
from ans.stage import run_stage
def main():
    Path({name!r}).write_text(str(yaml.safe_load(open("params.yaml"))["train"]["beta"]))
    {then}
run_stage(main)
"""
CHANGE = 'Path("params.yaml").write_text(Path("params.yaml").read_text().replace("0.5", "0.25"))'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("train: {beta: 0.5}\nlaunch: {processes: 1}\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(STAGE.format(name=name, then="pass"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    return tmp_path


def repro(folder: Path) -> subprocess.CompletedProcess:
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": binaries}
    command = [sys.executable, "-m", "dvc", "repro"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_change_between_two_stages_stops_the_run(repository: Path) -> None:
    """As a refused `dvc exp run -S` leaves it, here while the first stage has just been recorded."""
    change = "while ! grep -qs one: dvc.lock; do sleep 0.02; done; sed -i s/0.5/0.25/ params.yaml"
    (repository / "change.sh").write_text(change)
    background = 'import subprocess; subprocess.Popen(["sh", "change.sh"])'
    (repository / "one.py").write_text(STAGE.format(name="one", then=background))
    (repository / "two.py").write_text("import time; time.sleep(2)\n" + STAGE.format(name="two", then="pass"))
    done = repro(repository)
    assert done.returncode != 0 and "train.beta was 0.5, is 0.25" in done.stderr and "Traceback" not in done.stderr
    assert not (repository / "two").exists() and "two:" not in (repository / "dvc.lock").read_text()
    again = repro(repository)  # with the change, from the first stage on
    assert again.returncode == 0, again.stderr
    assert ((repository / "one").read_text(), (repository / "two").read_text()) == ("0.25", "0.25")


@pytest.mark.slow
def test_a_change_during_a_stage_is_not_recorded_beside_its_results(repository: Path) -> None:
    (repository / "one.py").write_text(STAGE.format(name="one", then=CHANGE))
    done = repro(repository)
    assert done.returncode != 0 and "train.beta was 0.5, is 0.25" in done.stderr
    assert not (repository / "dvc.lock").exists()


@pytest.mark.slow
def test_processes_may_be_changed_and_records_of_ended_runs_go(repository: Path) -> None:
    (repository / "one.py").write_text(STAGE.format(name="one", then=CHANGE.replace("0.5", ": 1}").replace("0.25", ": 2}")))
    done = repro(repository)
    assert done.returncode == 0, done.stderr
    assert len(list((repository / ".dvc/tmp/ans").glob("parameters-*"))) == 1
    shutil.rmtree(repository / ".dvc" / "cache", ignore_errors=True)
    (repository / "dvc.lock").unlink()
    assert repro(repository).returncode == 0
    assert len(list((repository / ".dvc/tmp/ans").glob("parameters-*"))) == 1


@pytest.mark.slow
def test_when_and_where_a_stage_ran_is_written_down(repository: Path) -> None:
    assert repro(repository).returncode == 0
    found = record.read(repository / ".dvc/tmp/ans", "one")
    assert found is not None and found.seconds is not None and 0 <= found.seconds < 60 and "CPU core" in found.machine
    assert found.commit == "", "no repository of git"
    (repository / "two.py").write_text(STAGE.format(name="two", then='raise ValueError("no")'))
    (repository / ".dvc/tmp/ans/stage-two.json").unlink()
    shutil.rmtree(repository / ".dvc" / "cache", ignore_errors=True)
    (repository / "dvc.lock").unlink()
    assert repro(repository).returncode and record.read(repository / ".dvc/tmp/ans", "two") is None, "it did not end"


def test_durations_are_for_readers() -> None:
    assert [record.duration(s) for s in (41.6, 60, 3599, 3600, 18720)] == [
        "42 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "5 h 12 min",
    ]
