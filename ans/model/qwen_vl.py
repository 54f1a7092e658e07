"""What Sa2VA on Qwen2.5-VL and on Qwen3-VL have in common.

An image is seen as a whole in its own shape: its sides are rounded to whole cells, and its area is kept within two limits. Image
tokens have their row and column as position (mRoPE). Neither release learnt regions.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ans.model import family, preprocess
from ans.model.family import LLAMA_LAYERS, Grid, Pixels, Visual, refuse_windows
from ans.model.host import sent
from ans.model.keys import KeyTable, Renaming
from ans.model.prompts import TEMPLATES, Template

LIMITS = {"min_pixels": 512 * 28 * 28, "max_pixels": 2048 * 28 * 28}
"""Area of a resized image: the official code has these for both families. A `config.json` of ours may say others."""

TEMPLATE = Template(
    TEMPLATES["qwen_chat"].instruction,
    "<|im_end|>",
    "\n",
    ("<|im_end|>",),
    image_start="<|vision_start|>",
    image_token="<|image_pad|>",
    image_end="<|vision_end|>",
)

VISION, LANGUAGE = "model.model.visual.", "model.model.language_model."
EMBEDDING, OUTPUT = f"{LANGUAGE}embed_tokens.", "model.lm_head."

# PEFT wraps the whole vision-language model in the official training, and keeps its own copies of tables that are trained whole.
_WRAPPED, _SAVED = "mllm.model.base_model.model.", ((".modules_to_save.default.weight", ".weight"),)
KEYS = KeyTable(
    spaces={
        "model": {VISION: "vlm.visual.", LANGUAGE: "vlm.language_model.model.", OUTPUT: "vlm.language_model.lm_head."},
        "pth": {
            VISION: f"{_WRAPPED}model.visual.",
            LANGUAGE: f"{_WRAPPED}model.language_model.",
            OUTPUT: f"{_WRAPPED}lm_head.",
        },
        "research": {prefix: f"mllm.{prefix}" for prefix in (VISION, LANGUAGE, OUTPUT)},
    },
    shards={"vision": (VISION,), "embed_head": (EMBEDDING, OUTPUT), "llm": (LANGUAGE,)},
    renamings=tuple(Renaming(table, ("pth",), _SAVED) for table in (EMBEDDING, OUTPUT)),
)


@dataclass(frozen=True)
class QwenVL(family.Family):
    """What the two families' `config.json` says."""

    system = "Sa2VA"
    decoder = "sam2"
    tables = (f"{EMBEDDING}weight", f"{OUTPUT}weight")
    lora_targets = LLAMA_LAYERS
    regions = False
    new_tokens = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")
    remote = {
        "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfigQwen",
        "AutoModel": "modeling_sa2va_qwen.Sa2VAChatModelQwen",
        "AutoModelForCausalLM": "modeling_sa2va_qwen.Sa2VAChatModelQwen",
    }
    keys = KEYS

    released: ClassVar[str]
    """`model_type` of the released vision-language model; its language model's has `_text` behind it."""

    configs: ClassVar[tuple[type[PretrainedConfig], type[PretrainedConfig]]]
    """transformers' configuration of the language model and of the vision transformer."""

    written: ClassVar[Template]

    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    """What pixels in [0, 1] are normalised by."""

    language: Any  # of one of `configs`, as `vision` is of the other
    template: Template
    vision: Any
    image_token: int
    limits: tuple[int, int]

    @classmethod
    def owns(cls, values: Mapping[str, Any]) -> bool:
        kind = (values.get("text_config") or {}).get("model_type")
        return values.get("model_type") == "sa2va_chat" and kind == f"{cls.released}_text"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        text, vision = copy.deepcopy((values["text_config"], values["vision_config"]))  # transformers writes into what it reads
        _refuse_other_attention(text)
        tied = text.get("tie_word_embeddings", values.get("tie_word_embeddings", False))
        language, encoder = cls.configs
        least, most = (values.get(name, limit) for name, limit in LIMITS.items())
        if least > most:
            raise ValueError(f"min_pixels: {least} is above max_pixels, {most}")
        return cls(
            language=language(**text | {"tie_word_embeddings": tied, "attn_implementation": "sdpa"}),
            template=cls.written,
            vision=encoder(**vision | {"attn_implementation": "sdpa"}),
            image_token=values["image_token_id"],
            limits=(least, most),
        )

    @property
    def cell(self) -> int:
        """Pixels of the side of what becomes one image token."""
        return self.vision.patch_size * self.vision.spatial_merge_size

    def grid(self, height: int, width: int, max_tiles: int | None = None) -> Grid:
        side, (least, most) = self.cell, self.limits
        rows, columns = round(height / side), round(width / side)
        if rows * columns * side**2 > most:
            shrunk = math.sqrt(height * width / most)
            rows, columns = (max(1, math.floor(edge / shrunk / side)) for edge in (height, width))
        elif rows * columns * side**2 < least:
            grown = math.sqrt(least / (height * width))
            rows, columns = (math.ceil(edge * grown / side) for edge in (height, width))
        return Grid(1, rows, columns)

    def pixels(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        """Return (patches, 3 * side * side): the patches of a cell follow each other, and the cells row by row."""
        grid = self.grid(image.height, image.width)
        resized = preprocess.bicubic(image, grid.rows * self.cell, grid.columns * self.cell)
        whole = preprocess.normalise([resized], self.mean, self.std)[0]
        merged, side = self.vision.spatial_merge_size, self.vision.patch_size
        parts = whole.unflatten(2, (-1, merged, side)).unflatten(1, (-1, merged, side))
        return Pixels(parts.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3 * side * side), grid)

    @classmethod
    def for_remote(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return it with rotary positions as files had them before transformers 5, which reads them too."""
        text = dict(values["text_config"])
        if rope := text.pop("rope_parameters", None):
            text["rope_theta"] = rope["rope_theta"]
            text["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        return {**values, "text_config": text}

    @classmethod
    def made_of(cls, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == cls.released

    @classmethod
    def assembled(cls, values: Mapping[str, Any], tokens: int | None = None) -> dict[str, Any]:
        text = {**values["text_config"], "tie_word_embeddings": False}
        if tokens is not None:
            text["vocab_size"] = tokens
        base = {
            **values,
            "model_type": "sa2va_chat",
            "architectures": ["Sa2VAChatModelQwen"],
            "template": "qwen_chat",
            "tie_word_embeddings": False,
            "text_config": text,
        }
        return cls.for_remote(base)


def _refuse_other_attention(text: Mapping[str, Any]) -> None:
    """Raise `ValueError` for settings that change the language model's results and that no release has."""
    for key in ("rope_scaling", "rope_parameters"):
        scaling = text.get(key) or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise ValueError(f"text_config.{key}: {kind!r} is not supported; only default, which every released Sa2VA has")
    refuse_windows(text, "text_config")


class Language(PreTrainedModel):
    """The language model with its output layer; transformers has the two together only in a model that sees images as well."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig, model: PreTrainedModel) -> None:
        super().__init__(config)
        self.model = model
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class Vlm(family.Vlm):
    """A vision transformer that ends in a merger of neighbouring patches, frozen with it, and a language model."""

    def __init__(self, config: QwenVL, visual: PreTrainedModel, language: PreTrainedModel) -> None:
        super().__init__()
        self.image_token, self.merged, self.frames = (
            config.image_token,
            config.vision.spatial_merge_size,
            config.vision.temporal_patch_size,
        )
        self.visual = visual
        self.language_model = Language(config.language, language)

    @property
    def vision(self) -> nn.Module:
        return self.visual

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.dtype

    def encode(self, values: Tensor, grids: Sequence[Grid]) -> list[Visual]:
        still = values.unflatten(1, (3, 1, -1)).expand(-1, -1, self.frames, -1).flatten(1)  # a film whose frames are all the same
        sizes = sent(torch.tensor([[1, self.merged * grid.rows, self.merged * grid.columns] for grid in grids]), values.device)
        levels = [level.split([grid.tokens for grid in grids]) for level in self.levels(still, sizes)]
        return [
            Visual(tokens[None], grid, tuple(level[None] for level in deep))
            for tokens, *deep, grid in zip(*levels, grids, strict=True)
        ]

    def levels(self, pixels: Tensor, sizes: Tensor) -> list[Tensor]:
        """Return (n, D) features of all images: the image tokens, and those for deeper layers. `sizes` (B, 3): frames, rows and columns of
        patches of each image."""
        return [self.visual(pixels, grid_thw=sizes).pooler_output]

    def project(self, tokens: Tensor) -> Tensor:
        return tokens

    def positions(self, ids: Tensor, mask: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return (3, B, L): time, row and column. Text has the same three, counting on; an image's tokens have one time and their own row
        and column; text behind the image goes on from the larger of its sides."""
        place = (mask.cumsum(-1) - 1).clamp(min=0)
        sides = torch.tensor([(grid.tokens, grid.columns, max(grid.rows, grid.columns)) for grid in grids], device=ids.device)
        tokens, columns, longest = sides.T[..., None]  # (B, 1) each
        first = place.gather(1, (ids == self.image_token).int().argmax(-1, keepdim=True))
        inside = place - first
        text = torch.where(inside >= tokens, place - tokens + longest, place)
        seen = first + torch.stack([torch.zeros_like(inside), inside // columns, inside % columns])
        return torch.where((inside >= 0) & (inside < tokens), seen, text)

    def restore_buffers(self) -> None:
        super().restore_buffers()
        rotary = self.visual.rotary_pos_emb
        self.visual.rotary_pos_emb = type(rotary)(self.visual.config)
