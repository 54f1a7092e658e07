"""What the `config.json` of released models says, so that their sizes are known before they are fetched.

Written down by hand from the releases; `python -m ans plan` counts parameters by it. A run reads the file that it fetched.
"""

from typing import Any

VOCABULARY = 151665 + 9 + 5
"""Qwen2.5's tokens, InternVL's (`<img>`, `</img>`, `<IMG_CONTEXT>` and three more pairs), Sa2VA's (`[SEG]` and two pairs)."""

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
_LANGUAGE = {  # what Qwen2.5-0.5B and -3B have in common inside InternVL2.5, whose output table is its own
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}


def _sa2va(template: str, hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    """InternVL2.5 with Qwen2.5, and SAM2-L at 1024 px."""
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
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
        "vision_config": _VISION,
        "llm_config": _LANGUAGE | sizes,
    }


_LISA = {  # LLaVA-1.5-7B; the mask decoder is the family's own, SAM ViT-B (facebook)
    "model_type": "lisa",
    "template": "lisa",
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "image_token_index": 32000,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}

RELEASED: dict[str, dict[str, Any]] = {
    "ByteDance/Sa2VA-1B": _sa2va("qwen_chat", 896, 4864, 24, 14),
    "ByteDance/Sa2VA-4B": _sa2va("phi3_chat", 2048, 11008, 36, 16),
    "llava-hf/llava-1.5-7b-hf": _LISA,
}
"""`weights.location` -> what the `config.json` of its base says."""
