from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where unfinished work lies: of each test its own place."""
    monkeypatch.setenv("ANS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"
