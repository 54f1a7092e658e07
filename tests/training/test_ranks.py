"""How the processes of a run are started and end together. What two of them compute is held by `test_independent_step.py`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ans.config import load
from ans.config.schema import Launch
from ans.launch import environments, launch
from tests import pipeline

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, from which modules can be imported."""
    (tmp_path / "params.yaml").write_text((pipeline.REPOSITORY / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{pipeline.REPOSITORY}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def settings(**changes: object) -> Launch:
    return load(pipeline.REPOSITORY / "params.yaml").launch.model_copy(update=changes)


CONNECTED = """
import json, sys
from pathlib import Path
from ans.processes import connect
a = connect("float32")
Path(f"{sys.argv[1]}.{a.process_index}").write_text(json.dumps([str(a.distributed_type), a.num_processes, a.mixed_precision]))
"""


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MULTI_GPU"])
def test_a_users_accelerate_config_has_no_say(work: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What such a file would change is seen by the process that is started: its launcher, and accelerate's environment."""
    folder = work / "home" / "accelerate"
    folder.mkdir(parents=True)
    (folder / "default_config.yaml").write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_processes: 4\nmixed_precision: fp16\n"
        "deepspeed_config: {zero_stage: 3}\nfsdp_config: {fsdp_version: 2}\n"
    )
    (work / "seen.py").write_text(CONNECTED)
    monkeypatch.setenv("HF_HOME", str(work / "home"))
    launch("seen", settings(), str(work / "out"))
    assert json.loads((work / "out.0").read_text()) == ["DistributedType.NO", 1, "no"]


SRUN = """#!/bin/sh
# Stands for SLURM's: starts the command once for each machine, at the same time.
echo "$@" > srun.txt
while [ "${1#--}" != "$1" ]; do shift; done
for machine in 0 1; do SLURM_NODEID=$machine "$@" & pids="$pids $!"; done
trap 'kill $pids' TERM
for pid in $pids; do wait $pid || status=$?; done
exit ${status:-0}
"""


def test_slurm_starts_every_machine(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines of one process each, on this host, that find each other."""
    values = yaml.safe_load((work / "params.yaml").read_text())
    values["launch"] |= {"machines": 2, "scheduler": "slurm"}
    (work / "params.yaml").write_text(yaml.safe_dump(values))
    (work / "seen.py").write_text(CONNECTED)
    (work / "srun").write_text(SRUN)
    (work / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{work}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("socket.gethostname", lambda: "127.0.0.1")
    launch("seen", load().launch, str(work / "out"))
    assert [json.loads((work / f"out.{rank}").read_text())[1] for rank in (0, 1)] == [2, 2]
    said = (work / "srun.txt").read_text()
    assert said.startswith("--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 ")
    assert int(said.split("--main-port ")[1].split()[0]) != settings().main_port, "two jobs on one machine do not meet"


def test_places_of_the_processes() -> None:
    """4 machines of 2 processes: ranks go on from machine to machine; on one machine, runs choose ports of their own."""
    many = settings(processes=2, machines=4, main_address="node0", main_port=1234)
    third = environments(many, 2)
    assert [(of["RANK"], of["LOCAL_RANK"], of["WORLD_SIZE"]) for of in third] == [("4", "0", "8"), ("5", "1", "8")]
    assert {(of["MASTER_ADDR"], of["MASTER_PORT"]) for of in third} == {("node0", "1234")}
    here = environments(settings(processes=2), 0)
    assert {of["MASTER_ADDR"] for of in here} == {"127.0.0.1"} and len({of["MASTER_PORT"] for of in here}) == 1
    assert "RANK" not in environments(settings(), 0)[0]


# ------------------------------------------------------------------------------------------------------------ ends

LONG_STEP = """
import os, signal, time
from pathlib import Path
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
Path("begun." + os.environ["RANK"]).touch()
while not asked:
    time.sleep(0.05)
end = time.monotonic() + 45
while time.monotonic() < end:
    time.sleep(0.5)
Path("saved." + os.environ["RANK"]).touch()
raise SystemExit(143)
"""


def start(module: str) -> subprocess.Popen:
    """`launch` of two processes, in a process of its own that can be sent signals."""
    code = f"from ans.launch import launch\nfrom tests.training.test_ranks import settings\nlaunch({module!r}, settings(processes=2))"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for(work: Path, name: str) -> None:
    deadline = time.monotonic() + 120
    while not all((work / f"{name}.{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline, name
        time.sleep(0.1)


def test_a_long_step_is_waited_for(work: Path) -> None:
    (work / "long.py").write_text(LONG_STEP)
    process = start("long")
    wait_for(work, "begun")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert (work / "saved.0").exists() and (work / "saved.1").exists()


DEATH = """
import os, time
from pathlib import Path
Path("begun." + os.environ["RANK"]).touch()
while not Path("begun.0").exists() or not Path("begun.1").exists():
    time.sleep(0.05)
if os.environ["RANK"] == "1":
    {}
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        (
            "os.kill(os.getpid(), 9)",
            137,
            "error: process 1 of this machine was ended by SIGKILL; the system does that when memory",
        ),
        ("raise SystemExit(3)", 3, ""),
        ("raise RuntimeError('ours')", 1, "Traceback"),
    ],
)
def test_one_that_dies_ends_the_others(work: Path, how: str, status: int, said: str) -> None:
    (work / "death.py").write_text(DEATH.format(how))
    process = start("death")
    wait_for(work, "begun")
    begun = time.monotonic()
    _, stderr = process.communicate()
    assert time.monotonic() - begun < 30 and process.returncode == status
    assert stderr.startswith(said) and bool(said) == bool(stderr)


MISTAKE = """
import os
from ans.errors import run
def main():
    raise ValueError("train.lr: is not a number")
run(main)
"""


def test_a_mistake_is_said_once(work: Path) -> None:
    (work / "mistake.py").write_text(MISTAKE)
    _, stderr = (process := start("mistake")).communicate()
    assert process.returncode == 1
    assert stderr == "error: train.lr: is not a number\n(ANS_TRACEBACK=1 shows where it was found)\n"


ORPHAN = """
import os, time
from pathlib import Path
from ans.processes import connect
connect("float32")
Path("begun." + os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""


def test_none_outlives_its_launcher(work: Path) -> None:
    (work / "orphan.py").write_text(ORPHAN)
    process = start("orphan")
    wait_for(work, "begun")
    pids = [int((work / f"begun.{rank}").read_text()) for rank in (0, 1)]
    process.kill()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text() for pid in pids):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.2)
