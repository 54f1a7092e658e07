"""How the processes of a training are started. What two of them compute is held by `test_independent_step.py`."""

import json
from pathlib import Path

import pytest

from ans.config import load
from ans.launch import launch
from tests import pipeline

pytestmark = pytest.mark.slow


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
