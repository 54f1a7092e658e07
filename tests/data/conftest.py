from pathlib import Path

import pytest

from ans.toy.world import write_world
from tests.data.worlds import SMALLEST


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where unfinished work lies: of each test its own place."""
    monkeypatch.setenv("ANS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def smallest_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`SMALLEST` as it is written. Not to be changed."""
    root = tmp_path_factory.mktemp("smallest") / "world"
    write_world(root, SMALLEST)
    return root
