"""A killed training continues to the same bits: killed at every file operation, and for real at random moments."""

import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ans.config import Config
from ans.formats.pth import read_pth
from ans.launch import environments
from ans.training import loop, setup, state
from ans.training.hooks.health import Health
from ans.training.state import ResumeError
from ans.workspace import Workspace
from tests import forked, pipeline
from tests.training.death import Killed, die_and_go_on

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("resume"))


@pytest.fixture
def here(work: Path, tmp_path: Path) -> Workspace:
    return pipeline.beside(work, tmp_path)


def small_values(work: Path, **changes: object) -> dict:
    settings = {"train__steps": STEPS, "train__batch": 2, "launch__save_state_seconds": 0.0}
    return pipeline.small_values(work.parent / "world", **(settings | changes))


def config(work: Path, **changes: object) -> Config:
    return Config(small_values(work, **({"train__save_every": 2, "launch__workers": 0} | changes)))


def outcome(at: Workspace) -> dict[str, object]:
    """Everything that a run leaves."""
    left = [*at.training.rglob("*.json"), *at.training.rglob("*.tsv"), *at.checkpoint.glob("*.json")]
    files = {path.name: path.read_bytes() for path in sorted(left)}
    paths = sorted(at.checkpoint.glob("*.pth"))
    weights = {path.name: {k: t.numpy().tobytes() for k, t in read_pth(path).state.items()} for path in paths}
    return {"files": files, "weights": weights}


