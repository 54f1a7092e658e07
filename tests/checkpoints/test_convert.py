"""Conversion against the official one: the golden .pth on the golden base gives the golden Hugging Face weights."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from ans.checkpoints import shards
from ans.checkpoints.convert import convert, read_checkpoint, shard
from ans.checkpoints.layout import SHARD_GROUPS, group_of, hf_to_model, model_to_hf
from tests.golden_case import GoldenCase


def read_all(folder):
    return {key: tensor for path in shards.files(folder) for key, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def official(golden: GoldenCase, golden_folder, tmp_path_factory):
    """(base folder in shards, checkpoint file, LoRA scale): what the official training run started from and left."""
    folder = tmp_path_factory.mktemp("convert")
    state, changed = golden.state("hf_state"), golden.state("base_internvl_changed")
    for key, tensor in changed.items():
        state[key] = tensor if tensor.shape == state[key].shape else torch.zeros_like(state[key])
    plain = folder / "plain"
    plain.mkdir()
    save_file(state, plain / "model.safetensors")
    shards.copy_side_files(golden_folder, plain)
    shard(plain, folder / "base")
    torch.save({"state_dict": golden.state("pth_train_state")}, folder / "last.pth")
    return folder / "base", folder / "last.pth", 2.0


def test_names_round_trip(golden: GoldenCase) -> None:
    state = golden.state("hf_state")
    back = model_to_hf(hf_to_model(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_every_tensor_has_a_group(golden: GoldenCase) -> None:
    assert {group_of(key) for key in golden.state("hf_state")} == set(SHARD_GROUPS)
    with pytest.raises(KeyError, match="other_model.weight"):
        group_of("other_model.weight")


def test_convert_gives_the_official_weights(golden: GoldenCase, official, tmp_path) -> None:
    base, checkpoint, scale = official
    convert(checkpoint, base, tmp_path / "hf", scale)
    ours, expected = read_all(tmp_path / "hf"), golden.state("hf_state")
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6, msg=key)
    trained = json.loads((tmp_path / "hf" / "trained.json").read_text())["shards"]
    assert trained == ["embed_head", "fcs", "llm", "proj", "sam2_decoder"]
    untouched = [path for path in shards.files(tmp_path / "hf") if shards.group_in_name(path) == "vision"]
    assert untouched and all(path.samefile(base / path.name) for path in untouched)


def test_variants_take_only_their_groups(official, tmp_path) -> None:
    base, checkpoint, scale = official
    convert(checkpoint, base, tmp_path / "hf", scale)
    before, after = read_all(base), read_all(tmp_path / "hf")
    shards.make_variant(base, tmp_path / "hf", {"llm": "lora", "fcs": "fcs"}, tmp_path / "variant")
    variant = read_all(tmp_path / "variant")
    assert variant.keys() == before.keys()
    for key, tensor in variant.items():
        source = after if group_of(key) in ("llm", "fcs") else before
        assert torch.equal(tensor, source[key]), key
    shards.make_variant(base, tmp_path / "hf", {}, tmp_path / "base")
    assert all(path.samefile(base / path.name) for path in shards.files(tmp_path / "base"))
    index = json.loads((tmp_path / "variant" / shards.INDEX).read_text())["weight_map"]
    assert index.keys() == before.keys()


def test_a_group_that_was_not_trained_is_an_error(official, tmp_path) -> None:
    base, _, _ = official
    convert_only_fcs = {"state_dict": {"text_hidden_fcs.0.bias": read_all(base)["text_hidden_fcs.0.bias"] + 1}}
    torch.save(convert_only_fcs, tmp_path / "some.pth")
    convert(tmp_path / "some.pth", base, tmp_path / "hf", 1.0)
    with pytest.raises(ValueError, match="group lora was not trained"):
        shards.make_variant(base, tmp_path / "hf", {"llm": "lora"}, tmp_path / "variant")
    assert not (tmp_path / "variant").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"mllm.model.mlp1.9.weight": torch.zeros(2)}, r"mlp1\.9\.weight is no tensor of the base"),
        ({"text_hidden_fcs.0.bias": torch.zeros(3)}, r"text_hidden_fcs\.0\.bias is \(3,\), the base has"),
        (
            {
                "mllm.model.language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(
                    4, 64
                )
            },
            "has only matrix A",
        ),
    ],
)
def test_bad_checkpoints_name_the_tensor(official, tmp_path, state, message) -> None:
    base, _, _ = official
    torch.save({"state_dict": state}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "bad.pth", base, tmp_path / "hf", 1.0)
    assert not (tmp_path / "hf").exists()


def test_checkpoints_without_state(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="convert.source"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=re.escape("list.pth")):
        read_checkpoint(tmp_path / "list.pth")
