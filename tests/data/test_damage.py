"""Whatever a bad disk or a broken download leaves of a file, its reader skips the record or names the file, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from ans.toy import world
from tests.data.damage import READ, SIZE, damage, use

TRIALS = 50


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    world.write_world(path, SIZE)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("pattern", READ)
@pytest.mark.slow
def test_damaged_files_are_skipped_or_named(root: Path, tmp_path: Path, pattern: str) -> None:
    path = sorted(root.glob(pattern))[0]
    whole = path.read_bytes()
    refused = 0
    try:
        for trial in range(TRIALS):
            path.write_bytes(damage(whole, np.random.default_rng([trial, len(pattern)])))
            refused += not use(root, path, READ[pattern], tmp_path)
    finally:
        path.write_bytes(whole)
    assert refused < TRIALS or pattern.endswith((".p", ".json", ".tar", ".csv"))
