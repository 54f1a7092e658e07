"""What killed processes leave half-written goes with the next run; what living ones write stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ans.files import HOST, temporary_name
from tests.pipeline import REPOSITORY

OTHER = ".1999999999-other.a.arrow"
"""Of another machine, where that process may live."""

WRITE = """
import sys, time
from pathlib import Path
from ans.files import replacing
from ans.formats.shards import folder_at_once
out = Path(sys.argv[1])
with replacing(out / "a.arrow") as file, folder_at_once(out / "hf") as folder:
    file.write_text("half"), (folder / "x").write_text("half")
    print("there", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def write(out: Path, seconds: float) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(out), str(seconds)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    for name in (".a.arrow", ".12.notes.txt", ".x.hf", "a.arrow.bak", OTHER):  # a user's own
        (tmp_path / name).write_text("")
    killed = write(tmp_path, 60)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    living = write(tmp_path, 60)
    assert {f".{living.pid}-{HOST}.a.arrow", f".{living.pid}-{HOST}.hf"} <= set(os.listdir(tmp_path))
    assert not {f".{killed.pid}-{HOST}.a.arrow", f".{killed.pid}-{HOST}.hf"} & set(os.listdir(tmp_path))
    write(tmp_path, 0).wait()
    assert {f".{living.pid}-{HOST}.a.arrow", f".{living.pid}-{HOST}.hf"} <= set(os.listdir(tmp_path)), "its process lives"
    living.kill()
    living.wait()
    write(tmp_path, 0).wait()
    names = {OTHER, ".a.arrow", ".12.notes.txt", ".x.hf", "a.arrow.bak", "a.arrow", "hf"}
    assert set(os.listdir(tmp_path)) == names and (tmp_path / "hf/x").read_text() == "half"


def test_large_folders_are_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, listdir = list[object](), os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: looks.append(folder) or listdir(folder))
    for number in range(100):
        temporary_name(tmp_path / str(number)).touch()
    assert len(looks) <= 1
