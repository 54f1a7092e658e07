"""Batches of an evaluation on disk, which two evaluations of the same may share."""

import shutil
from pathlib import Path

import pytest

from ans.evaluation.kept import Kept


def test_two_evaluations_of_the_same_hinder_each_other_by_name_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two clones with one ANS_RUNS: one ends, and clears up, while the other writes."""
    one, other = (Kept(tmp_path / "evaluate") for _ in range(2))
    for number in range(2):
        one.write(number, [])
    assert other.has(0) and other.read(1) == []
    rmdir = shutil.os.rmdir  # pyrefly: ignore[missing-attribute]

    def late(path: object, **of: object) -> None:
        other.write(7, [])
        monkeypatch.undo()
        rmdir(path, **of)

    monkeypatch.setattr("shutil.os.rmdir", late)
    one.remove()
    assert not one.has(0) and other.read(7) == []
    with pytest.raises(FileNotFoundError, match="000001.json: missing; .* if one has, start this one again"):
        other.read(1)
    other.remove()
    assert not (tmp_path / "evaluate").exists()
