"""The key table: each space's names against the library that owns them, and every direction back again."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sam2.modeling.sam2_base import SAM2Base
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

from ans.groups import SHARDS
from ans.model.config import ModelConfig
from ans.model.keys import Keys
from ans.model.segmenter import Segmenter
from tests import lisa_case
from tests.golden_case import GoldenCase

KEYS = ModelConfig.from_dict(GoldenCase().config()).keys
LISA = ModelConfig.from_dict(lisa_case.config()).keys
SAM2 = "grounding_encoder.sam2_model."
NUMBER = st.integers(0, 130)
KIND = st.sampled_from(["weight", "bias"])


@st.composite
def hf_names(draw: st.DrawFn, parts: str = "vision language proj fcs sam2") -> str:
    """Names of a Sa2VA of any depth in the official layout."""
    part, n, kind = draw(st.sampled_from(parts.split())), draw(NUMBER), draw(KIND)
    inside = {
        "vision": [
            "embeddings.class_embedding",
            "embeddings.position_embedding",
            f"embeddings.patch_embedding.{kind}",
            *(f"encoder.layers.{n}.{name}.{kind}" for name in ("attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")),
            *(f"encoder.layers.{n}.{name}" for name in ("ls1", "ls2", "attn.q_norm.weight", "attn.k_norm.weight")),
        ],
        "language": [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "lm_head.weight",
            *(f"model.layers.{n}.self_attn.{name}_proj.{kind}" for name in "qkvo"),
            *(f"model.layers.{n}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
            f"model.layers.{n}.input_layernorm.weight",
        ],
        "proj": [f"{i}.{kind}" for i in (0, 1, 3)],
        "fcs": [f"{i}.{kind}" for i in (0, 2)],
        "sam2": [
            f"memory_encoder.fuser.layers.{n}.g_weight",
            f"memory_encoder.fuser.layers.{n}.norm.{kind}",
            f"image_encoder.trunk.blocks.{n}.attn.qkv.{kind}",
            f"image_encoder.trunk.blocks.{n}.norm1.{kind}",
            f"sam_mask_decoder.transformer.layers.{n}.norm1.{kind}",
            f"sam_mask_decoder.iou_prediction_head.layers.{n}.{kind}",
            f"memory_attention.layers.{n}.linear1.{kind}",
            "no_mem_embed",
        ],
    }
    prefix = {"vision": "vision_model.", "language": "language_model.", "proj": "mlp1.", "fcs": "text_hidden_fcs.", "sam2": SAM2}
    return prefix[part] + draw(st.sampled_from(inside[part]))


PARTS = {
    "hf": "vision language proj fcs sam2",
    "model": "vision language proj fcs sam2",
    "pth": "vision language proj fcs sam2",
    "research": "vision language proj fcs sam2",
    "transformers": "vision language proj",
    "transformers_file": "vision language proj",
    "sam2": "sam2",
}


def test_every_space_is_tested() -> None:
    assert PARTS.keys() == set(KEYS.spaces)


@pytest.mark.parametrize("space", KEYS.spaces)
@given(data=st.data())
def test_names_come_back(space: str, data: st.DataObject) -> None:
    name = data.draw(hf_names(PARTS[space]))
    there = KEYS.from_hf_names(name, space)
    assert [KEYS.to_hf_name(part, space) for part in there] == [name] * len(there)


@pytest.mark.parametrize("first", KEYS.spaces)
@given(data=st.data())
def test_states_come_back_through_any_two_spaces(first: str, data: st.DataObject) -> None:
    second = data.draw(st.sampled_from(KEYS.spaces))
    common = " ".join(sorted(set(PARTS[first].split()) & set(PARTS[second].split())))
    names = data.draw(st.sets(hf_names(common), max_size=12)) if common else set()
    state = {name: torch.arange(6.0).reshape(6, 1) + i for i, name in enumerate(sorted(names))}
    there = KEYS.from_hf(state, first)
    back = KEYS.to_hf(KEYS.from_hf(KEYS.to_hf(there, first), second), second)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    again = KEYS.from_hf(back, first)
    assert again.keys() == there.keys() and all(torch.equal(again[name], there[name]) for name in there)


@pytest.mark.parametrize("space", KEYS.spaces)
@given(data=st.data())
def test_no_two_names_meet(space: str, data: st.DataObject) -> None:
    names = data.draw(st.sets(hf_names(PARTS[space]), max_size=12))
    there = [part for name in names for part in KEYS.from_hf_names(name, space)]
    assert len(set(there)) == len(there)


@given(name=hf_names(), space=st.sampled_from(["hf", "pth", "research"]))
def test_a_users_checkpoint_is_read_in_whichever_space(name: str, space: str) -> None:
    (there,) = KEYS.from_hf_names(name, space)
    assert KEYS.checkpoint_to_hf_name(there) == name


@given(name=hf_names())
def test_every_name_has_one_group(name: str) -> None:
    assert KEYS.shard_of(name) in SHARDS


@given(layer=NUMBER, part=st.sampled_from(["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"]), default=st.booleans())
def test_lora_finds_its_weight(layer: int, part: str, default: bool) -> None:
    inside = f"model.layers.{layer}.{part}"
    keys = {
        side: f"mllm.model.language_model.base_model.model.{inside}.lora_{side}{'.default' if default else ''}.weight"
        for side in "AB"
    }
    assert KEYS.lora_pairs(keys.values()) == {f"language_model.{inside}.weight": keys}
    ours = f"vlm.language_model.{inside}.lora_A.default.weight"
    assert KEYS.trained_name(ours) == f"mllm.model.language_model.base_model.model.{inside}.lora_A.default.weight"


@pytest.mark.parametrize("space", [space for space in KEYS.spaces if space != "sam2"])  # it has no prefix of its own
def test_a_strange_name_is_an_error(space: str) -> None:
    with pytest.raises(KeyError, match=r"other_model\.weight"):
        KEYS.to_hf_name("other_model.weight", space)
    with pytest.raises(KeyError, match=r"other_model\.weight"):
        KEYS.from_hf_names("other_model.weight", space)
    with pytest.raises(KeyError, match=r"other_model\.weight"):
        KEYS.checkpoint_to_hf_name("other_model.weight")


# ---------------------------------------------------------------- against the owners of the names


def test_lisas_names_are_the_modules_own() -> None:
    """LLaVA's and SAM's, as transformers has them; and no name of Sa2VA's."""
    model = Segmenter(ModelConfig.from_dict(lisa_case.config()), lisa_case.tokenizer()).state_dict()
    names = {LISA.to_hf_name(name, "model") for name in model}
    llava, sam = lisa_case.reference()
    inside = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""}
    theirs = {next(o + key.removeprefix(old) for old, o in inside.items() if key.startswith(old)) for key in llava.state_dict()}
    theirs |= {f"sam.{key}" for key in sam.state_dict()}
    theirs |= {f"text_hidden_fcs.{key}" for key in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert names == theirs and {LISA.shard_of(name) for name in names} == set(SHARDS)
    assert {name for key in names for name in LISA.from_hf_names(key, "model")} == model.keys()
    with pytest.raises(KeyError, match="vision_model.x: it belongs to no part of this model"):
        LISA.shard_of("vision_model.x")


@pytest.mark.parametrize(("keys", "decoder"), [(KEYS, f"{SAM2}sam_mask_decoder"), (LISA, "sam.mask_decoder")])
def test_what_no_loss_reaches_is_not_trained(keys: Keys, decoder: str) -> None:
    gate = "pred_obj_score_head.layers.0.weight" if keys is KEYS else "output_hypernetworks_mlps.2.proj_in.bias"
    heads = [f"{decoder}.iou_prediction_head.layers.0.weight", f"{decoder}.{gate}"]
    assert all(keys.shard_of(name) == "sam2_decoder" and keys.trained_group(name) is None for name in heads)
    trained = f"{decoder}.output_hypernetworks_mlps.0.layers.0.weight"
    assert keys.trained_group(trained) == "sam2_decoder" and keys.reached(trained)
    table = "language_model.model.embed_tokens"
    found = [keys.trained_group(f"{table}.{end}") for end in ("weight", "seg_row", "base_layer.weight")]
    assert found == ["embed_head", "seg_row", "embed_head"]
    layer = "language_model.model.layers.3.self_attn.q_proj"
    assert [keys.trained_group(f"{layer}.{end}") for end in ("lora_A.default.weight", "base_layer.weight")] == ["lora", None]


def test_golden_layouts(golden: GoldenCase) -> None:
    """The official training keys are HF's after the documented renaming, and ours say the same."""
    hf, trained = golden.state("hf_state"), golden.state("pth_train_state")
    assert {KEYS.shard_of(key) for key in hf} == set(SHARDS)
    plain = {key for key in trained if "lora_" not in key}
    assert {KEYS.checkpoint_to_hf_name(key) for key in plain} <= hf.keys()
    assert {KEYS.from_hf_names(KEYS.checkpoint_to_hf_name(key), "pth")[0] for key in plain} == plain
    adapted = KEYS.lora_pairs(trained)
    assert len(adapted) == 21 and adapted.keys() <= hf.keys() and all(set(pair) == {"A", "B"} for pair in adapted.values())
    assert sum(len(pair) for pair in adapted.values()) + len(plain) == len(trained)


def test_model_names_are_the_modules_own(golden: GoldenCase, golden_model: Segmenter) -> None:
    expected = {name for key in golden.state("hf_state") for name in KEYS.from_hf_names(key, "model")}
    assert golden_model.state_dict().keys() == expected
    assert {KEYS.to_hf_name(name, "model") for name in expected} == golden.state("hf_state").keys()


def test_sam2_names_are_the_packages_own(golden: GoldenCase, golden_model: Segmenter) -> None:
    package = golden_model.sam.model
    assert isinstance(package, SAM2Base)
    ours = {name for key in golden.state("hf_state") if key.startswith(SAM2) for name in KEYS.from_hf_names(key, "sam2")}
    assert package.state_dict().keys() == ours
    assert any(re.search(r"fuser\.layers\.0\.gamma$", name) for name in ours)


def test_transformers_names_are_its_own(golden: GoldenCase) -> None:
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=112,
            patch_size=14,
            attention_bias=True,
        ).to_dict(),
        text_config=Qwen2Config(
            vocab_size=417,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        ).to_dict(),
    )
    with torch.device("meta"):
        theirs = InternVLForConditionalGeneration(config).state_dict()
    parts = ("vision_model.", "language_model.", "mlp1.")
    ours = KEYS.from_hf(
        {key: tensor for key, tensor in golden.state("hf_state").items() if key.startswith(parts)}, "transformers"
    )
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        name: tuple(tensor.shape) for name, tensor in theirs.items()
    }
