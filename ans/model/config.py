"""A model folder's `config.json` (the official Sa2VA layout) as typed sizes.

The official file says nothing about SAM2, whose size is fixed in the official code (Hiera-L at 1024 px). Ours may add a section
`sam2_config` with the fields of `Sam2Sizes`; where it is absent, the official sizes hold.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import InternVLVisionConfig, Qwen2Config


@dataclass(frozen=True)
class Sam2Sizes:
    """Sizes of SAM2; the defaults are those of `sam2_hiera_l` (facebookresearch/sam2), which every released Sa2VA uses."""

    image_size: int = 1024
    embed_dim: int = 144
    num_heads: int = 2
    stages: tuple[int, ...] = (2, 6, 36, 4)
    global_att_blocks: tuple[int, ...] = (23, 33, 43)
    window_pos_embed_bkg_spatial_size: tuple[int, int] = (7, 7)
    window_spec: tuple[int, ...] = (8, 4, 16, 8)
    d_model: int = 256
    memory_dim: int = 64
    memory_feedforward: int = 2048
    memory_layers: int = 4


@dataclass(frozen=True)
class ModelConfig:
    """What the segmenter needs of `config.json`. `values` keeps the whole file, so that an export writes it back."""

    vision: InternVLVisionConfig
    language: Qwen2Config
    sam2: Sam2Sizes
    image_size: int
    patch_size: int
    downsample_ratio: float
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    template: str
    values: dict[str, Any]

    @property
    def grid_side(self) -> int:
        """G: image tokens per side of one tile."""
        return int(self.image_size // self.patch_size * self.downsample_ratio)

    @property
    def tokens_per_tile(self) -> int:
        return self.grid_side**2

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ModelConfig":
        """Read `folder/config.json`. Raises `FileNotFoundError`, or `ValueError` naming the file and the key."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; a model folder in Hugging Face layout has a config.json")
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        vision, language = values["vision_config"], values["llm_config"]
        architecture = (language.get("architectures") or ["Qwen2ForCausalLM"])[0]
        if architecture != "Qwen2ForCausalLM":
            raise ValueError(f"llm_config.architectures: {architecture} is not supported; Qwen2ForCausalLM is (Sa2VA-1B and -4B)")
        if values["select_layer"] != -1 or values["ps_version"] != "v2":
            raise ValueError("select_layer: only -1 is supported, with ps_version v2 (every released Sa2VA of InternVL2.5)")
        dynamic = values["dynamic_image_size"]
        return cls(
            vision=InternVLVisionConfig(
                hidden_size=vision["hidden_size"],
                num_hidden_layers=vision["num_hidden_layers"],
                num_attention_heads=vision["num_attention_heads"],
                intermediate_size=vision["intermediate_size"],
                image_size=vision["image_size"],
                patch_size=vision["patch_size"],
                attention_bias=vision["qkv_bias"],
                use_qk_norm=vision["qk_normalization"],
                norm_type=vision["norm_type"],
                layer_norm_eps=vision["layer_norm_eps"],
                hidden_act=vision["hidden_act"],
                attn_implementation="sdpa",
            ),
            language=Qwen2Config(
                vocab_size=language["vocab_size"],
                hidden_size=language["hidden_size"],
                intermediate_size=language["intermediate_size"],
                num_hidden_layers=language["num_hidden_layers"],
                num_attention_heads=language["num_attention_heads"],
                num_key_value_heads=language["num_key_value_heads"],
                hidden_act=language["hidden_act"],
                max_position_embeddings=language["max_position_embeddings"],
                rms_norm_eps=language["rms_norm_eps"],
                rope_parameters={"rope_type": "default", "rope_theta": language["rope_theta"]},
                tie_word_embeddings=language.get("tie_word_embeddings", False),
                attn_implementation="sdpa",
            ),
            sam2=_sam2_sizes(values.get("sam2_config", {})),
            image_size=values["force_image_size"] or vision["image_size"],
            patch_size=vision["patch_size"],
            downsample_ratio=values["downsample_ratio"],
            min_tiles=values["min_dynamic_patch"] if dynamic else 1,
            max_tiles=values["max_dynamic_patch"] if dynamic else 1,
            use_thumbnail=values["use_thumbnail"],
            template=values["template"],
            values=values,
        )


def _sam2_sizes(values: dict[str, Any]) -> Sam2Sizes:
    unknown = set(values) - {field.name for field in dataclasses.fields(Sam2Sizes)}
    if unknown:
        raise ValueError(f"sam2_config.{sorted(unknown)[0]}: unknown key")
    return Sam2Sizes(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
