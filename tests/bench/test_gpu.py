"""`tests.bench.gpu` runs where there is no GPU: on a tiny model, and by saying that there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bench import gpu
from tests.bench.gpu import FlopCount, markdown, write

REPOSITORY = Path(__file__).parents[2]


def run(*arguments: str) -> list[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_without_a_gpu_and_with_few_packages() -> None:
    others = {"pandas", "matplotlib", "torchvision", "dvc"}
    module = "runpy.run_module('tests.bench.gpu', run_name='__main__')"
    lines = run("-c", f"import runpy, sys; {module}; print(sorted({others!r} & set(sys.modules)))")
    assert len(lines) == 3 and "no GPU" in lines[0]
    assert json.loads(lines[1]) == {"device": None}
    assert lines[2] == "[]"


def test_flops_of_a_product_and_its_backward() -> None:
    a, b = torch.rand(2, 3, requires_grad=True), torch.rand(3, 5)
    with FlopCount() as counter:
        torch.autograd.grad((a @ b).sum(), a)
    assert counter.total == 2 * (2 * 2 * 3 * 5)


@pytest.mark.slow
def test_every_objective_on_a_tiny_model() -> None:
    result = json.loads(run("-m", "tests.bench.gpu", "--cpu-smoke")[-1])
    assert result["device"] == "cpu"
    rows = {(row["objective"], row["tiles"]): row for row in result["rows"]}
    assert rows.keys() == {("supervised", 1), ("supervised", 7), ("loop1", 1), ("loop2", 1), ("dual", 1)}
    assert all(row["samples_per_s"] == pytest.approx(row["batch"] / row["seconds"]) for row in rows.values())
    flops = {key: row["model_tflops"] for key, row in rows.items()}
    assert flops["supervised", 7] > flops["supervised", 1] > 0
    assert flops["dual", 1] == pytest.approx(flops["loop1", 1] + flops["loop2", 1], rel=0.1)
    assert not [row for row in (*result["rows"], *result["more"]) if "error" in row]
    more = {row["measure"]: row for row in result["more"]}
    assert more["graphs"]["same_tokens"] == 1 and more["graphs"]["tokens"] > 8
    assert 0 < more["parity"]["token_logits"] < 0.5 and 0 < more["parity"]["mask_logits"] < 0.1  # bf16 against float32
    assert (more["determinism"]["same_bits"], more["determinism"]["difference"]) == (1, 0)
    assert more["generation"]["tokens_per_s"] > 0 and more["evaluation"]["expressions_per_s"] > 0


def test_what_fails_does_not_cost_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file is written after each row, and says of the others why they are not there."""

    def failing(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    for name in ("graphs", "parity"):
        monkeypatch.setattr(gpu.inference, name, failing)
    monkeypatch.setattr(gpu, "_trainer", failing)
    monkeypatch.setattr(gpu.lisa, "report", lambda measured: {"preset": "lisa-7b"})
    monkeypatch.setattr(gpu.generate, "PACES", dict(gpu.generate.PACES))
    result = gpu.main((), True, out=tmp_path)
    assert json.loads((tmp_path / "cpu.json").read_text(encoding="utf-8")) == result
    errors = {row["measure"]: row.get("error") for row in result["more"]}
    assert errors.pop("lisa") is None and result["lisa"]
    assert {error.partition("\n")[0] for error in errors.values()} == {"RuntimeError: CUDA error: an illegal memory access"}
    assert gpu.generate.PACES["cuda"] == gpu.generate.Pace(8, False)
    assert gpu.attempt({"a": 1}, failing, end=0.0) == {"a": 1, "error": "no time left"}


def test_the_file_is_named_by_the_card(tmp_path: Path) -> None:
    row = {"size": "sa2va-1b", "objective": "dual", "tiles": 1, "caption_len": 64, "batch": 16, "error": "out of memory"}
    result = {"device": "NVIDIA H100 80GB HBM3", "rows": [row], "more": [{"measure": "parity", "mask_logits": 0.25}]}
    path = write(result, tmp_path / "gpu")
    assert path.name == "nvidia-h100-80gb-hbm3.json" and json.loads(path.read_text(encoding="utf-8")) == result
    *_, last, more = markdown(result)
    assert (
        last == "| sa2va-1b | dual | 1 | 64 | 16 | - | - | - | - | out of memory |" and more == "measure parity, mask_logits 0.25"
    )
