"""Two processes with half the batch each have the gradients of one, on every objective and after the surgery."""

from pathlib import Path

import pytest
import torch

from ans.config import Launch
from ans.launch import launch
from tests import pipeline

pytestmark = pytest.mark.slow


def gradients(work: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> dict[str, torch.Tensor]:
    values = pipeline.small_values(
        work.parent / "world",
        presets__tiny__train__batch=4 // processes,
        presets__tiny__train__accumulation=2,
        presets__tiny__train__lora__dropout=0.0,
    )
    pipeline.write_params(work, values)
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", str(pipeline.REPOSITORY))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = work / f"gradients{processes}.pt"
    settings = Launch(processes=processes, machines=1, machine_rank=0, main_address="127.0.0.1", main_port=29611, workers=0,
                      save_state_seconds=60.0, feature_cache_gb=0.0)  # fmt: skip
    launch("tests.training.rank_gradients", settings, str(out))
    return torch.load(out, weights_only=True)


def test_two_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = pipeline.prepare(tmp_path)
    one, two = (gradients(work, monkeypatch, processes) for processes in (1, 2))
    assert {name.split()[1] for name in one} == {"ReferringBatch", "MaskBatch", "CaptionBatch", "combined"}
    for name, gradient in one.items():
        assert gradient.norm() > 0
        distance = float((two[name] - gradient).norm() / gradient.norm())
        assert distance < 1e-5, f"{name}: {distance:.1e}"
