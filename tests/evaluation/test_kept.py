"""Batches of an evaluation on disk, in a folder that two evaluations of the same would share."""

import subprocess
import sys
from pathlib import Path

import pytest

from ans.evaluation.kept import Kept

HOLD = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"


def test_two_evaluations_of_the_same_do_not_mix(tmp_path: Path) -> None:
    """In two clones with one ANS_RUNS: the first that is done removes what the other has yet to read."""
    (tmp_path / "evaluate").mkdir()
    command = [sys.executable, "-S", "-c", HOLD, str(tmp_path / "evaluate/lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(BlockingIOError, match="evaluate is locked by another evaluation of the same; wait for it or stop it"):
            Kept(tmp_path / "evaluate").lock()
        other.kill()
    one = Kept(tmp_path / "evaluate")
    one.lock()  # a killed one leaves none
    one.write(0, [])
    assert one.has(0) and one.read(0) == [] and not one.has(1)
    with pytest.raises(FileNotFoundError, match="000001.json: missing; all processes must see one folder"):
        one.read(1)
    one.remove()
    assert not (tmp_path / "evaluate").exists()
