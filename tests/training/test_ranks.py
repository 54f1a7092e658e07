"""Two processes with half the batch each have the gradients of one, on every objective and after the surgery."""

import json
from pathlib import Path

import pytest
import torch

from ans.config import load
from ans.launch import launch
from tests import pipeline

pytestmark = pytest.mark.slow


def gradients(work: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> dict[str, torch.Tensor]:
    values = pipeline.small_values(
        work.parent / "world",
        train__batch=4 // processes,
        train__accumulation=2,
        train__lora__dropout=0.0,
        launch__processes=processes,
        launch__workers=0,
    )
    pipeline.write_params(work, values)
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", str(pipeline.REPOSITORY))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = work / f"gradients{processes}.pt"
    launch("tests.training.rank_gradients", load().launch, str(out))
    return torch.load(out, weights_only=True)


def test_two_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = pipeline.prepare(tmp_path)
    one, two = (gradients(work, monkeypatch, processes) for processes in (1, 2))
    assert {name.split()[1] for name in one} == {"referring", "loop1", "loop2", "combined"}
    for name, gradient in one.items():
        assert gradient.norm() > 0
        distance = float((two[name] - gradient).norm() / gradient.norm())
        assert distance < 1e-5, f"{name}: {distance:.1e}"


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MULTI_GPU"])
def test_a_users_accelerate_config_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What such a file would change is seen by the process that is started: its launcher, and accelerate's environment."""
    folder = tmp_path / "home" / "accelerate"
    folder.mkdir(parents=True)
    (folder / "default_config.yaml").write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_processes: 4\nmixed_precision: fp16\n"
        "deepspeed_config: {zero_stage: 3}\nfsdp_config: {fsdp_version: 2}\n"
    )
    (tmp_path / "seen.py").write_text(
        "import json, sys\nfrom pathlib import Path\nfrom ans.processes import connect\na = connect('float32')\n"
        "Path(sys.argv[1]).write_text(json.dumps([str(a.distributed_type), a.num_processes, a.mixed_precision]))\n"
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{pipeline.REPOSITORY}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = load(pipeline.REPOSITORY / "params.yaml").launch
    launch("seen", settings, str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == ["DistributedType.NO", 1, "no"]
