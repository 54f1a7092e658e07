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
@pytest.mark.second
def test_names_come_back(space: str, data: st.DataObject) -> None:
    name = data.draw(hf_names(PARTS[space]))
    there = KEYS.from_hf_names(name, space)
    assert [KEYS.to_hf_name(part, space) for part in there] == [name] * len(there)


@pytest.mark.parametrize("first", KEYS.spaces)
@given(data=st.data())
@pytest.mark.second
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
@pytest.mark.second
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


# ---------------------------------------------------------------- name by name

VIT, LLM = "vision_model.encoder.layers.4.", "language_model.model.layers.4."
WRITTEN_OUT = [
    # hf, pth, research, model (None: only the prefix `vlm.` more), transformers_file (transformers: `model.` before it)
    ("mlp1.0.weight", "mllm.model.mlp1.0.weight", "mlp1.0.weight", None, "multi_modal_projector.layer_norm.weight"),
    ("mlp1.1.bias", "mllm.model.mlp1.1.bias", "mlp1.1.bias", None, "multi_modal_projector.linear_1.bias"),
    ("mlp1.3.bias", "mllm.model.mlp1.3.bias", "mlp1.3.bias", None, "multi_modal_projector.linear_2.bias"),
    (
        "vision_model.embeddings.class_embedding",
        "mllm.model.vision_model.embeddings.class_embedding",
        "mllm.model.vision_model.embeddings.class_embedding",
        "vlm.vision_model.embeddings.cls_token",
        "vision_tower.embeddings.cls_token",
    ),
    (
        f"{VIT}attn.proj.bias",
        f"mllm.model.{VIT}attn.proj.bias",
        f"mllm.model.{VIT}attn.proj.bias",
        "vlm.vision_model.encoder.layer.4.attention.projection_layer.bias",
        "vision_tower.encoder.layer.4.attention.projection_layer.bias",
    ),
    (
        f"{VIT}ls2",
        f"mllm.model.{VIT}ls2",
        f"mllm.model.{VIT}ls2",
        "vlm.vision_model.encoder.layer.4.lambda_2",
        "vision_tower.encoder.layer.4.lambda_2",
    ),
    (
        f"{LLM}mlp.up_proj.weight",
        f"mllm.model.language_model.base_model.model.{LLM.removeprefix('language_model.')}mlp.up_proj.weight",
        f"mllm.model.{LLM}mlp.up_proj.weight",
        None,
        f"{LLM}mlp.up_proj.weight",
    ),
    ("text_hidden_fcs.2.bias", "text_hidden_fcs.2.bias", "text_hidden_fcs.2.bias", "text_hidden_fcs.2.bias", None),
    (f"{SAM2}no_mem_embed", f"{SAM2}no_mem_embed", f"{SAM2}no_mem_embed", "sam.model.no_mem_embed", None),
    (
        f"{SAM2}memory_encoder.fuser.layers.1.g_weight",
        f"{SAM2}memory_encoder.fuser.layers.1.gamma",
        f"{SAM2}memory_encoder.fuser.layers.1.gamma",
        "sam.model.memory_encoder.fuser.layers.1.gamma",
        None,
    ),
    ("vision_tower.encoder.layers.0.ls1", "vision_tower.encoder.layers.0.ls1", None, None, None),
    ("multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias", None, None, None),
    (
        "sam.mask_decoder.iou_token.weight",
        "sam.mask_decoder.iou_token.weight",
        None,
        "sam.sam.mask_decoder.iou_token.weight",
        None,
    ),
]


def keys_of(hf: str) -> Keys:
    """Those of the model that has a tensor of this name."""
    return LISA if hf.startswith(("vision_tower.", "multi_modal_projector.", "sam.")) else KEYS


