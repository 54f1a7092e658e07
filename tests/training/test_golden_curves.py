"""Training gives what it gave when the golden curves were kept: see `tests/golden_curves.py`, which renews them."""

from pathlib import Path

import pytest

from tests import golden_curves
from tests.training.reference_case import World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.prepare(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("preset", golden_curves.CASES)
def test_golden_curves(preset: str, world: World, tmp_path: Path) -> None:
    wrong = golden_curves.differences(preset, golden_curves.record(preset, world, tmp_path), golden_curves.read(preset))
    advice = "if results are meant to change: python -m tests.golden_curves --renew, and say so in the commit"
    assert not wrong, "\n".join([f"{len(wrong)} values of {preset} have changed ({advice}):", *wrong[:20]])
