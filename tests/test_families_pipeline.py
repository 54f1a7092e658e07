"""A small twin of each family through the stages: a release with random weights and SAM2, put together, trained, converted, evaluated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from ans.checkpoints.export import export_adapter, export_hub
from ans.formats.shards import entries, sha256
from ans.model.config import ModelConfig
from ans.model.loading import read_tensors
from ans.model.segmenter import Segmenter
from tests import golden_case, pipeline
from tests.golden_case import GoldenCase, GoldenSet

pytestmark = pytest.mark.slow

TINY = pipeline.REPOSITORY / "weights" / "tiny"
LIMITS = {"min_pixels": 8 * 1024, "max_pixels": 24 * 1024}
TEXT = {
    "vocab_size": 440, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 400, "eos_token_id": 402,
}  # fmt: skip
VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48}
IDS = {"image_token_id": 412, "video_token_id": 413, "vision_start_token_id": 409, "vision_end_token_id": 410}


def drawn(model: torch.nn.Module) -> None:
    for parameter in model.parameters():  # the defaults are too small for anything to matter
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)


def save_qwen(model: PreTrainedModel, folder: Path) -> None:
    drawn(model)
    model.save_pretrained(folder)
    golden = GoldenSet("sa2va_qwen3vl")
    (folder / "tokenizer.json").write_bytes((golden.folder / "tokenizer_base.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    edit(folder / "config.json", lambda values: values.update(LIMITS))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def qwen3vl(folder: Path) -> None:
    """Tied, as the released 2B and 4B are."""
    text = TEXT | {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}}
    vision = VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    values = {"text_config": text | {"tie_word_embeddings": True}, "vision_config": vision, "tie_word_embeddings": True}
    save_qwen(Qwen3VLForConditionalGeneration(Qwen3VLConfig(**values, **IDS)), folder)


def qwen25vl(folder: Path) -> None:
    """In the files' older form: the language model's settings are not in a section, its tensors not below `language_model`."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]}
    vision = VISION | {"fullatt_block_indexes": [1]}
    values = {"text_config": TEXT | {"rope_parameters": rope}, "vision_config": vision, "tie_word_embeddings": False}
    save_qwen(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**values, **IDS)), folder)

    def flatten(values: dict[str, Any]) -> None:
        text = values.pop("text_config")
        values |= {name: text[name] for name in TEXT} | {"rope_theta": 1e6, "hidden_act": "silu", "rms_norm_eps": 1e-6}
        values |= {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}, "use_sliding_window": False}

    edit(folder / "config.json", flatten)
    state = read_tensors(folder)
    older = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in state.items()
    }
    assert any(name.startswith("visual.") for name in older) and any(name.startswith("model.layers.") for name in older)
    (folder / "model.safetensors").unlink()
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})


