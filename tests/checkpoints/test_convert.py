"""Conversion against the official one: the golden .pth on the golden base gives the golden Hugging Face weights."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ans.checkpoints.base import shard
from ans.checkpoints.convert import OTHER_SCALES, convert
from ans.checkpoints.save import save_trained
from ans.checkpoints.variants import make_variant
from ans.config.schema import Convert, LoraSize
from ans.formats import shards
from ans.formats.pth import read_pth, tensors_checksum
from ans.groups import SHARDS
from ans.model.config import ModelConfig
from tests.golden_case import GoldenCase

TRAINED = ("embed_head", "lora", "proj", "fcs", "sam2_decoder")
KEYS = ModelConfig.from_dict(GoldenCase().config()).keys
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PTH_LLM = "mllm.model.language_model.base_model.model."


def read_all(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for path in shards.files(folder) for key, tensor in load_file(path).items()}


def settings(source: Path, **changes: object) -> Convert:
    given = {"source": str(source), "groups": TRAINED, "lora": LoraSize(rank=4, alpha=8.0, rslora=False), "precision": "float32"}
    return Convert(**(given | {"code": "ByteDance/Sa2VA-4B"} | changes))


def same(ours: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 0.0) -> None:
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key].float(), tensor.float(), rtol=0, atol=atol, msg=key)


@pytest.fixture(scope="module")
def base(golden: GoldenCase, golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the official training run started from."""
    folder = tmp_path_factory.mktemp("convert")
    state = golden.state("hf_state")
    for key, tensor in golden.state("base_internvl_changed").items():
        state[key] = tensor if tensor.shape == state[key].shape else torch.zeros_like(state[key])
    plain = folder / "plain"
    plain.mkdir()
    save_file(state, plain / "model.safetensors")
    shards.copy_side_files(golden_folder, plain)
    shard(plain, folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def trained(golden: GoldenCase) -> dict[str, Tensor]:
    """What the official training run left: its `.pth`'s tensors."""
    return golden.state("pth_train_state")


@pytest.fixture(scope="module")
def checkpoint(trained: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pth") / "last.pth"
    torch.save({"state_dict": trained}, path)
    return path


@pytest.fixture(scope="module")
def converted(base: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "hf"
    convert(settings(checkpoint), base, out)
    return out


# ---------------------------------------------------------------- values


def test_convert_gives_the_official_weights(golden: GoldenCase, base: Path, converted: Path) -> None:
    same(read_all(converted), golden.state("hf_state"), atol=1e-6)
    assert json.loads((converted / "trained.json").read_text())["shards"] == ["embed_head", "fcs", "llm", "proj", "sam2_decoder"]
    untouched = [path for path in shards.files(converted) if shards.group_in_name(path) == "vision"]
    assert untouched and all(path.samefile(base / path.name) for path in untouched)


def test_merged_weights_are_bit_equal_to_w_plus_sba(base: Path, trained: dict[str, Tensor], converted: Path) -> None:
    before, after = read_all(base), read_all(converted)
    adapted = [key.removesuffix(".lora_A.default.weight") for key in trained if ".lora_A." in key]
    assert len(adapted) == 3 * 7
    for key in adapted:
        name = key.removeprefix("mllm.model.").replace("base_model.model.", "", 1) + ".weight"
        a, b = trained[f"{key}.lora_A.default.weight"], trained[f"{key}.lora_B.default.weight"]
        assert torch.equal(after[name], before[name].float() + 2.0 * (b @ a)), name
    assert {tensor.dtype for key, tensor in after.items() if KEYS.shard_of(key) == "llm"} == {torch.float32}


def test_bf16_on_request(base: Path, checkpoint: Path, converted: Path, tmp_path: Path) -> None:
    convert(settings(checkpoint, precision="bf16"), base, tmp_path / "hf")
    exact = read_all(converted)
    for key, tensor in read_all(tmp_path / "hf").items():
        if KEYS.shard_of(key) in ("llm", "fcs"):
            assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, exact[key].bfloat16()), key


def test_it_is_whole_without_remote_code_and_with_it(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "ByteDance/Sa2VA-4B--modeling_sa2va_chat.Sa2VAChatModel"
    assert config["architectures"] == ["Sa2VAChatModel"] and config["model_type"] == "sa2va_chat"
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= {p.name for p in converted.iterdir()}
    from ans.model.segmenter import Segmenter

    loaded = Segmenter.from_pretrained(converted).state_dict()
    expected = KEYS.from_hf(read_all(converted), "model")
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in loaded.items())


# ---------------------------------------------------------------- every form of a .pth


def _sharded(folder: Path, state: dict[str, Tensor]) -> None:
    folder.mkdir()
    names = sorted(state)
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for name, keys in parts.items():
        torch.save({key: state[key].clone() for key in keys}, folder / name)
    weight_map = {key: name for name, keys in parts.items() for key in keys}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _folder(folder: Path, state: dict[str, Tensor]) -> None:
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")


FORMS = {
    "bare": lambda path, state: torch.save(state, path),
    "ordered": lambda path, state: torch.save(OrderedDict(state), path),
    "state_dict": lambda path, state: torch.save({"state_dict": state}, path),
    "meta": lambda path, state: torch.save({"meta": {"cfg": "text", "epoch": 1}, "state_dict": state}, path),
    "model": lambda path, state: torch.save({"model": state, "optimizer": None}, path),
    "module prefix": lambda path, state: torch.save({"state_dict": {f"module.{key}": t for key, t in state.items()}}, path),
    "adapter names": lambda path, state: torch.save({key.replace(".default", ""): t for key, t in state.items()}, path),
    "folder": _folder,
    "sharded folder": _sharded,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.second
def test_every_form_gives_the_same(form: str, base: Path, trained: dict[str, Tensor], converted: Path, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "user.pth", trained)
    convert(settings(tmp_path / "user.pth"), base, tmp_path / "hf")
    same(read_all(tmp_path / "hf"), read_all(converted))


def test_full_model_of_the_research_code(golden: GoldenCase, base: Path, tmp_path: Path) -> None:
    state = KEYS.from_hf(golden.state("hf_state"), "research")
    assert "mlp1.0.weight" in state and "mllm.model.language_model.model.norm.weight" in state
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "full.pth")
    convert(settings(tmp_path / "full.pth", groups=None, lora=None), base, tmp_path / "hf")
    same(read_all(tmp_path / "hf"), golden.state("hf_state"))


def test_full_and_not_merged(golden: GoldenCase, base: Path, trained: dict[str, Tensor], converted: Path, tmp_path: Path) -> None:
    """PEFT's own names: an adapted layer keeps its weight as `base_layer`."""
    full = {}
    for key, tensor in read_all(base).items():
        name = (
            KEYS.trained_name(next(iter(KEYS.from_hf({key: tensor}, "model"))))
            if KEYS.shard_of(key) != "vision"
            else "mllm.model." + key
        )
        full[re.sub(r"((?:q|k|v|o|gate|up|down)_proj)\.", r"\1.base_layer.", name) if "language_model" in name else name] = tensor
    torch.save({**full, **trained}, tmp_path / "full.pth")
    convert(settings(tmp_path / "full.pth", groups=None), base, tmp_path / "hf")
    same(read_all(tmp_path / "hf"), read_all(converted))


def test_a_base_pth_underneath(golden: GoldenCase, base: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The base .pth moves the ViT and a norm of the language model; the trained tensors go on top of both."""
    below = {key: t.clone() for key, t in read_all(base).items() if KEYS.shard_of(key) in ("vision", "llm")}
    norm, vit = "language_model.model.norm.weight", "vision_model.encoder.layers.0.ls1"
    below[norm] += 1
    below[vit] += 1
    torch.save(KEYS.from_hf(below, "research"), tmp_path / "below.pth")
    convert(settings(checkpoint, under=str(tmp_path / "below.pth")), base, tmp_path / "hf")
    expected = golden.state("hf_state")
    expected[norm] += 1
    expected[vit] += 1
    same(read_all(tmp_path / "hf"), expected, atol=1e-6)
    with pytest.raises(ValueError, match="would mix two bases"):
        make_variant(base, tmp_path / "hf", ["fcs"], tmp_path / "variant")
    make_variant(base, tmp_path / "hf", (), tmp_path / "base")
    convert(settings(checkpoint, under=None), base, tmp_path / "hf")
    with pytest.raises(ValueError, match="LoRA that is not merged"):
        convert(settings(checkpoint, under=str(checkpoint)), base, tmp_path / "other")


def test_our_own_checkpoint_says_everything_itself(
    base: Path, trained: dict[str, Tensor], converted: Path, tmp_path: Path
) -> None:
    meta = {"trained": list(TRAINED), "train": {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0}}, "step": 7}
    ours = {_model_name(key): tensor for key, tensor in trained.items()}
    save_trained(tmp_path / "run" / "last.pth", KEYS, ours, meta)
    convert(settings(tmp_path / "run", groups=None, lora=None), base, tmp_path / "hf")
    same(read_all(tmp_path / "hf"), read_all(converted))
    record = json.loads((tmp_path / "hf" / "trained.json").read_text())
    assert record["step"] == 7 and record["parent_sha256"] == shards.shards_checksum(base)
    assert record["checkpoint_sha256"] == tensors_checksum(trained) and record["groups"] == sorted(TRAINED)
    with pytest.raises(ValueError, match=r"convert\.lora says .*alpha=4"):
        convert(settings(tmp_path / "run", lora=LoraSize(rank=4, alpha=4.0)), base, tmp_path / "other")


def _model_name(pth: str) -> str:
    if pth.startswith(PTH_LLM):
        return "vlm.language_model." + pth.removeprefix(PTH_LLM)
    return pth.replace("mllm.model.", "vlm.").replace("grounding_encoder.sam2_model.", "sam.model.")


# ---------------------------------------------------------------- strictness


Q = PTH_LLM + "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"mllm.model.mlp1.9.weight": torch.zeros(2)},
            r"unexpected tensor mlp1\.9\.weight: the base has no tensor of that name",
        ),
        (lambda s: s | {"text_hidden_fcs.0.bias": torch.zeros(3)}, r"text_hidden_fcs\.0\.bias is \(3,\), the base has \(64,\)"),
        (lambda s: s | {"some.other.weight": torch.zeros(3)}, r"some\.other\.weight: no such name"),
        (lambda s: s | {"mlp1.0.bias": torch.zeros(192)}, r"mlp1\.0\.bias occurs under two names"),
        (lambda s: s | {"text_hidden_fcs.0.bias": torch.full((64,), torch.nan)}, r"text_hidden_fcs\.0\.bias is not finite"),
        (
            lambda s: s | {"text_hidden_fcs.0.bias": torch.full((64,), -1e38)},
            r"text_hidden_fcs\.0\.bias has values beyond 1e\+06",
        ),
        (
            lambda s: s | {f"{Q}.lora_A.default.weight": torch.zeros(3, 64)},
            r"LoRA of language_model\..* is \(3, 64\) and \(64, 4\)",
        ),
        (lambda s: {k: t for k, t in s.items() if k != f"{Q}.lora_B.default.weight"}, "has only matrix A"),
        (lambda s: {k: t for k, t in s.items() if not k.startswith(Q)}, r"LoRA of language_model\..*q_proj\.weight is missing"),
        (lambda s: {k: t for k, t in s.items() if k != "text_hidden_fcs.2.bias"}, r"text_hidden_fcs\.2\.bias is missing"),
        (lambda s: {k: t for k, t in s.items() if "lm_head" not in k}, r"lm_head\.weight is missing, although group embed_head"),
        (lambda s: s | {f"{Q}.lora_magnitude_vector.default.weight": torch.ones(64)}, r"lora_mag.*: DoRA is not converted"),
        (lambda s: s | {f"{Q}.lora_embedding_A.default": torch.ones(4, 9)}, r"lora_embedding_A.*: LoRA on an embedding table"),
        (lambda s: s | {f"{Q}.lora_B.default.bias": torch.ones(64)}, r"lora_B\.default\.bias: LoRA with a bias of its own"),
        (lambda s: s | {f"{Q}.lora_A.second.weight": torch.ones(4, 64)}, r"lora_A\.second\.weight: an adapter that is not named"),
        (lambda s: {k.replace(".default.", ".mine."): t for k, t in s.items()}, r"lora_A\.mine\.weight: an adapter that is not"),
        (lambda s: s | {f"{Q}.vera_lora_d": torch.ones(4)}, r"vera_lora_d: an adapter of an unknown kind"),
    ],
)
@pytest.mark.second
def test_a_bad_tensor_is_named(base: Path, trained: dict[str, Tensor], tmp_path: Path, change, message: str) -> None:
    torch.save({"state_dict": change(trained)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=message):
        convert(settings(tmp_path / "bad.pth"), base, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_what_may_be_missing_is_listed(base: Path, trained: dict[str, Tensor], converted: Path, tmp_path: Path) -> None:
    """The two heads that no loss reaches; nothing else."""
    heads = {key for key in trained if "iou_prediction_head" in key or "pred_obj_score_head" in key}
    torch.save({key: tensor for key, tensor in trained.items() if key not in heads}, tmp_path / "some.pth")
    convert(settings(tmp_path / "some.pth"), base, tmp_path / "hf")
    ours, before, after = read_all(tmp_path / "hf"), read_all(base), read_all(converted)
    for key, tensor in ours.items():
        assert torch.equal(tensor.float(), (before if key in heads else after)[key].float()), key


def test_nothing_is_inferred(base: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set convert.groups: .embed_head, fcs, lora, proj, sam2_decoder."):
        convert(settings(checkpoint, groups=None), base, tmp_path / "hf")
    with pytest.raises(ValueError, match="holds embed_head, which the export would drop"):
        convert(settings(checkpoint, groups=TRAINED[1:]), base, tmp_path / "hf")
    with pytest.raises(ValueError, match="not its alpha; set convert.lora"):
        convert(settings(checkpoint, lora=None), base, tmp_path / "hf")
    with pytest.raises(ValueError, match="has rank 4, convert.lora says 8"):
        convert(settings(checkpoint, lora=LoraSize(rank=8, alpha=16.0)), base, tmp_path / "hf")
    with pytest.raises(ValueError, match="does not say whether its LoRA was trained with use_rslora; set convert.lora.rslora"):
        convert(settings(checkpoint, lora=LoraSize(rank=4, alpha=8.0)), base, tmp_path / "hf")
    with pytest.raises(ValueError, match=r"vision_model\..* is missing, although group vision"):
        convert(settings(checkpoint, groups=(*TRAINED, "vision")), base, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    "meta",
    [
        {"train": {"lora": value}}
        for value in (
            4,
            "r4",
            [4],
            {},
            {"alpha": 8},
            {"rank": 4},
            {"rank": True, "alpha": 8},
            {"rank": 4.0, "alpha": 8},
            {"rank": 4, "alpha": float("nan")},
            {"rank": 4, "alpha": float("inf")},
            {"rank": 4, "alpha": 0},
            {"rank": 4, "alpha": True},
            {"rank": 4, "alpha": 10**400},
            {"rank": 0, "alpha": 8},
            {"rank": 4, "alpha": 8, "targets": "q_proj"},
        )
    ]
    + [{"train": {"lora": {"rank": 4, "alpha": 8, key: True}}} for key in OTHER_SCALES]
    + [{"trained": value} for value in (5, "lora", [["lora"]], {"lora": 1}, ["lora", 3])],
)
@pytest.mark.second
def test_meta_of_other_types_is_named(base: Path, checkpoint: Path, tmp_path: Path, meta: dict) -> None:
    torch.save({"meta": meta, "state_dict": read_pth(checkpoint).state}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth: meta\.tra"):
        convert(settings(tmp_path / "odd.pth", groups=None if "trained" in meta else TRAINED, lora=None), base, tmp_path / "hf")


@pytest.mark.parametrize(("alpha", "scale"), [(8, 2.0), (0.5, 0.125)])
@pytest.mark.second
def test_stored_sizes_of_lora_are_taken(
    base: Path, trained: dict[str, Tensor], tmp_path: Path, alpha: float, scale: float
) -> None:
    """Whole numbers too, rank 1 too, and targets that are a tuple; what is switched off among PEFT's settings is no obstacle."""
    one = {k: (t[:1] if ".lora_A." in k else t[:, :1] if ".lora_B." in k else t).clone() for k, t in trained.items()}
    for state, rank, by in ((trained, 4, scale), (one, 1, 4 * scale)):
        lora = {"rank": rank, "alpha": alpha, "targets": tuple(LAYERS), "use_dora": False, "rank_pattern": {}}
        torch.save({"meta": {"train": {"lora": lora}, "step": "3"}, "state_dict": state}, tmp_path / "a.pth")
        convert(settings(tmp_path / "a.pth", lora=None), base, tmp_path / "hf")
        record = json.loads((tmp_path / "hf" / "trained.json").read_text())
        assert record["lora_scale"] == by and record["step"] is None and record["under"] == []
        assert record["precision"] == "float32" and record["checkpoint_sha256"] == tensors_checksum(state)
        name = "language_model.model.layers.0.self_attn.q_proj.weight"
        a, b = (state[f"{Q}.lora_{side}.default.weight"] for side in "AB")
        assert torch.equal(read_all(tmp_path / "hf")[name], read_all(base)[name].float() + by * (b @ a))


def test_the_targets_say_which_layers_must_have_lora(base: Path, trained: dict[str, Tensor], tmp_path: Path) -> None:
    fewer = {key: tensor for key, tensor in trained.items() if ".lora_" not in key or "q_proj" in key}
    for targets, message in (
        (["q_proj"], None),
        (["q_proj", "k_proj"], r"LoRA of .*\.k_proj\.weight is missing, although group lora"),
    ):
        meta = {"trained": list(TRAINED), "train": {"lora": {"rank": 4, "alpha": 8.0, "targets": targets}}}
        torch.save({"meta": meta, "state_dict": fewer}, tmp_path / "a.pth")
        if message is None:
            convert(settings(tmp_path / "a.pth", groups=None, lora=None), base, tmp_path / "hf")
        else:
            with pytest.raises(ValueError, match=message):
                convert(settings(tmp_path / "a.pth", groups=None, lora=None), base, tmp_path / "other")


def test_the_largest_weight_is_a_million(base: Path, trained: dict[str, Tensor], tmp_path: Path) -> None:
    for value, fits in ((1e6, True), (-1e6, True), (1.001e6, False), (float("inf"), False)):
        state = trained | {"text_hidden_fcs.0.bias": torch.cat([torch.zeros(63), torch.tensor([value])])}
        torch.save(state, tmp_path / "a.pth")
        if fits:
            convert(settings(tmp_path / "a.pth"), base, tmp_path / "hf")
        else:
            with pytest.raises(ValueError, match=r"text_hidden_fcs\.0\.bias (has values beyond|is not finite)"):
                convert(settings(tmp_path / "a.pth"), base, tmp_path / "other")


def test_what_was_learnt_of_regions_is_said(base: Path, trained: dict[str, Tensor], tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    before = json.loads((base / "config.json").read_text()) | {"regions": False}
    (tmp_path / "base" / "config.json").write_text(json.dumps(before))
    for tasks, said in (({"captioning": {}}, True), ({"referring": {}}, False), (["captioning"], False)):
        torch.save({"meta": {"tasks": tasks}, "state_dict": trained}, tmp_path / "a.pth")
        convert(settings(tmp_path / "a.pth", code=None), tmp_path / "base", tmp_path / "hf")
        values = json.loads((tmp_path / "hf" / "config.json").read_text())
        assert values["regions"] is said and values["auto_map"]["AutoModel"].startswith("ByteDance/Sa2VA-4B--")
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text()) == {"_from_model_config": True}


@pytest.mark.parametrize("name", ("", "adapter_model.bin", "adapter_model.safetensors"))
def test_an_adapter_alone_is_refused_by_name(base: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({"a.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="an adapter as PEFT saves it.*merge_and_unload"):
        convert(settings(tmp_path / name), base, tmp_path / "hf")


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, None),
        ({"target_modules": "all-linear"}, None),
        ({"use_rslora": True}, None),
        ({"alpha_pattern": {"q_proj": 32}}, "meta.cfg has alpha_pattern="),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern|has rank 8"),
        ({"init_lora_weights": "olora"}, "meta.cfg has init_lora_weights='olora"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "LoRA with a bias"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on an embedding table"),
        ({"target_modules": ["q_proj"]}, "down_proj.weight is missing"),
    ],
)
@pytest.mark.second
def test_adapters_of_every_kind_are_merged_as_by_peft_or_refused(
    base: Path, trained: dict[str, Tensor], tmp_path: Path, changes: dict, outcome: str | None
) -> None:
    """As mmengine saves them: the trained tensors, and the text of the configuration. Those of rslora look like any others."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    before, size = read_all(base), {"r": 4, "lora_alpha": 8}
    model = Qwen2ForCausalLM(Qwen2Config(**json.loads((base / "config.json").read_text())["llm_config"]))
    own = {key.removeprefix("language_model."): tensor.float() for key, tensor in before.items() if "language_model" in key}
    model.load_state_dict(own)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(**({"target_modules": linear} | size | changes)))
    with torch.no_grad():
        for key, tensor in adapted.named_parameters():
            if "lora_B" in key:
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) / 20)
    state = {f"mllm.model.language_model.{key}": tensor.clone() for key, tensor in adapted.state_dict().items() if "lora" in key}
    state |= {key: tensor for key, tensor in trained.items() if "language_model" not in key}
    said = ", ".join(f"{key}={value!r}" for key, value in (size | changes).items())
    torch.save(
        {"state_dict": state, "meta": {"cfg": f"llm_lora=dict(type=LoraConfig, {said}, use_dora=False)"}}, tmp_path / "a.pth"
    )
    rslora = changes.get("use_rslora")
    groups = [group for group in TRAINED if group != "embed_head"]
    chosen = settings(tmp_path / "a.pth", groups=groups, lora=LoraSize(rank=4, alpha=8, rslora=rslora))
    if rslora:
        for stated, reason in ((None, "has use_rslora in meta.cfg; set"), (False, "use_rslora=True, convert.lora.rslora False")):
            with pytest.raises(ValueError, match=reason):
                convert(
                    settings(tmp_path / "a.pth", groups=groups, lora=LoraSize(rank=4, alpha=8, rslora=stated)), base, tmp_path
                )
    if outcome is not None:
        with pytest.raises(ValueError, match=rf"a\.pth: .*({outcome})"):
            convert(chosen, base, tmp_path / "hf")
        return
    convert(chosen, base, tmp_path / "hf")
    after = read_all(tmp_path / "hf")
    for key, tensor in adapted.merge_and_unload().state_dict().items():
        torch.testing.assert_close(after[f"language_model.{key}"].float(), tensor, rtol=0, atol=1e-6, msg=key)


def test_an_adapter_of_another_part_has_another_alpha(base: Path, trained: dict[str, Tensor], tmp_path: Path) -> None:
    name = next(key for key in read_all(base) if key.startswith("vision_model.") and key.endswith("attn.qkv.weight"))
    there = f"mllm.model.{name.removesuffix('.weight')}"
    rows, columns = read_all(base)[name].shape
    matrices = {f"{there}.lora_A.default.weight": torch.ones(4, columns), f"{there}.lora_B.default.weight": torch.ones(rows, 4)}
    torch.save({"state_dict": trained | matrices}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"LoRA of vision_model\..*, which has a rank and an alpha of its own"):
        convert(settings(tmp_path / "a.pth"), base, tmp_path / "hf")


def test_a_head_that_the_config_ties(base: Path, trained: dict[str, Tensor], tmp_path: Path) -> None:
    """transformers#45127: a tied config with two different tensors loses one of them on reload."""
    plain = tmp_path / "plain"
    plain.mkdir()
    state = {key: tensor for key, tensor in read_all(base).items() if "lm_head" not in key}
    save_file(state, plain / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = True
    (plain / "config.json").write_text(json.dumps(config))
    shard(plain, tmp_path / "tied")
    torch.save(trained, tmp_path / "differs.pth")
    with pytest.raises(
        ValueError, match=r"lm_head\.weight differs from .*embed_tokens\.weight, but the base's config\.json ties"
    ):
        convert(settings(tmp_path / "differs.pth"), tmp_path / "tied", tmp_path / "hf")
    torch.save(trained | {PTH_LLM + "lm_head.weight": trained[PTH_LLM + "model.embed_tokens.weight"]}, tmp_path / "same.pth")
    convert(settings(tmp_path / "same.pth"), tmp_path / "tied", tmp_path / "hf")
    assert read_all(tmp_path / "hf").keys() == state.keys()


def test_checkpoints_without_state(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such checkpoint"):
        read_pth(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=re.escape("list.pth: holds list")):
        read_pth(tmp_path / "list.pth")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step_000004.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"neither last\.pth .* but step_000004\.pth; name one"):
        read_pth(tmp_path / "run")


# ---------------------------------------------------------------- variants


def test_variants_take_only_their_groups(base: Path, converted: Path, tmp_path: Path) -> None:
    before, after = read_all(base), read_all(converted)
    make_variant(base, converted, ["lora", "fcs"], tmp_path / "variant")
    variant = read_all(tmp_path / "variant")
    assert variant.keys() == before.keys()
    for key, tensor in variant.items():
        assert torch.equal(tensor, (after if KEYS.shard_of(key) in ("llm", "fcs") else before)[key]), key
    index = shards.read_shard_index(tmp_path / "variant" / shards.INDEX)
    assert index["weight_map"].keys() == before.keys()
    assert index["metadata"]["sha256"] == {path.name: shards.sha256(path) for path in shards.files(tmp_path / "variant")}
    assert json.loads((tmp_path / "variant" / "variant.json").read_text())["groups"] == ["fcs", "lora"]


def test_variants_cost_no_disk(base: Path, converted: Path, tmp_path: Path) -> None:
    """n + m: every shard of every variant is an inode that base or export already has."""
    there = {path.stat().st_ino for folder in (base, converted) for path in shards.files(folder)}
    for name, groups in {"base": (), "full": TRAINED, "proj": ("proj",), "sam2_fcs": ("fcs", "sam2_decoder")}.items():
        make_variant(base, converted, groups, tmp_path / name)
        assert {path.stat().st_ino for path in shards.files(tmp_path / name)} <= there, name


def test_the_base_variant_does_not_depend_on_the_training(base: Path, converted: Path, checkpoint: Path, tmp_path: Path) -> None:
    """So that its evaluation is not repeated after each training."""
    convert(settings(checkpoint, precision="bf16"), base, tmp_path / "other")
    make_variant(base, converted, (), tmp_path / "one")
    make_variant(base, tmp_path / "other", (), tmp_path / "two")
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1]


def test_a_file_system_without_links_gets_verified_copies(base: Path, converted: Path, tmp_path: Path, monkeypatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    make_variant(base, converted, ["fcs"], tmp_path / "variant")
    shutil.copytree(converted, tmp_path / "damaged")
    path = next(path for path in shards.files(tmp_path / "damaged") if "-fcs-" in path.name)
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ValueError, match=r"model-fcs-.*does not have the sha256 that its index records"):
        make_variant(base, tmp_path / "damaged", ["fcs"], tmp_path / "variant")


def test_content_counts_not_names(base: Path, converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted, tmp_path / "swapped")
    one, two = (tmp_path / "swapped" / shards.shard_name(group, 1, 1) for group in ("fcs", "proj"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(ValueError, match=r"model-proj-.* is also in model-fcs-"):
        make_variant(base, tmp_path / "swapped", ["fcs"], tmp_path / "variant")
    assert not (tmp_path / "variant").exists()


def test_a_group_that_was_not_trained_is_said_and_one_that_would_be_lost_is_an_error(
    base: Path, converted: Path, tmp_path: Path
) -> None:
    fcs = {key: tensor for key, tensor in read_all(converted).items() if KEYS.shard_of(key) == "fcs"}
    torch.save(fcs, tmp_path / "some.pth")
    convert(settings(tmp_path / "some.pth", groups=("fcs",)), base, tmp_path / "hf")
    assert make_variant(base, tmp_path / "hf", ["lora", "fcs"], tmp_path / "some") == (["fcs"], ["lora"])
    with pytest.raises(ValueError, match=r"variants\.full: would drop what was trained in embed_head"):
        make_variant(base, converted, TRAINED[1:], tmp_path / "variant", whole=True)
    assert not (tmp_path / "variant").exists()


def test_a_tensor_of_another_shape_is_no_variant(base: Path, converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted, tmp_path / "other")
    (path,) = (path for path in shards.files(tmp_path / "other") if shards.group_in_name(path) == "fcs")
    state = load_file(path) | {"text_hidden_fcs.0.bias": torch.zeros(3)}
    path.unlink()
    save_file(state, path)
    sums = shards.read_sums(converted) | {path.name: shards.sha256(path)}
    shards.write_index(tmp_path / "other", sums)
    with pytest.raises(
        ValueError, match=r"tensor text_hidden_fcs\.0\.bias differs from the base in name or shape; make .*other again"
    ):
        make_variant(base, tmp_path / "other", ["fcs"], tmp_path / "variant")
    make_variant(base, tmp_path / "other", ["proj"], tmp_path / "variant")
    assert not json.loads((tmp_path / "variant" / "variant.json").read_text())["trained"]["under"]


def test_the_stage_makes_a_variant_of_links(base: Path, converted: Path, tmp_path: Path) -> None:
    """As DVC starts it, without torch (see test_architecture)."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(base)
    (tmp_path / "models" / "hf").symlink_to(converted)
    root = Path(__file__).parents[2]
    shutil.copyfile(root / "params.yaml", tmp_path / "params.yaml")
    subprocess.run(
        [sys.executable, "-m", "stages.filter", "proj"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, check=True
    )
    made = shards.files(tmp_path / "models" / "variants" / "proj")
    sources = {path.stat().st_ino for folder in (base, converted) for path in shards.files(folder)}
    assert len(made) == len(SHARDS) and {path.stat().st_ino for path in made} <= sources


# ---------------------------------------------------------------- saving


def test_a_checkpoint_is_whole_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "run" / "last.pth"
    state = {"text_hidden_fcs.0.bias": torch.randn(5), "vlm.mlp1.0.weight": torch.randn(2, 3)[:, 1:]}
    save_trained(path, KEYS, state, {"step": 3})
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]
    content = torch.load(path, weights_only=True)
    assert content["meta"]["step"] == 3 and content["meta"]["sha256"] == tensors_checksum(content["state_dict"])
    assert torch.equal(read_pth(path).state["mllm.model.mlp1.0.weight"], state["vlm.mlp1.0.weight"])
    data = path.read_bytes()
    where = data.index(state["text_hidden_fcs.0.bias"].numpy().tobytes())
    path.write_bytes(data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :])
    with pytest.raises(ValueError, match=r"last\.pth: damaged, .*CRC"):
        read_pth(path)
    content["state_dict"]["text_hidden_fcs.0.bias"][0] += 1
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"last\.pth: its tensors do not have the sha256"):
        read_pth(path)


@pytest.mark.second
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for a full disk; it is set in a child, where it ends with it."""
    path = tmp_path / "last.pth"
    save_trained(path, KEYS, {"text_hidden_fcs.0.bias": torch.zeros(5)}, {"step": 1})
    before = path.read_bytes()
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from ans.checkpoints.save import save_durably;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "save_durably(Path(sys.argv[1]), {'state_dict': {'text_hidden_fcs.0.bias': torch.zeros(1_000_000)}})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"OSError: .*last\.pth could not be saved: .*; free space", done.stderr.splitlines()[-1]), done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"] and path.read_bytes() == before


def test_a_full_disk_during_convert_leaves_the_old_export(base: Path, checkpoint: Path, tmp_path: Path) -> None:
    convert(settings(checkpoint), base, tmp_path / "hf")
    before = read_all(tmp_path / "hf")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"hf could not be written: .*what was there is untouched"):
            convert(settings(checkpoint), base, tmp_path / "hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]
    same(read_all(tmp_path / "hf"), before)
