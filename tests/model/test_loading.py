"""`save_pretrained` and `from_pretrained` are each other's inverse; what cannot be saved is refused."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ans.formats import shards
from ans.groups import SHARDS
from ans.model.adapters import add_lora, add_seg_row
from ans.model.loading import read_tensors
from ans.model.segmenter import Segmenter
from tests.pipeline import REPOSITORY


def same(one: Segmenter, other: Segmenter) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) and tensor.dtype == second[name].dtype for name, tensor in first.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", ["tiny", "lisa-tiny"])
@pytest.mark.second
def test_a_model_comes_back_to_the_bit(base: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Segmenter.from_pretrained(REPOSITORY / "weights" / base, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    for _ in range(2):  # the second replaces the first
        model.save_pretrained(tmp_path / "saved")
    again = Segmenter.from_pretrained(tmp_path / "saved", dtype=dtype)
    assert same(model, again) and again.config == model.config
    text = "Please segment the left red circle [SEG]."
    assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_it_is_stored_as_every_other_folder(tmp_path: Path) -> None:
    model = Segmenter.from_pretrained(REPOSITORY / "weights" / "lisa-tiny")
    model.save_pretrained(tmp_path / "saved")
    sums = shards.read_sums(tmp_path / "saved")
    assert {shards.group_in_name(Path(name)) for name in sums} == set(SHARDS)
    assert all(shards.sha256(tmp_path / "saved" / name) == digest for name, digest in sums.items())
    names = read_tensors(tmp_path / "saved")
    assert names.keys() == model.config.keys.to_hf(model.state_dict(), "model").keys() - model.config.tied.keys()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config == json.loads((REPOSITORY / "weights" / "lisa-tiny" / "config.json").read_text())


def test_adapters_are_refused(tmp_path: Path) -> None:
    folder = REPOSITORY / "weights" / "lisa-tiny"
    for change in (lambda model: add_lora(model, 2, 4.0, 0.0, 0, ("q_proj",)), add_seg_row):
        model = Segmenter.from_pretrained(folder)
        change(model)
        with pytest.raises(ValueError, match=r"save_pretrained: vlm\.language_model\..* is an adapter's"):
            model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_parts_in_four_bits_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="an extra: pip install bitsandbytes")
    model = Segmenter.from_pretrained(REPOSITORY / "weights" / "lisa-tiny", four_bit=("vision",))
    with pytest.raises(ValueError, match=r"save_pretrained: vlm\.vision_tower\..* is held in 4 bits"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("text_hidden_fcs.0.bias"), r"missing text_hidden_fcs\.0\.bias"),
        (lambda state: state.update({"mlp1.7.weight": torch.zeros(2)}), r"unexpected vlm\.mlp1\.7\.weight"),
        (
            lambda state: state.update({"mlp1.0.bias": torch.zeros(2)}),
            r"vlm\.mlp1\.0\.bias is \(2,\), config\.json says \(256,\)",
        ),
    ],
)
def test_a_folder_is_loaded_strictly(tmp_path: Path, change, message: str) -> None:
    tiny = REPOSITORY / "weights" / "tiny"
    shards.copy_side_files(tiny, tmp_path)
    state = read_tensors(tiny)
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"the tensors do not fit the model: {message}"):
        Segmenter.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("llm_config", "num_hidden_layers", 5000, "llm_config.num_hidden_layers is 5000; no model has more than 1000"),
        ("llm_config", "hidden_size", 10**12, "llm_config.hidden_size is 1000000000000; no model has more"),
        ("llm_config", "hidden_size", -4, "no model can be built of it"),
        ("llm_config", "intermediate_size", True, "'intermediate_size' expected int"),
        ("llm_config", "rms_norm_eps", float("inf"), "llm_config.rms_norm_eps is inf"),
        ("vision_config", "patch_size", 0, "force_image_size: 96 must be a multiple of the patch size"),
        ("sam2_config", "stages", [1, 5000, 1, 1], "sam2_config.stages is 5000"),
        (None, "force_image_size", "x", "force_image_size: 'x'"),
        (None, "template", [], "config.json: "),
    ],
)
def test_absurd_sizes_are_refused_at_once(tmp_path: Path, section: str | None, key: str, value: Any, message: str) -> None:
    """Not after hours of building layers (of a billion, here a few thousand), nor when the memory is full."""
    folder = tmp_path / "model"
    shutil.copytree(REPOSITORY / "weights/tiny", folder)
    values = json.loads((folder / "config.json").read_text())
    (values[section] if section else values)[key] = value
    (folder / "config.json").write_text(json.dumps(values))
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"config\.json: .*{re.escape(message)}|{re.escape(message)}"):
        Segmenter.from_pretrained(folder)
    assert time.monotonic() - began < 20


def test_files_of_a_model_that_are_damaged_are_named(tmp_path: Path) -> None:
    for name, damaged in {
        "model.safetensors": lambda data: data[:-5],
        "tokenizer.json": lambda data: data[: len(data) // 2],
        "tokenizer.json without its unknown token": lambda data: data.replace(b'"<unk>":', b'"<unc>":'),
        "tokenizer_config.json": lambda data: b"[" * 10**5,
        "config.json": lambda data: b"[" * 10**5,
    }.items():
        folder, path = tmp_path / name, tmp_path / name / name.partition(" ")[0]
        shutil.copytree(REPOSITORY / "weights/tiny", folder)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole))
        assert path.read_bytes() != whole
        with pytest.raises(ValueError, match=re.escape(path.name)):
            Segmenter.from_pretrained(folder)