def internlm2(folder: Path) -> None:
    """Of the golden sizes, with the words of InternVL."""
    golden, whole = GoldenSet("sa2va_internlm2").meta, GoldenCase()
    language = golden["llm_config"] | {"vocab_size": 440, "bos_token_id": 400, "eos_token_id": 402, "pad_token_id": 400}
    vision = golden["vision_config"]
    values = whole.config() | {"llm_config": language, "vision_config": vision, "force_image_size": vision["image_size"]}
    values |= {"model_type": "internvl_chat", "template": "internlm2-chat"}
    read = ModelConfig.from_dict(values | {"model_type": "sa2va_chat", "template": "internlm2_chat"})
    vlm = read.family.build()
    drawn(vlm)
    vlm.language_model.lm_head.weight.data[400:] = 0  # it says no special token in a description, which is put into a question
    folder.mkdir()
    state = read.keys.to_hf({f"vlm.{name}": tensor.contiguous() for name, tensor in vlm.state_dict().items()}, "model")
    save_file(state, folder / "model.safetensors")
    del values["sam2_config"]
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_bytes((golden_case.FOLDER / "tokenizer_base.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))


RELEASES = {
    "sa2va-qwen3-vl-8b": (qwen3vl, "Sa2VA on Qwen3-VL"),
    "sa2va-qwen2_5-vl-3b": (qwen25vl, "Sa2VA on Qwen2.5-VL"),
    "sa2va-8b": (internlm2, "Sa2VA on InternVL with InternLM2"),
}
"""Preset -> the release in small, and what messages call the family."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("preset", RELEASES)
def test_a_small_release_through_the_stages(world: Path, tmp_path: Path, preset: str) -> None:
    make, name = RELEASES[preset]
    work, released = tmp_path / "work", tmp_path / "released"
    (work / "data").mkdir(parents=True)
    (work / "data" / "index").symlink_to(world / "data" / "index")
    torch.manual_seed(3)
    make(released)
    tiny = ModelConfig.from_folder(TINY)
    edit(released / "config.json", lambda values: values.update({tiny.decoder.section: tiny.values[tiny.decoder.section]}))
    masks = {key: tensor for key, tensor in read_tensors(TINY).items() if tiny.keys.shard_of(key).startswith("sam2")}
    torch.save({"model": tiny.keys.from_hf(masks, "sam2")}, work / "sam2_hiera_large.pt")
    sam2 = {"location": "sam2_hiera_large.pt", "sha256": sha256(work / "sam2_hiera_large.pt")}
    groups = ["lora", "embed_head", "fcs", "sam2_decoder"]
    values = pipeline.small_values(
        world.parent / "world", preset=preset, weights={"source": "path", "location": str(released), "sam2": sam2},
        launch__workers=0, train__steps=2, train__batch=4, train__accumulation=1, train__precision="float32", train__groups=groups,
        train__lora={"rank": 4, "alpha": 8.0}, train__mask_points=0, train__caption_len=8, train__referring__sources=["refcoco"],
        variants__full=groups, evaluate__precision="float32", evaluate__splits=["refcoco_val"], evaluate__max_new_tokens=4,
        evaluate__tokens_per_batch=4096,
    )  # fmt: skip
    pipeline.write_params(work, values)
    pipeline.run(work, "weights")
    pipeline.train_to_evaluation(work, values)

    base, out = work / "models" / "base", work / "models" / "hf"
    model = Segmenter.from_pretrained(out)
    assert model.config.family.name == name
    embedding, output = model.config.family.tables
    before, after = read_tensors(base), read_tensors(out)
    assert before.keys() == after.keys() and len(before[embedding]) == len(before[output]) == len(model.tokenizer) < 440
    keys = model.config.keys
    changed = {keys.shard_of(key) for key in before if not torch.equal(before[key].float(), after[key].float())}
    assert changed == {"embed_head", "llm", "fcs", "sam2_decoder"}
    adapted = {key.split(".")[-2] for key in before if keys.shard_of(key) == "llm" and not torch.equal(before[key], after[key])}
    assert adapted == set(model.config.family.lora_targets)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "sa2va_chat" and config["auto_map"]["AutoModel"].startswith("ByteDance/Sa2VA-")

    table = pd.read_parquet(work / "data" / "eval" / "full" / "refcoco_val.parquet")
    assert len(table) == pipeline.metrics(work, "full", "refcoco_val")["n"] > 0
    pipeline.run(work, "filter", "proj")
    assert entries(work / "models" / "variants" / "proj").keys() == before.keys()
    full = work / "models" / "variants" / "full"
    export_adapter(full, work / "models" / "checkpoint" / "last.pth", tmp_path / "adapter")
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(adapter["target_modules"]) == set(model.config.family.lora_targets)
    export_hub(full, tmp_path / "hub", work / "reports")
    assert Segmenter.from_pretrained(tmp_path / "hub").config.family.title in (tmp_path / "hub" / "README.md").read_text()

    if not model.config.family.regions:
        values["train"]["loop2"]["enabled"] = True
        pipeline.write_params(work, values)
        with pytest.raises(AssertionError, match=f"train.loop2: {name} was not trained to describe regions"):
            pipeline.run(work, "train")
