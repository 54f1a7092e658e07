"""Training with the frozen encoders' features on disk: an image is encoded once, and nothing depends on when."""

from pathlib import Path

import pytest
import torch

from ans.formats.pth import read_pth
from ans.model.segmenter import Segmenter
from ans.training import loop
from ans.training.state import ResumeError
from ans.workspace import Workspace
from tests import pipeline
from tests.training.death import Killed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("features"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that went through the encoders."""
    counts: list[int] = []
    original = Segmenter.encode_pixels
    monkeypatch.setattr(
        Segmenter, "encode_pixels", lambda self, tiles, *more: counts.append(len(tiles)) or original(self, tiles, *more)
    )
    return counts


def train(work: Path, out: Path, gigabytes: float) -> dict[str, torch.Tensor]:
    settings = {"train__steps": 4, "launch__workers": 0, "launch__feature_cache_gb": gigabytes, "launch__save_state_seconds": 0.0}
    at = pipeline.beside(work, out) if not out.exists() else Workspace(out)
    loop.train(pipeline.small_config(work.parent / "world", **settings), at)
    return read_pth(at.checkpoint / "last.pth").state


def test_features_are_found_again(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]) -> None:
    """Off, on and empty, on and full: the last two agree to the bit, with the first but for the rounding of batches; and the
    third time no image is encoded."""
    monkeypatch.setenv("ANS_RUNS", str(tmp_path / "runs"))
    off, empty, full = (train(work, tmp_path / str(number), cache) for number, cache in enumerate((0, 1, 1)))
    batches = [number for number in encoded if number > 1]
    alone = len(encoded) - len(batches)
    assert len(batches) == 8 and 0 < alone <= sum(batches), "four steps of two loops, then each image once"
    assert all(torch.equal(empty[name], full[name]) for name in off)
    start = read_start(work, off)
    for name in off:
        moved = float((off[name] - start[name]).norm()) if name in start else float(off[name].norm())
        assert float((off[name] - full[name]).norm()) <= 0.02 * moved + 1e-7, name


def read_start(work: Path, names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base's own tensors of those names; LoRA's it does not have."""
    state = Segmenter.from_pretrained(work / "models" / "base").state_dict()
    return {name: tensor for name, tensor in state.items() if name in names}


def test_a_run_is_not_continued_with_other_features(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANS_RUNS", str(tmp_path / "runs"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_trained", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(work, tmp_path / "run", 0)
    with pytest.raises(ResumeError, match=r"features on disk \(launch.feature_cache_gb\) off, now it is on"):
        train(work, tmp_path / "run", 1)
