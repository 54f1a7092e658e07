"""A model folder's `config.json` as typed sizes, and what they make of images and masks. No weights.

Two systems: Sa2VA (the official layout) and LISA (ours: `LlavaConfig`'s keys, and a section `sam_config` as `SamConfig` has it).
`model_type` decides, here, which it is.

The official Sa2VA file says nothing about SAM2, whose size is fixed in the official code (Hiera-L at 1024 px). Ours may add a
section `sam2_config` with the fields of `Sam2Sizes`; where it is absent, the official sizes hold.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import InternVLVisionConfig, LlavaConfig, PretrainedConfig, Qwen2Config, SamConfig

from ans.model import preprocess


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


class ModelConfig(ABC):
    """What data, evaluation and the segmenter ask of any model. `values` is the whole file, so that an export writes it back;
    `language` the language model's own configuration; `template` a key of `prompts.TEMPLATES`."""

    language: PretrainedConfig
    template: str
    values: dict[str, Any]

    @property
    @abstractmethod
    def grid_side(self) -> int:
        """G: image tokens per side of one tile."""

    @property
    def tokens_per_tile(self) -> int:
        return self.grid_side**2

    @property
    @abstractmethod
    def mask_width(self) -> int:
        """D: of the vectors that prompt the mask decoder."""

    @property
    @abstractmethod
    def mask_side(self) -> int:
        """Of the mask decoder's logits, in cells; called S/4, as it is at full size."""

    @property
    @abstractmethod
    def tied(self) -> dict[str, str]:
        """HF name of each tensor that may be in no file -> that of the tensor that it equals."""

    @abstractmethod
    def tile_count(self, height: int, width: int) -> int:
        """How many tiles an image of this size (pixels) is cut into for the vision-language model."""

    @abstractmethod
    def tiles(self, image: Image.Image, max_tiles: int | None = None) -> Tensor:
        """An RGB image as the vision-language model sees it: (T, 3, S, S). `max_tiles` caps T below the model's own number."""

    @abstractmethod
    def sam_pixels(self, image: Image.Image) -> Tensor:
        """An RGB image as the mask decoder's image encoder sees it: (3, S, S) normalised."""

    @abstractmethod
    def soft_target(self, mask: Tensor) -> Tensor:
        """(h, w) mask in {0, 1} -> (S/4, S/4) share of each cell of the decoder's logits that it covers."""

    @abstractmethod
    def image_share(self, height: int, width: int) -> tuple[float, float]:
        """(x, y): how far from the left and from the top the decoder's logits show an image of this size; the rest is padding."""

    @abstractmethod
    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        """The decoder's logits (N, S/4, S/4) -> (N, h, w), at the image's own size."""

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

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "ModelConfig":
        """Raises `KeyError` or `ValueError` naming a key that is missing or not supported."""
        systems = {"sa2va_chat": Sa2vaConfig, "lisa": LisaConfig}
        if values["model_type"] not in systems:
            raise ValueError(f"model_type: {values['model_type']!r} is unknown; there are {', '.join(systems)}")
        return systems[values["model_type"]].read(values)


