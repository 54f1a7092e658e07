"""Releases in small: random weights in the layouts of vision-language models as they are published, and SAM2's file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from ans.checkpoints.assemble import assemble
from ans.model.config import ModelConfig
from ans.model.loading import read_tensors
from tests import golden_case
from tests.golden_case import GoldenCase, GoldenSet

TINY = Path(__file__).parents[1] / "weights" / "tiny"
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
    folder.mkdir(parents=True)
    state = read.keys.to_hf({f"vlm.{name}": tensor.contiguous() for name, tensor in vlm.state_dict().items()}, "model")
    save_file(state, folder / "model.safetensors")
    del values["sam2_config"]
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_bytes((golden_case.FOLDER / "tokenizer_base.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))


def internvl(folder: Path) -> None:
    """Of the golden case's sizes and weights; its configuration does not name the class of the vision transformer."""
    golden = GoldenCase()
    state = golden.state("hf_state") | golden.state("base_internvl_changed")
    folder.mkdir(parents=True)
    own = ("vision_model.", "language_model.", "mlp1.")
    save_file({name: tensor for name, tensor in state.items() if name.startswith(own)}, folder / "model.safetensors")
    values = golden.config() | {"model_type": "internvl_chat", "template": "internvl2_5"}
    language = values["llm_config"] | {"vocab_size": len(state["language_model.lm_head.weight"])}
    vision = {key: value for key, value in values["vision_config"].items() if key != "architectures"}
    del values["sam2_config"]
    (folder / "config.json").write_text(json.dumps(values | {"llm_config": language, "vision_config": vision}))
    golden.write_tokenizer(folder)
    (folder / "tokenizer.json").write_bytes((golden_case.FOLDER / "tokenizer_base.json").read_bytes())


def sam2(path: Path) -> Path:
    """The tiny base's SAM2, as it is released."""
    tiny = ModelConfig.from_folder(TINY)
    masks = {key: tensor for key, tensor in read_tensors(TINY).items() if tiny.keys.shard_of(key).startswith("sam2")}
    torch.save({"model": tiny.keys.from_hf(masks, "sam2")}, path)
    return path


def add_sam2_section(folder: Path) -> None:
    """Let a release say that SAM2 is of the tiny base's size."""
    tiny = ModelConfig.from_folder(TINY)
    edit(folder / "config.json", lambda values: values.update({tiny.decoder.section: tiny.values[tiny.decoder.section]}))


TWINS = ("sa2va_internvl3", "sa2va_internlm2", "sa2va_qwen25vl", "sa2va_qwen3vl")
"""A model of each family beside that of the tiny base."""


def twin(name: str, folder: Path, **changes: Any) -> Path:
    """One of `TWINS`, with random weights; a model folder below `folder`. `changes`: other values in `config.json`."""
    if name != "sa2va_internlm2":  # of which there are golden numbers for parts alone
        return GoldenSet(name).write_model(folder / "model", **changes)
    torch.manual_seed(3)
    internlm2(folder / "released")
    add_sam2_section(folder / "released")
    assemble(folder / "released", sam2(folder / "sam2.pt"), folder / "base")
    edit(folder / "base" / "config.json", lambda values: values.update(changes))
    return folder / "base"
