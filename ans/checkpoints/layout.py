"""One table of tensor names, read in both directions.

Three layouts: `model` (the names inside `ans.model.Segmenter`: transformers' and sam2's own), `hf` (the official Sa2VA folder),
and `pth` (the official training checkpoint: LoRA unmerged, prefix `mllm.model.`). Nothing here loads a model.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_VISION = "vlm.vision_model."
_LANGUAGE = "vlm.language_model."
_SAM2 = "sam.model."

# (model, hf): prefixes and infixes that differ. Each pair is unambiguous in both directions.
_RENAMES = (
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding"),
    ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
    ("encoder.layer.", "encoder.layers."),
    (".lambda_1", ".ls1"),
    (".lambda_2", ".ls2"),
    (".attention.projection_layer.", ".attn.proj."),
    (".attention.q_norm.", ".attn.q_norm."),
    (".attention.k_norm.", ".attn.k_norm."),
    (".attention.qkv.", ".attn.qkv."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
)
_QKV = re.compile(r"\.attention\.([qkv])_proj\.")
_FUSER_SCALE = re.compile(r"(memory_encoder\.fuser\.layers\.\d+)\.gamma$")
_FUSER_SCALE_HF = re.compile(r"(memory_encoder\.fuser\.layers\.\d+)\.g_weight$")

_GROUPS = (
    ("vision", re.compile(r"vision_model\.")),
    ("embed_head", re.compile(r"language_model\.(model\.embed_tokens|lm_head)\.")),
    ("llm", re.compile(r"language_model\.")),
    ("proj", re.compile(r"mlp1\.")),
    ("fcs", re.compile(r"text_hidden_fcs\.")),
    ("sam2_decoder", re.compile(r"grounding_encoder\.sam2_model\.sam_mask_decoder\.")),
    ("sam2_encoder", re.compile(r"grounding_encoder\.sam2_model\.")),
)
SHARD_GROUPS = tuple(name for name, _ in _GROUPS)


def group_of(hf_key: str) -> str:
    """The shard group of a tensor in HF layout. Raises `KeyError` for a name that belongs to none."""
    for name, pattern in _GROUPS:
        if pattern.match(hf_key):
            return name
    raise KeyError(f"tensor {hf_key} belongs to no known part of a Sa2VA model")


def model_to_hf_name(name: str) -> str:
    """One name, `model` -> `hf`. The three attention projections of the ViT all map to their fused tensor."""
    if name.startswith(_VISION):
        name = _QKV.sub(".attention.qkv.", name.removeprefix("vlm."))
        for ours, theirs in _RENAMES:
            name = name.replace(ours, theirs)
        return name
    if name.startswith(_SAM2):
        return _FUSER_SCALE.sub(r"\1.g_weight", "grounding_encoder.sam2_model." + name.removeprefix(_SAM2))
    return name.removeprefix("vlm.")


def hf_to_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in HF layout -> `model` names; the ViT's fused attention tensor is cut in three (views, no copy)."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        group = group_of(key)
        if group == "vision":
            name = "vlm." + key
            for ours, theirs in _RENAMES:
                name = name.replace(theirs, ours)
            if ".attention.qkv." in name:
                for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                    result[name.replace(".qkv.", f".{part}_proj.")] = chunk
                continue
        elif key.startswith("grounding_encoder.sam2_model."):
            name = _SAM2 + _FUSER_SCALE_HF.sub(r"\1.gamma", key.removeprefix("grounding_encoder.sam2_model."))
        elif group == "fcs":
            name = key
        else:
            name = "vlm." + key
        result[name] = tensor
    return result


def model_to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `hf_to_model`. Raises `KeyError` when one of q, k, v of a ViT layer is missing."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = _QKV.search(name) if name.startswith(_VISION) else None
        if part is None:
            result[model_to_hf_name(name)] = tensor
        elif part.group(1) == "q":
            rest = [state[name.replace(".q_proj.", f".{other}_proj.")] for other in "kv"]
            result[model_to_hf_name(name)] = torch.cat([tensor, *rest])
    return result


def model_to_pth_name(name: str) -> str:
    """One name of a trained tensor, `model` -> `pth`."""
    if name.startswith(_LANGUAGE):
        return "mllm.model.language_model.base_model.model." + name.removeprefix(_LANGUAGE)
    if name.startswith("vlm."):
        return "mllm.model." + name.removeprefix("vlm.")
    if name.startswith(_SAM2):
        return "grounding_encoder.sam2_model." + name.removeprefix(_SAM2)
    return name


_LORA = re.compile(r"(.*)\.lora_([AB])\.default\.weight$")


def lora_pairs(state: Iterable[str]) -> dict[str, dict[str, str]]:
    """HF name of each weight that LoRA adapts -> its {"A": pth key, "B": pth key}."""
    pairs: dict[str, dict[str, str]] = {}
    for key in state:
        match = _LORA.match(key)
        if match:
            pairs.setdefault(pth_to_hf_name(match.group(1) + ".weight"), {})[match.group(2)] = key
    return pairs


def pth_to_hf_name(key: str) -> str:
    """One name, `pth` -> `hf` (for a LoRA matrix ask for the weight that it adapts)."""
    key = key.removeprefix("mllm.model.").replace("language_model.base_model.model.", "language_model.", 1)
    return _FUSER_SCALE.sub(r"\1.g_weight", key)
