"""One table of tensor names, read in both directions. Nothing here loads a model, and nothing but joining tensors needs torch.

Every space is described against `hf`, the official Sa2VA folder; InternVL2.5's released weights are written in it too. A LISA
folder is in the same table, since no name can belong to both: LLaVA's names as transformers saves them, SAM's behind `sam.`.

- `model`: inside `ans.model.Segmenter` (transformers' and sam2's own module names)
- `pth`: the official training checkpoint (the language model inside PEFT, prefix `mllm.model.`)
- `research`: full-model `.pth` of the research code (LoRA merged, `mlp1` without prefix)
- `transformers`, `transformers_file`: `InternVLForConditionalGeneration` in memory, and as it saves itself
- `sam2`: SAM2's released `.pt`

A tensor that a space has no name for raises `KeyError`; a name never changes silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SAM2_HF = "grounding_encoder.sam2_model."

_LISA = ("vision_tower.", "multi_modal_projector.", "sam.")

# space -> (prefix in `hf`, prefix in the space). The longest prefix that fits counts, in both directions.
_PREFIXES = {
    "hf": tuple((part, part) for part in ("vision_model.", "language_model.", "mlp1.", "text_hidden_fcs.", _SAM2_HF, *_LISA)),
    "model": (
        ("vision_tower.", "vlm.vision_tower."),
        ("multi_modal_projector.", "vlm.multi_modal_projector."),
        ("sam.", "sam.sam."),
        ("vision_model.", "vlm.vision_model."),
        ("language_model.", "vlm.language_model."),
        ("mlp1.", "vlm.mlp1."),
        ("text_hidden_fcs.", "text_hidden_fcs."),
        (_SAM2_HF, "sam.model."),
    ),
    "pth": (
        *((part, part) for part in _LISA),
        ("vision_model.", "mllm.model.vision_model."),
        ("language_model.", "mllm.model.language_model.base_model.model."),
        ("mlp1.", "mllm.model.mlp1."),
        ("text_hidden_fcs.", "text_hidden_fcs."),
        (_SAM2_HF, _SAM2_HF),
    ),
    "research": (
        ("vision_model.", "mllm.model.vision_model."),
        ("language_model.", "mllm.model.language_model."),
        ("mlp1.", "mlp1."),
        ("text_hidden_fcs.", "text_hidden_fcs."),
        (_SAM2_HF, _SAM2_HF),
    ),
    "transformers": (
        ("vision_model.", "model.vision_tower."),
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("mlp1.0.", "model.multi_modal_projector.layer_norm."),
        ("mlp1.1.", "model.multi_modal_projector.linear_1."),
        ("mlp1.3.", "model.multi_modal_projector.linear_2."),
    ),
    "transformers_file": (
        ("vision_model.", "vision_tower."),
        ("language_model.", "language_model."),
        ("mlp1.0.", "multi_modal_projector.layer_norm."),
        ("mlp1.1.", "multi_modal_projector.linear_1."),
        ("mlp1.3.", "multi_modal_projector.linear_2."),
    ),
    "sam2": ((_SAM2_HF, ""),),
}
SPACES = tuple(_PREFIXES)

# transformers renamed the vision transformer's parts: (transformers, hf). Each pair is unambiguous in both directions.
_VISION = (
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
_VISION_RENAMED = ("model", "transformers", "transformers_file")
_QKV = re.compile(r"\.attention\.([qkv])_proj\.")
_FUSER_SCALE = re.compile(r"(memory_encoder\.fuser\.layers\.\d+)\.gamma$")
_FUSER_SCALE_HF = re.compile(r"(memory_encoder\.fuser\.layers\.\d+)\.g_weight$")

_GROUPS = (
    ("vision", re.compile(r"vision_(model|tower)\.")),
    ("embed_head", re.compile(r"language_model\.(model\.embed_tokens|lm_head)\.")),
    ("llm", re.compile(r"language_model\.")),
    ("proj", re.compile(r"(mlp1|multi_modal_projector)\.")),
    ("fcs", re.compile(r"text_hidden_fcs\.")),
    ("sam2_decoder", re.compile(r"(grounding_encoder\.sam2_model\.sam_mask_decoder|sam\.mask_decoder)\.")),
    ("sam2_encoder", re.compile(r"(grounding_encoder\.sam2_model|sam)\.")),
)
SHARD_GROUPS = tuple(name for name, _ in _GROUPS)
"""The module groups, under Sa2VA's names: a LISA model's `sam2_decoder` is the mask decoder of its SAM."""

LORA_WEIGHT = re.compile(r"language_model\..*\.(q|k|v|o|gate|up|down)_proj\.weight$")
"""HF names of the weights that LoRA adapts in the official recipe; a checkpoint with LoRA has a pair for each."""

MAY_BE_MISSING = re.compile(
    r"grounding_encoder\.sam2_model\.sam_mask_decoder\.(iou_prediction_head|pred_obj_score_head)\."
    r"|sam\.mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[1-3])\."
)
"""HF names that a trained group may lack: the parts of the mask decoder that no loss reaches. (LISA takes SAM's first mask.)"""

SEG_ROW = re.compile(r"(language_model\.(?:model\.embed_tokens|lm_head))\.seg_row$")
"""HF names of the row of `[SEG]` where it was trained alone; it belongs into `<the match>.weight`."""

MAY_BE_LEFT_OUT = re.compile(r"language_model\..*rotary_emb\.inv_freq$")
"""HF names that a checkpoint may hold and no folder has: they are computed from the config."""


def group_of(hf_key: str) -> str:
    """The shard group of a tensor in HF layout. Raises `KeyError` for a name that belongs to none."""
    for name, pattern in _GROUPS:
        if pattern.match(hf_key):
            return name
    raise KeyError(f"tensor {hf_key} belongs to no known part of a Sa2VA or LISA model")


def trained_group(hf_key: str) -> str:
    """The group that a tensor of a training checkpoint (but LoRA) was trained in. Raises `KeyError` as `group_of`."""
    return "seg_row" if SEG_ROW.match(hf_key) else group_of(hf_key)


# ---------------------------------------------------------------- names


def to_hf_name(key: str, space: str) -> str:
    """One name of `space` -> `hf`. The ViT's three attention projections all map to their fused tensor. Raises `KeyError`."""
    name = _swap(key, ((there, hf) for hf, there in _PREFIXES[space]), space)
    if name.startswith("vision_model.") and space in _VISION_RENAMED:
        name = _QKV.sub(".attention.qkv.", name)
        for theirs, hf in _VISION:
            name = name.replace(theirs, hf)
    if name.startswith(_SAM2_HF) and space != "hf":
        name = _FUSER_SCALE.sub(r"\1.g_weight", name)
    return name


def from_hf_names(hf_key: str, space: str) -> list[str]:
    """The inverse of `to_hf_name`: one name, or three where the space keeps q, k and v of the ViT apart. Raises `KeyError`."""
    group_of(hf_key)
    name = hf_key
    if name.startswith("vision_model.") and space in _VISION_RENAMED:
        for theirs, hf in _VISION:
            name = name.replace(hf, theirs)
    if name.startswith(_SAM2_HF) and space != "hf":
        name = _FUSER_SCALE_HF.sub(r"\1.gamma", name)
    name = _swap(name, _PREFIXES[space], space)
    if ".attention.qkv." in name and space in _VISION_RENAMED:
        return [name.replace(".attention.qkv.", f".attention.{part}_proj.") for part in "qkv"]
    return [name]


def checkpoint_to_hf_name(key: str) -> str:
    """One name of a user's `.pth`, in whichever of `pth`, `research` and `hf` it is written, -> `hf`. Raises `KeyError`.

    PEFT's `base_layer.` (an adapted layer's own weight) is cut; for a LoRA matrix ask for the weight that it adapts.
    """
    table = [(there, hf) for space in ("pth", "research", "hf") for hf, there in _PREFIXES[space]]
    name = _swap(key, table, "any known checkpoint").replace(".base_layer.", ".")
    return _FUSER_SCALE.sub(r"\1.g_weight", name)


def model_to_hf_name(name: str) -> str:
    """One name, `model` -> `hf`."""
    return to_hf_name(name, "model")


def model_to_pth_name(name: str) -> str:
    """One name of a trained tensor (a LoRA matrix too), `model` -> `pth`."""
    return from_hf_names(to_hf_name(name, "model"), "pth")[0]


def _swap(key: str, table: Iterable[tuple[str, str]], space: str) -> str:
    fitting = [(old, new) for old, new in table if key.startswith(old)]
    if not fitting:
        raise KeyError(f"tensor {key}: no such name in the layout of {space}")
    old, new = max(fitting, key=lambda pair: len(pair[0]))
    return new + key[len(old) :]


_LORA = re.compile(r"(.*)\.lora_([AB])(?:\.default)?\.weight$")


_OTHER_ADAPTERS = (
    (re.compile(r"lora_magnitude_vector"), "DoRA"),
    (re.compile(r"lora_embedding_[AB]"), "LoRA on an embedding table"),
    (re.compile(r"lora_[AB]\.(?:[^.]+\.)?bias$"), "LoRA with a bias of its own"),
    (re.compile(r"lora_[AB]\.[^.]+\.weight$"), "an adapter that is not named `default`"),
)


def lora_pairs(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """HF name of each weight that LoRA adapts -> its {"A": checkpoint's key, "B": checkpoint's key}.

    Raises `KeyError` for any other adapter's tensor: merging without it would give another model than was trained.
    """
    pairs: dict[str, dict[str, str]] = {}
    for key in keys:
        if match := _LORA.match(key):
            pairs.setdefault(checkpoint_to_hf_name(match.group(1) + ".weight"), {})[match.group(2)] = key
        elif "lora" in key.lower():
            kind = next((kind for pattern, kind in _OTHER_ADAPTERS if pattern.search(key)), "an adapter of an unknown kind")
            raise KeyError(f"tensor {key}: {kind} is not converted; merge it with PEFT (merge_and_unload) and convert the result")
    return pairs


# ---------------------------------------------------------------- states


def from_hf(state: Mapping[str, Tensor], space: str) -> dict[str, Tensor]:
    """A state dict, `hf` -> `space`. A fused q, k, v tensor is cut in three views where the space keeps them apart."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        names = from_hf_names(key, space)
        parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        result.update(zip(names, parts, strict=True))
    return result


def to_hf(state: Mapping[str, Tensor], space: str) -> dict[str, Tensor]:
    """The inverse of `from_hf`. Raises `KeyError` when one of q, k, v of a ViT layer is missing."""
    result: dict[str, Tensor] = {}
    for key in state:
        name = to_hf_name(key, space)
        if name not in result:
            parts = [state[part] for part in from_hf_names(name, space)]
            result[name] = parts[0] if len(parts) == 1 else _join(parts)
    return result


def _join(parts: list[Tensor]) -> Tensor:
    import torch  # here alone: `filter` reads the table above and must not wait for torch

    return torch.cat(parts)


def hf_to_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in HF layout -> `model` names."""
    return from_hf(state, "model")


def model_to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `hf_to_model`."""
    return to_hf(state, "model")
