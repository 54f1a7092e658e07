"""Sa2VA (arXiv 2501.04001) on InternVL2.5 or InternVL3 with Qwen2.5, in the official layout of their folders: Sa2VA-1B and -4B,
-InternVL3-2B, -8B and -14B.

An image is cut into up to twelve square tiles, with the whole image as the last one. The modules are transformers' own but for pixel
shuffle and projector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    InternVLVisionConfig,
    InternVLVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ans.model import family, preprocess
from ans.model.family import LLAMA_LAYERS, Grid, Pixels, Visual, by_image, refuse_windows
from ans.model.keys import Fusion, KeyTable, Renaming
from ans.model.prompts import TEMPLATES, Template

_EMBEDDING, _OUTPUT = "language_model.model.embed_tokens.", "language_model.lm_head."

_OWN_NAMES = ("model", "transformers", "transformers_file")
"""The spaces in which the vision transformer's parts have transformers' names: (transformers', HF's)."""
_VISION_NAMES = (
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


def _thirds(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.chunk(3)


KEYS = KeyTable(
    spaces={
        "model": {"vision_model.": "vlm.vision_model.", "language_model.": "vlm.language_model.", "mlp1.": "vlm.mlp1."},
        "pth": {
            "vision_model.": "mllm.model.vision_model.",
            "language_model.": "mllm.model.language_model.base_model.model.",
            "mlp1.": "mllm.model.mlp1.",
        },
        "research": {
            "vision_model.": "mllm.model.vision_model.",
            "language_model.": "mllm.model.language_model.",
            "mlp1.": "mlp1.",
        },
        # `InternVLForConditionalGeneration` in memory, and as it saves itself
        "transformers": {
            "vision_model.": "model.vision_tower.",
            "language_model.model.": "model.language_model.",
            "language_model.lm_head.": "lm_head.",
            "mlp1.0.": "model.multi_modal_projector.layer_norm.",
            "mlp1.1.": "model.multi_modal_projector.linear_1.",
            "mlp1.3.": "model.multi_modal_projector.linear_2.",
        },
        "transformers_file": {
            "vision_model.": "vision_tower.",
            "language_model.": "language_model.",
            "mlp1.0.": "multi_modal_projector.layer_norm.",
            "mlp1.1.": "multi_modal_projector.linear_1.",
            "mlp1.3.": "multi_modal_projector.linear_2.",
        },
    },
    shards={
        "vision": ("vision_model.",),
        "embed_head": (_EMBEDDING, _OUTPUT),
        "llm": ("language_model.",),
        "proj": ("mlp1.",),
    },
    renamings=(Renaming("vision_model.", _OWN_NAMES, _VISION_NAMES),),
    fusions=(
        Fusion(
            "vision_model.",
            _OWN_NAMES,
            ".attention.qkv.",
            tuple(f".attention.{part}_proj." for part in "qkv"),
            _thirds,
            torch.cat,
        ),
    ),
)


def _side(size: Any, patch: Any) -> int:
    """Return the side of a tile in pixels. Raises `ValueError` for a side that is not a multiple of the patch size."""
    if type(size) is not int or type(patch) is not int or patch < 1 or size < patch or size % patch:
        raise ValueError(f"force_image_size: {size!r} must be a multiple of the patch size, {patch!r} pixels")
    return size


@dataclass(frozen=True)
class Family(family.Family):
    system = "Sa2VA"
    title = "InternVL"
    decoder = "sam2"
    tables = (f"{_EMBEDDING}weight", f"{_OUTPUT}weight")
    lora_targets = LLAMA_LAYERS
    regions = True
    videos = True
    new_tokens = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")
    remote = {
        "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfig",
        "AutoModel": "modeling_sa2va_chat.Sa2VAChatModel",
        "AutoModelForCausalLM": "modeling_sa2va_chat.Sa2VAChatModel",
    }
    code = "ByteDance/Sa2VA-4B"
    keys = KEYS

    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    """The language model, by its class in the official files."""

    written: ClassVar[str] = "qwen_chat"
    """InternVL's own conversation format with this language model, under the official Sa2VA name."""

    vision: InternVLVisionConfig
    language: Any  # as `read_language` gives it
    image_size: int
    patch_size: int
    downsample_ratio: float
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    template: Template

    @classmethod
    def owns(cls, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == "sa2va_chat" and cls._has_language(values)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        vision, language, dynamic = values["vision_config"], values["llm_config"], values["dynamic_image_size"]
        _refuse_other_attention(language)
        if values["select_layer"] != -1 or values["ps_version"] != "v2":
            raise ValueError("select_layer: only -1 is supported, with ps_version v2 (every released Sa2VA of InternVL2.5)")
        if values.get("pad2square"):
            raise ValueError("pad2square: true is not supported; every released Sa2VA cuts an image into tiles")
        if values["template"] not in TEMPLATES:
            raise ValueError(f"template: {values['template']!r} is unknown; there are {', '.join(TEMPLATES)}")
        return cls(
            vision=InternVLVisionConfig(
                **{key: vision[key] for key in _SAME_IN_VISION},
                attention_bias=vision["qkv_bias"],
                use_qk_norm=vision["qk_normalization"],
                **_SDPA,
            ),
            language=cls.read_language(language),
            image_size=_side(values["force_image_size"] or vision["image_size"], vision["patch_size"]),
            patch_size=vision["patch_size"],
            downsample_ratio=values["downsample_ratio"],
            min_tiles=values["min_dynamic_patch"] if dynamic else 1,
            max_tiles=values["max_dynamic_patch"] if dynamic else 1,
            use_thumbnail=values["use_thumbnail"],
            template=TEMPLATES[values["template"]],
        )

    @classmethod
    def read_language(cls, values: Mapping[str, Any]) -> PretrainedConfig:
        """Return the language model of `llm_config`."""
        return Qwen2Config(**language_settings(values))

    @property
    def side(self) -> int:
        """Image tokens per side of one tile."""
        return int(self.image_size // self.patch_size * self.downsample_ratio)

    def grid(self, height: int, width: int, max_tiles: int | None = None) -> Grid:
        columns, rows = preprocess.tile_grid(width, height, self.image_size, *self._limits(max_tiles))
        return Grid(columns * rows + (self.use_thumbnail and columns * rows > 1), self.side, self.side)

    def pixels(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        tiles = preprocess.tiles(image, self.image_size, *self._limits(max_tiles), self.use_thumbnail)
        return Pixels(preprocess.normalise(tiles), Grid(len(tiles), self.side, self.side))

    def _limits(self, max_tiles: int | None) -> tuple[int, int]:
        most = min(self.max_tiles, max_tiles or self.max_tiles)
        return min(self.min_tiles, most), most

    def build(self) -> "InternVL":
        return InternVL(self, Qwen2ForCausalLM(self.language))

    @classmethod
    def for_remote(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return it with the parts' classes named: without them the official code builds parts of other sizes, or none."""
        parts = {"vision_config": "InternVisionModel", "llm_config": cls.architecture}
        return {**values, **{part: {**values[part], "architectures": [name]} for part, name in parts.items()}}

    @classmethod
    def made_of(cls, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == "internvl_chat" and cls._has_language(values)

    @classmethod
    def _has_language(cls, values: Mapping[str, Any]) -> bool:
        default = Family.architecture  # what a file that names none has
        return "llm_config" in values and (values["llm_config"].get("architectures") or [default])[0] == cls.architecture

    @classmethod
    def assembled(cls, values: Mapping[str, Any], tokens: int | None = None) -> dict[str, Any]:
        language = {**values["llm_config"], "tie_word_embeddings": False}
        if tokens is not None:
            language["vocab_size"] = tokens
        base = {
            **values,
            "model_type": "sa2va_chat",
            "architectures": ["Sa2VAChatModel"],
            "template": cls.written,
            "tie_word_embeddings": False,
            "llm_config": language,
        }
        return cls.for_remote(base)


def _refuse_other_attention(language: Mapping[str, Any]) -> None:
    """Raise `ValueError` for settings that change the language model's results and that are not built here."""
    scaling = language.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    # InternVL3's dynamic scaling acts beyond max_position_embeddings only, which no prompt here reaches
    if kind not in ("default", "dynamic"):
        raise ValueError(f"llm_config.rope_scaling: {kind!r} is not supported; only none, and dynamic as in InternVL3")
    refuse_windows(language, "llm_config")


_SAME_IN_VISION = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "norm_type",
    "layer_norm_eps",
    "hidden_act",
)
_SAME_IN_LANGUAGE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
)
"""Keys that transformers calls as the official files do."""
_SDPA: dict[str, Any] = {"attn_implementation": "sdpa"}
"""What every configuration of transformers takes, and none declares."""


def language_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the configurations of Llama and of Qwen2 both have, from `llm_config`."""
    return {
        **{key: values[key] for key in _SAME_IN_LANGUAGE},
        "rope_parameters": {"rope_type": "default", "rope_theta": values["rope_theta"]},
        "tie_word_embeddings": values.get("tie_word_embeddings", False),
        **_SDPA,
    }


class InternVL(family.Vlm):
    """A vision transformer, pixel shuffle, a two-layer projector and a language model."""

    def __init__(self, config: Family, language: PreTrainedModel) -> None:
        super().__init__()
        self.factor = int(1 / config.downsample_ratio)
        self.vision_model = InternVLVisionModel(config.vision)
        self.language_model = language
        shuffled, width = config.vision.hidden_size * self.factor**2, config.language.hidden_size
        self.mlp1 = nn.Sequential(nn.LayerNorm(shuffled), nn.Linear(shuffled, width), nn.GELU(), nn.Linear(width, width))

    @property
    def vision(self) -> nn.Module:
        return self.vision_model

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_model.embeddings.cls_token.dtype

    def encode(self, values: Tensor, grids: Sequence[Grid]) -> list[Visual]:
        features = _pixel_shuffle(self.vision_model(pixel_values=values).last_hidden_state[:, 1:], self.factor)
        return by_image(features, grids)

    def project(self, tokens: Tensor) -> Tensor:
        return self.mlp1(tokens.to(next(self.mlp1.parameters()).dtype))


def _pixel_shuffle(hidden: Tensor, factor: int) -> Tensor:
    """Map (T, H*W, C) to (T, H*W/f^2, C*f^2): neighbouring cells move into channels (InternVL's `ps_version` v2)."""
    count, cells, channels = hidden.shape
    side = int(cells**0.5)
    hidden = hidden.view(count, side, side // factor, channels * factor).permute(0, 2, 1, 3)
    hidden = hidden.reshape(count, side // factor, side // factor, channels * factor * factor).permute(0, 2, 1, 3)
    return hidden.reshape(count, -1, channels * factor * factor)
