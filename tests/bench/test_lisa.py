"""The estimate of LISA's memory: its weights are counted, its table is the README's, and the measuring code runs."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from ans.model.four_bit import hold_in_four_bits
from ans.planning import memory
from tests import lisa_case
from tests.bench import lisa

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_readme_has_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    result = lisa.report(measured=False)
    tables = list(result["estimate_gb"].values())
    lines = capsys.readouterr().out.splitlines()[1:]
    printed = {line[:42].strip(): [float(cell) for cell in line[42:].split()] for line in lines}
    rows = {m[1].strip(): m[2] for m in re.finditer(r"^\| ([^|]+)\|((?: *\d+\.\d\d *\|){3})$", README.read_text(), re.MULTILINE)}
    for item in tables[0]:
        assert [float(cell) for cell in rows[item].split("|")[:3]] == [round(table[item], 2) for table in tables], item
    assert printed == {item: [round(table[item], 2) for table in tables] for item in tables[0]}
    assert all(table["sum"] == pytest.approx(sum(value for item, value in table.items() if item != "sum")) for table in tables)
    # 7B: 32 layers of 4 x 4096^2 + 3 x 4096 x 11008 in 4 bits, 4 bytes of scales per 64 x 256 and one per 64
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert tables[0]["language: weights"] == pytest.approx(linear * (0.5 + 1 / 64 + 1 / 4096) / 1e9, rel=1e-3)
    trained = [table["trained: values, gradient twice, AdamW"] for table in tables]
    assert trained[1] - trained[0] == pytest.approx(20 * 32 * 2 * 8 * (4096 + 4096) / 1e9)


def test_bytes_of_four_bits() -> None:
    pytest.importorskip("bitsandbytes", reason="an extra")
    layer = nn.Sequential(nn.Linear(1024, 1024, bias=False))
    hold_in_four_bits(layer, torch.device("cpu"))
    state = layer.state_dict()
    held = sum(t.numel() * t.element_size() for name, t in state.items() if not name.endswith(("map", "nf4")))
    assert held == pytest.approx(memory.FOUR_BIT * 1024**2, rel=0.01)


@pytest.mark.slow
def test_the_measuring_code_runs_on_a_tiny_model() -> None:
    config = lisa.trained_by(("q_proj", "v_proj"), four_bit=[], precision="float32", optimizer="adamw")
    values = lisa_case.config()
    values["text_config"] |= {"vocab_size": 200}
    found = lisa.measure(config, values | {"image_token_index": 199}, "cpu")
    assert found["seconds"] > 0 and found["tokens"] > 9 + lisa.WORDS