@pytest.mark.parametrize(("hf", "pth", "research", "model", "file"), WRITTEN_OUT)
def test_names_are_those_of_the_official_files(
    hf: str, pth: str, research: str | None, model: str | None, file: str | None
) -> None:
    keys = keys_of(hf)
    spaces = {"hf": hf, "pth": pth, "research": research, "model": model or f"vlm.{hf}", "transformers_file": file}
    if hf.startswith(SAM2):
        spaces["sam2"] = (research or "").removeprefix(SAM2)
    if file and not file.startswith("language_model."):
        spaces["transformers"] = f"model.{file}"
    for space, name in spaces.items():
        if name is not None:
            assert keys.from_hf_names(hf, space) == [name] and keys.to_hf_name(name, space) == hf, space
    for name in (pth, research):
        assert name is None or keys.checkpoint_to_hf_name(name) == hf
    assert keys.to_hf_name(spaces["model"], "model") == hf and keys.trained_name(spaces["model"]) == pth


def test_the_language_model_of_transformers() -> None:
    assert KEYS.from_hf_names("language_model.lm_head.weight", "transformers") == ["lm_head.weight"]
    assert KEYS.from_hf_names("language_model.model.norm.weight", "transformers") == ["model.language_model.norm.weight"]
    assert KEYS.from_hf_names("language_model.lm_head.weight", "transformers_file") == ["language_model.lm_head.weight"]


@pytest.mark.parametrize(("space", "prefix"), [("model", "vlm.vision_model."), ("transformers", "model.vision_tower.")])
def test_q_k_and_v_are_kept_apart_or_fused(space: str, prefix: str) -> None:
    apart = [f"{prefix}encoder.layer.3.attention.{part}_proj.weight" for part in "qkv"]
    fused = "vision_model.encoder.layers.3.attn.qkv.weight"
    assert KEYS.from_hf_names(fused, space) == apart and {KEYS.to_hf_name(name, space) for name in apart} == {fused}
    state = {fused: torch.arange(12.0).reshape(6, 2)}
    there = KEYS.from_hf(state, space)
    assert [there[name].tolist() for name in apart] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert torch.equal(KEYS.to_hf(there, space)[fused], state[fused])
    del there[apart[1]]
    with pytest.raises(KeyError, match="k_proj"):
        KEYS.to_hf(there, space)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("vision_model.embeddings.class_embedding", "vision"),
        ("vision_tower.encoder.layers.0.ls1", "vision"),
        ("language_model.model.embed_tokens.weight", "embed_head"),
        ("language_model.lm_head.weight", "embed_head"),
        ("language_model.model.norm.weight", "llm"),
        ("mlp1.0.weight", "proj"),
        ("multi_modal_projector.linear_1.weight", "proj"),
        ("text_hidden_fcs.0.weight", "fcs"),
        (f"{SAM2}sam_mask_decoder.iou_token.weight", "sam2_decoder"),
        (f"{SAM2}sam_prompt_encoder.no_mask_embed.weight", "sam2_encoder"),
        (f"{SAM2}image_encoder.neck.convs.0.conv.weight", "sam2_encoder"),
        ("sam.mask_decoder.iou_token.weight", "sam2_decoder"),
        ("sam.vision_encoder.pos_embed", "sam2_encoder"),
    ],
)
def test_groups_are_the_documented_ones(name: str, group: str) -> None:
    assert keys_of(name).shard_of(name) == group


def test_the_row_that_was_trained_alone() -> None:
    for table in ("model.embed_tokens", "lm_head"):
        name = f"language_model.{table}.seg_row"
        assert KEYS.trained_group(name) == "seg_row" and KEYS.shard_of(name) == "embed_head"
    with pytest.raises(KeyError, match="other.weight: it belongs to no part"):
        KEYS.trained_group("other.weight")


def test_base_layers_are_the_adapted_weights() -> None:
    inside = "model.layers.1.self_attn.q_proj"
    for prefix in ("mllm.model.language_model.base_model.model.", "mllm.model.language_model.", "language_model."):
        assert KEYS.checkpoint_to_hf_name(f"{prefix}{inside}.base_layer.weight") == f"language_model.{inside}.weight"


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
