"""What the `config.json` of released models says, so that their sizes are known before they are fetched.

Written down by hand from the releases; `python -m ans plan` counts parameters by it. A run reads the file that it fetched.
"""

from typing import Any

VOCABULARY = 151665 + 9 + 5
"""Qwen2.5's tokens, InternVL's (`<img>`, `</img>`, `<IMG_CONTEXT>` and three more pairs), Sa2VA's (`[SEG]` and two pairs)."""
_INTERNLM2_VOCABULARY = 92544 + 9 + 5
_QWEN25VL_VOCABULARY, _QWEN3VL_VOCABULARY = 151665 + 5, 151669 + 5

_VISION = {  # InternViT-300M-448px-V2.5 (OpenGVLab)
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
_VISION_6B = _VISION | {  # InternViT-6B-448px-V2.5
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
}
_QWEN2 = {  # inside InternVL, where the output table is the model's own
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
_INTERNLM2 = _QWEN2 | {"architectures": ["InternLM2ForCausalLM"], "vocab_size": _INTERNLM2_VOCABULARY, "bias": False}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, narrow: int) -> dict[str, Any]:
    """Return the sizes of a language model; `narrow`: heads of keys and values."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": narrow,
    }


def _internvl(
    template: str, sizes: dict[str, Any], language: dict[str, Any] = _QWEN2, vision: dict[str, Any] = _VISION
) -> dict[str, Any]:
    """Return InternVL2.5 or InternVL3, and SAM2-L at 1024 px."""
    return {
        "model_type": "sa2va_chat",
        "template": template,
        "select_layer": -1,
        "ps_version": "v2",
        "force_image_size": 448,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "vision_config": vision,
        "llm_config": language | sizes,
    }


def _qwen_vl(kind: str, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "sa2va_chat",
        "image_token_id": 151655,
        "text_config": text
        | {"model_type": f"{kind}_text", "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
        "vision_config": vision
        | {"model_type": kind, "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 16},
    }


def _qwen25vl(sizes: dict[str, Any]) -> dict[str, Any]:
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    text = sizes | {
        "vocab_size": _QWEN25VL_VOCABULARY,
        "max_position_embeddings": 128000,
        "rope_theta": 1e6,
        "rope_scaling": rope,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "hidden_act": "silu",
        "patch_size": 14,
        "window_size": 112,
    }
    vision |= {"fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "out_hidden_size": sizes["hidden_size"]}
    return _qwen_vl("qwen2_5_vl", text, vision)


def _qwen3vl(sizes: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = sizes | {"vocab_size": _QWEN3VL_VOCABULARY, "head_dim": 128, "attention_bias": False}
    text |= {"max_position_embeddings": 262144, "rope_theta": 5e6, "rope_scaling": rope}
    vision = vision | {"hidden_act": "gelu_pytorch_tanh", "patch_size": 16, "num_position_embeddings": 48 * 48}
    return _qwen_vl("qwen3_vl", text, vision | {"out_hidden_size": sizes["hidden_size"]})


_QWEN3VL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_QWEN3VL_LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}

_VICUNA = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAVA = {  # LLaVA-1.5-7B
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    "text_config": _VICUNA,
    "image_token_index": 32000,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}

RELEASED: dict[str, dict[str, Any]] = {
    "ByteDance/Sa2VA-1B": _internvl("qwen_chat", _sizes(896, 4864, 24, 14, 2)),
    "ByteDance/Sa2VA-4B": _internvl("phi3_chat", _sizes(2048, 11008, 36, 16, 2)),
    "ByteDance/Sa2VA-8B": _internvl("internlm2_chat", _sizes(4096, 14336, 32, 32, 8), _INTERNLM2),
    "ByteDance/Sa2VA-26B": _internvl("internlm2_chat", _sizes(6144, 16384, 48, 48, 8), _INTERNLM2, _VISION_6B),
    "ByteDance/Sa2VA-InternVL3-2B": _internvl("qwen_chat", _sizes(1536, 8960, 28, 12, 2)),
    "ByteDance/Sa2VA-InternVL3-8B": _internvl("qwen_chat", _sizes(3584, 18944, 28, 28, 4)),
    "ByteDance/Sa2VA-InternVL3-14B": _internvl("qwen_chat", _sizes(5120, 13824, 48, 40, 8)),
    "ByteDance/Sa2VA-Qwen2_5-VL-3B": _qwen25vl(_sizes(2048, 11008, 36, 16, 2)),
    "ByteDance/Sa2VA-Qwen2_5-VL-7B": _qwen25vl(_sizes(3584, 18944, 28, 28, 4)),
    "ByteDance/Sa2VA-Qwen3-VL-2B": _qwen3vl(_sizes(2048, 6144, 28, 16, 8), _QWEN3VL_TOWER),
    "ByteDance/Sa2VA-Qwen3-VL-4B": _qwen3vl(_sizes(2560, 9728, 36, 32, 8), _QWEN3VL_TOWER),
    "ByteDance/Sa2VA-Qwen3-VL-4B-SAM3": _qwen3vl(_sizes(2560, 9728, 36, 32, 8), _QWEN3VL_TOWER) | {"sam3_config": {}},
    "ByteDance/Sa2VA-LLaVA-1.5-7B": _LLAVA
    | {"model_type": "sa2va_chat", "template": "vicuna", "text_config": _VICUNA | {"vocab_size": 32002 + 5}},
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3vl(_sizes(4096, 12288, 36, 32, 8), _QWEN3VL_LARGE_TOWER),
    "llava-hf/llava-1.5-7b-hf": _LLAVA | {"model_type": "lisa", "template": "lisa"},  # with SAM ViT-B, the family's own decoder
}
"""`weights.location` -> what the `config.json` of its base says."""