@dataclass(frozen=True)
class Sa2vaConfig(ModelConfig):
    """InternVL and SAM2: dynamic tiles, and a direct resize for SAM2."""

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
        return int(self.image_size // self.patch_size * self.downsample_ratio)

    @property
    def mask_width(self) -> int:
        return self.sam2.d_model

    @property
    def mask_side(self) -> int:
        return self.sam2.image_size // 4

    @property
    def tied(self) -> dict[str, str]:
        return _tied_head(self.language)

    def tile_count(self, height: int, width: int) -> int:
        columns, rows = preprocess.tile_grid(width, height, self.image_size, self.min_tiles, self.max_tiles)
        return columns * rows + (self.use_thumbnail and columns * rows > 1)

    def tiles(self, image: Image.Image, max_tiles: int | None = None) -> Tensor:
        most = min(self.max_tiles, max_tiles or self.max_tiles)
        parts = preprocess.tiles(image, self.image_size, min(self.min_tiles, most), most, self.use_thumbnail)
        return preprocess.normalise(parts)

    def sam_pixels(self, image: Image.Image) -> Tensor:
        return preprocess.normalise([preprocess.sam_image(image, self.sam2.image_size)])[0]

    def soft_target(self, mask: Tensor) -> Tensor:
        return F.interpolate(mask[None, None].float(), size=(self.mask_side, self.mask_side), mode="area")[0, 0]

    def image_share(self, height: int, width: int) -> tuple[float, float]:
        return 1.0, 1.0

    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        return _resized(_resized(_wide(low_res), (self.sam2.image_size, self.sam2.image_size)), size)[:, 0]

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Sa2vaConfig":
        """From the official keys; raises as `ModelConfig.from_dict`."""
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


@dataclass(frozen=True)
class LisaConfig(ModelConfig):
    """LLaVA and SAM: one square of the image's middle for CLIP, and for SAM the whole image, padded to a square."""

    llava: LlavaConfig
    sam: SamConfig
    template: str
    values: dict[str, Any]

    @property
    def language(self) -> PretrainedConfig:
        return self.llava.text_config

    @property
    def grid_side(self) -> int:
        return self.llava.vision_config.image_size // self.llava.vision_config.patch_size

    @property
    def mask_width(self) -> int:
        return self.sam.mask_decoder_config.hidden_size

    @property
    def mask_side(self) -> int:
        return 4 * (self.sam.vision_config.image_size // self.sam.vision_config.patch_size)

    @property
    def tied(self) -> dict[str, str]:
        own = "sam.prompt_encoder.shared_embedding.positional_embedding"
        return _tied_head(self.language) | {own: "sam.shared_image_embedding.positional_embedding"}

    def tile_count(self, height: int, width: int) -> int:
        return 1

    def tiles(self, image: Image.Image, max_tiles: int | None = None) -> Tensor:
        square = preprocess.middle_square(image, self.llava.vision_config.image_size)
        return preprocess.normalise([square], preprocess.CLIP_MEAN, preprocess.CLIP_STD)

    def sam_pixels(self, image: Image.Image) -> Tensor:
        side = self.sam.vision_config.image_size
        height, width = preprocess.longest_side(image.height, image.width, side)
        pixels = preprocess.normalise([image.resize((width, height), Image.Resampling.BILINEAR)])[0]
        return F.pad(pixels, (0, side - width, 0, side - height))

    def soft_target(self, mask: Tensor) -> Tensor:
        side = self.sam.vision_config.image_size
        height, width = preprocess.longest_side(*mask.shape, side)
        scaled = F.interpolate(mask[None, None].float(), size=(height, width), mode="area")
        return F.avg_pool2d(F.pad(scaled, (0, side - width, 0, side - height)), side // self.mask_side)[0, 0]

    def image_share(self, height: int, width: int) -> tuple[float, float]:
        side = self.sam.vision_config.image_size
        height, width = preprocess.longest_side(height, width, side)
        return width / side, height / side

    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        side = self.sam.vision_config.image_size
        height, width = preprocess.longest_side(*size, side)
        return _resized(_resized(_wide(low_res), (side, side))[..., :height, :width], size)[:, 0]

    @classmethod
    def read(cls, values: dict[str, Any]) -> "LisaConfig":
        """From LLaVA's keys and `sam_config`; raises as `ModelConfig.from_dict`."""
        llava = LlavaConfig(
            **{key: value for key, value in values.items() if key not in ("model_type", "sam_config", "template")}
        )
        if not isinstance(llava.vision_feature_layer, int) or llava.vision_feature_select_strategy != "default":
            raise ValueError("vision_feature_layer: only one layer is supported, with vision_feature_select_strategy default")
        return cls(llava, SamConfig(**values["sam_config"]), values["template"], values)


def _tied_head(language: PretrainedConfig) -> dict[str, str]:
    pair = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}
    return pair if language.tie_word_embeddings else {}


def _wide(logits: Tensor) -> Tensor:
    """(N, 1, h, w) in float32 at least; float64 stays what it is."""
    return logits[:, None].to(torch.promote_types(logits.dtype, torch.float32))


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
