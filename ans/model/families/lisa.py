"""LISA (arXiv 2308.00692): LLaVA with a mask decoder, in a layout of our own. It describes no regions.

`config.json` has `LlavaConfig`'s keys, `model_type` "lisa", and the mask decoder's section. An image is one square, of its middle, as
CLIP sees it. The modules are the parts of transformers' `LlavaForConditionalGeneration`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, LlavaConfig, PretrainedConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ans.model import family, preprocess
from ans.model.family import LLAMA_LAYERS, Grid, Inputs, Pixels, Visual, by_image
from ans.model.keys import KeyTable
from ans.model.prompts import Template

TEMPLATE = Template(
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the human's questions. USER: {input} ASSISTANT:",
    "</s>",
    stop_words=("</s>",),
    image_start="",
    image_token="<image>",
    image_end="",
    segment="What is {} in this image? Please output segmentation mask.",
    questions=(
        "Can you segment the {} in this image?",
        "Please segment the {} in this image.",
        "What is {} in this image? Please respond with segmentation mask.",
        "What is {} in this image? Please output segmentation mask.",
    ),
    sentence="{} Please output segmentation mask.",
    sentences=("{} Please respond with segmentation mask.", "{} Please output segmentation mask."),
)
"""Texts of dvlab-research/LISA; its answers are `SEG_ANSWERS` too."""

_EMBEDDING, _OUTPUT = "language_model.model.embed_tokens.", "language_model.lm_head."
_TOWER, _PROJECTOR = "vision_tower.", "multi_modal_projector."


@dataclass(frozen=True)
class Family(family.Family):
    system = "LISA"
    title = "LLaVA"
    decoder = "sam"
    tables = (f"{_EMBEDDING}weight", f"{_OUTPUT}weight")
    lora_targets = LLAMA_LAYERS
    regions = False
    new_tokens = ("[SEG]",)
    remote = {}
    keys = KeyTable(
        spaces={
            "model": {_TOWER: f"vlm.{_TOWER}", _PROJECTOR: f"vlm.{_PROJECTOR}", "language_model.": "vlm.language_model."},
            "pth": {
                _TOWER: _TOWER,
                _PROJECTOR: _PROJECTOR,
                "language_model.": "mllm.model.language_model.base_model.model.",
            },
        },
        shards={
            "vision": (_TOWER,),
            "embed_head": (_EMBEDDING, _OUTPUT),
            "llm": ("language_model.",),
            "proj": (_PROJECTOR,),
        },
    )

    llava: LlavaConfig

    @classmethod
    def owns(cls, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == "lisa"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        llava = LlavaConfig(**{key: value for key, value in values.items() if key not in ("model_type", "template")})
        if not isinstance(llava.vision_feature_layer, int) or llava.vision_feature_select_strategy != "default":
            raise ValueError("vision_feature_layer: only one layer is supported, with vision_feature_select_strategy default")
        return cls(cast(PretrainedConfig, llava.text_config), TEMPLATE, llava)

    @property
    def vision(self) -> Any:  # transformers declares sizes, and parts of a configuration, as all that they may be made from
        return self.llava.vision_config

    def grid(self, height: int, width: int, max_tiles: int | None = None) -> Grid:
        side = self.vision.image_size // self.vision.patch_size
        return Grid(1, side, side)

    def pixels(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        square = preprocess.middle_square(image, self.vision.image_size)
        values = preprocess.normalise([square], preprocess.CLIP_MEAN, preprocess.CLIP_STD)
        return Pixels(values, self.grid(image.height, image.width))

    def build(self) -> "Llava":
        return Llava(self)

    @classmethod
    def made_of(cls, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == "llava"

    @classmethod
    def assembled(cls, values: Mapping[str, Any], tokens: int | None = None) -> dict[str, Any]:
        return {**values, "model_type": "lisa", "template": "lisa"}  # LLaVA's tables have rows to spare

    @classmethod
    def released_name(cls, name: str) -> str:
        return name.replace("vision_tower.vision_model.", _TOWER)  # what was released years ago has one prefix more


class Llava(family.Vlm):
    """CLIP's vision transformer, a two-layer projector, a language model. Features are the hidden states of one of CLIP's layers,
    without its class token."""

    def __init__(self, config: Family) -> None:
        super().__init__()
        self.layer = config.llava.vision_feature_layer
        self.vision_tower = CLIPVisionModel(config.vision)
        self.multi_modal_projector = LlavaMultiModalProjector(config.llava)
        self.language_model = AutoModelForCausalLM.from_config(config.language)

    @property
    def vision(self) -> nn.Module:
        return self.vision_tower

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.embeddings.class_embedding.dtype

    def encode(self, values: Tensor, grids: Sequence[Grid]) -> list[Visual]:
        features = self.vision_tower(values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        return by_image(features, grids)

    def project(self, tokens: Tensor) -> Tensor:
        return self.multi_modal_projector(tokens.to(self.multi_modal_projector.linear_1.weight.dtype))

    def attention(self, inputs: Inputs) -> Any:
        return replace(inputs, padded=True).attention()  # Llama takes none but a whole mask without reading positions

    def restore_buffers(self) -> None:
        super().restore_buffers()
        embeddings = self.vision_tower.embeddings
        embeddings.register_buffer("position_ids", torch.arange(embeddings.num_positions)[None], persistent=False)