@pytest.fixture(scope="module")
def uninterrupted(work: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    at = pipeline.beside(work, tmp_path_factory.mktemp("uninterrupted"))
    loop.train(config(work), at)
    found = outcome(at)
    assert set(found["weights"]) == {"last.pth", "step_000002.pth"}
    assert not list(at.runs.iterdir()), "a run that came to its end leaves no state"
    return found


def test_killed_at_any_file(here: Workspace, work: Path, uninterrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename and every write of tensors is a point of death."""
    deaths = die_and_go_on(lambda: loop.train(config(work), here), monkeypatch)
    assert deaths > 3 * STEPS
    assert outcome(here) == uninterrupted


def test_another_learning_rate_begins_anew(here: Workspace, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Health, "after", lambda self, step, values: (_ for _ in ()).throw(Killed) if step == 3 else None)
        loop.train(config(work), here)
    folders = list(here.runs.iterdir())
    loop.train(config(work, train__lr=1e-5), here)
    assert list(here.runs.iterdir()) == folders, "the other run's state is still there"


def test_a_run_that_is_like_another_says_so(
    here: Workspace, work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Health, "after", lambda self, step, values: (_ for _ in ()).throw(Killed) if step == 3 else None)
        loop.train(config(work), here)
    (begun,) = here.runs.iterdir()
    caplog.set_level("INFO")
    loop.train(config(work, train__lr=1e-5), here)
    assert f"starting a new run; unfinished runs with similar settings:\n{begun}, saved" in caplog.text
    assert "ago: train.lr was 0.0006, is 1e-05" in caplog.text
    loop.train(config(work, train__lr=1e-5, train__seed=1, train__beta=0.1, train__steps=3, train__clip=2.0), here)
    assert caplog.text.count("starting a new run") == 1, "four differences are another run"


def test_other_micro_batches_go_on_with_the_same_samples(
    here: Workspace, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half the batch, accumulated twice, as on half as many processes: the same run but for the order of sums."""
    dropless = {"train__lora__dropout": 0.0}
    whole = pipeline.beside(work, tmp_path / "whole")
    loop.train(config(work, **dropless), whole)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Health, "after", lambda self, step, values: (_ for _ in ()).throw(Killed) if step == 3 else None)
        loop.train(config(work, **dropless), here)
    caplog.set_level("INFO")
    loop.train(config(work, **dropless, train__batch=1, train__accumulation=2), here)
    assert "continued at step 2" in caplog.text
    for name in ("loss", "ref_mask", "grad_norm"):
        one, other = ((at.training / "plots" / f"{name}.tsv").read_text().split()[2:] for at in (whole, here))
        assert [float(x) for x in one] == pytest.approx([float(x) for x in other], rel=2e-3), name


def test_two_trainings_write_into_no_folder_at_once(tmp_path: Path) -> None:
    """Neither two of one run, be it in two clones with one ANS_RUNS, nor two of other settings in one clone."""
    first = state.ResumeFolder(tmp_path / "runs", {"a": 1}, {}, 60.0)
    first.lock(tmp_path / "clone/checkpoint")
    for settings, clone, reason in (({"a": 1}, "other", "this run"), ({"a": 2}, "clone", "checkpoint: this folder")):
        with pytest.raises(ResumeError, match=f"{reason} is locked by another training"):
            state.ResumeFolder(tmp_path / "runs", settings, {}, 60.0).lock(tmp_path / clone / "checkpoint")
    state.ResumeFolder(tmp_path / "runs", {"a": 2}, {}, 60.0).lock(tmp_path / "other/checkpoint")
    first.remove()
    state.ResumeFolder(tmp_path / "runs", {"a": 1}, {}, 60.0).lock(tmp_path / "clone/checkpoint")


def test_a_state_is_a_copy_and_comes_seldom_enough(tmp_path: Path) -> None:
    """A write of 3 s is followed by 147 s of training at least; what is written is what was when it was asked for."""
    folder = state.ResumeFolder(tmp_path, {"a": 1}, {}, 60.0)
    folder.lock(tmp_path / "checkpoint")
    weight, rows = torch.zeros(3), [1.0]
    folder.save({"step": 1, "weight": weight, "rows": rows})
    weight += 1
    rows.append(2.0)
    folder.wait()
    assert folder.load() == {"step": 1, "weight": pytest.approx(torch.zeros(3)), "rows": [1.0], "conditions": {}}
    folder.cost = 3.0
    folder.last -= 100
    assert not folder.due()
    folder.last -= 51
    assert folder.due()


def test_other_code_is_an_error_that_names_the_choice(here: Workspace, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Health, "after", lambda self, step, values: (_ for _ in ()).throw(Killed) if step == 2 else None)
        loop.train(config(work), here)
    monkeypatch.setattr(setup, "digest", lambda *_: "other")
    with pytest.raises(ResumeError, match=r"started with code .* continue at step 1, or remove .*train-"):
        loop.train(config(work), here)


def test_a_full_disk_loses_nothing(here: Workspace, work: Path, uninterrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    full = 0
    with monkeypatch.context() as patch:
        save = torch.save

        def until_full(content, file, *arguments):
            nonlocal full
            full += 1
            if full == 3:
                file.write(b"half")
                raise OSError(28, "No space left on device")
            return save(content, file, *arguments)

        patch.setattr(torch, "save", until_full)
        with pytest.raises(OSError, match=r"could not be saved: No space left.*untouched"):
            loop.train(config(work), here)
    gc.collect()  # the exception's frames hold the run's lock, which the end of a process gives back
    assert not list(here.root.rglob(".*.*"))
    loop.train(config(work), here)
    assert outcome(here) == uninterrupted


def start(work: Path, folder: Path, values: dict, *command: str) -> subprocess.Popen:
    pipeline.write_params(work, values)
    environment = os.environ | {"PYTHONPATH": str(pipeline.REPOSITORY), "ANS_RUNS": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    environment["SHELL"] = "/bin/sh"  # dash stays between DVC and the stage, bash does not
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", *(command or ("stages.train",))], cwd=work, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_state(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("train-*/state.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)


def test_a_real_kill_and_a_real_sigterm(work: Path, tmp_path: Path) -> None:
    """By the user's own command: killed (all processes of the run), stopped by SIGTERM, and continued to the same bits."""
    values = small_values(work, train__steps=20, launch__workers=1)
    at = Workspace(work)
    runs = tmp_path / "runs"
    pipeline.write_params(work, values)
    pipeline.run(work, "train")
    expected = outcome(at)

    killed = start(work, runs, values)
    wait_for_state(runs, killed)
    time.sleep(random.uniform(0, 1))
    for group in sessions_of(killed):
        os.killpg(group, signal.SIGKILL)
    killed.wait()
    (state,) = runs.glob("train-*/state.pt")
    rows = (at.training / "plots" / "loss.tsv").read_text().splitlines()[1:]
    assert [int(row.split()[0]) for row in rows] == list(range(1, len(rows) + 1)), "a row for each step"
    assert len(rows) >= torch.load(state, weights_only=True)["step"]
    stopped = start(work, runs, values | {"launch": values["launch"] | {"save_state_seconds": 1000.0}})
    time.sleep(1)
    wait_for_line(stopped, "continued at step")
    time.sleep(1)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 128 + signal.SIGTERM
    states = list(runs.glob("train-*/state.pt"))
    assert len(states) == 1 and torch.load(states[0], weights_only=True)["step"] < 20
    last = start(work, runs, values)
    assert last.wait() == 0, last.stdout.read()
    assert outcome(at) == expected
    assert json.loads((at.training / "metrics.json").read_text())["loss"] > 0


DVC = """
stages:
  train:
    cmd: python -m stages.train
    params: [train]
    outs: [models/checkpoint]
"""


@pytest.mark.parametrize(
    ("number", "to", "command"),
    [
        (signal.SIGINT, "process", ()),
        (signal.SIGTERM, "all", ()),
        (signal.SIGINT, "group", ("dvc", "repro")),
        (signal.SIGTERM, "process", ("dvc", "repro")),
    ],
    ids=str,
)
def test_asked_to_stop_it_saves_first(
    work: Path, tmp_path: Path, number: signal.Signals, to: str, command: tuple[str, ...]
) -> None:
    """With a data worker, by `kill` of the command's process, by Ctrl-C (its process group), and by a batch system (every process
    that there is). The state is newer than the signal: no other would have been written."""
    changes = {"train__steps": 3000, "launch__save_state_seconds": 1e6, "launch__workers": 1, "launch__log_with": ["dvclive"]}
    values = small_values(work, **changes)
    (work / ".dvc").mkdir(exist_ok=True)
    (work / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (work / "dvc.yaml").write_text(DVC)
    process = start(work, tmp_path / "runs", values, *command)
    wait_for_line(process, "train: step 1 of 3,000")
    groups = sessions_of(process)
    sent = time.time()
    if to == "process":
        process.send_signal(number)
    for group in {"process": (), "group": (process.pid,), "all": groups}[to]:
        os.killpg(group, number)
    said = process.stdout.read()  # until the last of its processes has ended
    assert process.wait() == (process.returncode if command else 143) != 0
    (state,) = (tmp_path / "runs").glob("train-*/state.pt")
    assert state.stat().st_mtime > sent
    step = torch.load(state, weights_only=True)["step"]
    assert f"stopped at step {step} of 3000, saved; start the same command again" in said and "Traceback" not in said
    for plots in ("plots", "live/plots/metrics"):
        rows = (work / "reports" / "train" / plots / "loss.tsv").read_text().splitlines()
        assert len(rows) == 1 + step, "the curves on disk are as long"
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(work / "reports")


@pytest.fixture(scope="module")
def many(work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, object], list[float]]:
    """Three processes that nothing happens to: their settings, what they leave, and the losses."""
    runs = tmp_path_factory.mktemp("many")
    values = small_values(work, train__steps=6, launch__processes=3, train__lora__dropout=0.0)
    settings = pipeline.write_params(work, values).launch
    here = os.environ | {"PYTHONPATH": str(pipeline.REPOSITORY), "ANS_RUNS": str(runs), "CUDA_VISIBLE_DEVICES": ""}
    for done in forked.run_together("ans.training", cwd=work, environments=[here | place for place in environments(settings, 0)]):
        assert done.returncode == 0, done.stderr
    return values, outcome(Workspace(work)), losses(work)


def losses(work: Path) -> list[float]:
    lines = (work / "reports" / "train" / "plots" / "loss.tsv").read_text().splitlines()[1:]
    return [float(line.split()[1]) for line in lines]


def one_dies(process: subprocess.Popen) -> None:
    """Any of a run's processes, killed: the run ends by itself, within a minute, and says which it was."""
    ranks = [pid for pid in children_of(process.pid) if b"ans.training" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    place = random.randrange(3)
    os.kill(sorted(ranks)[place], signal.SIGKILL)
    killed = time.monotonic()
    said = process.stdout.read()
    assert process.wait() == 137 and time.monotonic() - killed < 60
    assert re.search(r"error: process \d of this machine was ended by SIGKILL", said), said


@pytest.fixture(scope="module")
def broken(work: Path, many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of three processes leaves when one of them is killed at a random moment."""
    runs = tmp_path_factory.mktemp("broken") / "runs"
    first = start(work, runs, many[0])
    wait_for_state(runs, first)
    time.sleep(random.uniform(0, 1))
    one_dies(first)
    return runs


def test_three_processes_go_on_after_all_that_happens(work: Path, tmp_path: Path, many, broken: Path) -> None:
    """One was killed, and then all are asked to stop at a random moment; they end in the same bits."""
    values, expected, _ = many
    runs = Path(shutil.copytree(broken, tmp_path / "runs"))
    second = start(work, runs, values)
    wait_for_line(second, "continued at step")
    time.sleep(random.uniform(0, 1))
    second.send_signal(signal.SIGTERM)
    said = second.stdout.read()
    if second.wait() != 0:  # it may have come to its end before
        assert second.returncode == 143 and "saved; start the same command again" in said
        last = start(work, runs, values)
        said = last.stdout.read()
        assert last.wait() == 0 and "continued at step" in said, said
    assert outcome(Workspace(work)) == expected


def test_another_number_of_processes_goes_on_with_the_same_samples(work: Path, tmp_path: Path, many, broken: Path) -> None:
    """One of three was killed; two go on with the same steps but for the order of sums."""
    values, _, expected = many
    runs = Path(shutil.copytree(broken, tmp_path / "runs"))
    fewer = json.loads(json.dumps(values))
    fewer["launch"]["processes"], fewer["train"]["batch"] = 2, 3
    last = start(work, runs, fewer)
    said = last.stdout.read()
    assert last.wait() == 0 and "begun on 3 process(es), continued on 2" in said, said
    assert losses(work) == pytest.approx(expected, rel=2e-3)


def wait_for_line(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never printed")


def sessions_of(process: subprocess.Popen) -> set[int]:
    """Process groups of a process and of all that it started."""
    return {os.getpgid(pid) for pid in [process.pid, *children_of(process.pid)]}


def children_of(pid: int) -> list[int]:
    """All that a process started, and what they did."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [below for child in found for below in children_of(child)]
