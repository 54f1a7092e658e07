"""A family that differs from the two that there are wherever a family may: one grid of the image's own shape, positions with three
rows, further visual features behind the first layers, and `[SEG]`'s state before the last norm. Random weights, no training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Cache, Qwen2Config, Qwen2ForCausalLM

from ans.model import family
from ans.model.config import ModelConfig
from ans.model.family import LLAMA_LAYERS, Grid, Inputs, Pixels, States, Visual
from ans.model.keys import KeyTable
from ans.model.preprocess import normalise
from ans.model.prompts import TEMPLATES, Template
from ans.model.segmenter import Segmenter
from ans.model.tokens import load_tokenizer

CELL = 32
"""Pixels of a cell's side."""
PATCH = 3 * 4 * 4
TINY = Path(__file__).parents[1] / "weights" / "tiny"


@dataclass(frozen=True)
class Family(family.Family):
    system = title = "Odd"
    decoder = "sam2"
    tables = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    lora_targets = LLAMA_LAYERS
    regions = True
    new_tokens = ()
    remote = {}
    keys = KeyTable(
        spaces={
            space: {"odd.": f"{before}odd.", "language_model.": f"{before}language_model."}
            for space, before in (("model", "vlm."), ("pth", "pth."))
        },
        shards={
            "vision": ("odd.",),
            "proj": ("odd.project.",),
            "embed_head": ("language_model.model.embed_tokens.", "language_model.lm_head."),
            "llm": ("language_model.",),
        },
    )
    language: Qwen2Config
    template: Template
    image_token: int

    @classmethod
    def owns(cls, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == "odd"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Family":
        return cls(Qwen2Config(**values["text_config"]), TEMPLATES["qwen_chat"], values["image_token_id"])

    def grid(self, height: int, width: int, max_tiles: int | None = None) -> Grid:
        return Grid(1, max(1, height // CELL), max(1, width // CELL))

    def pixels(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        """(cells, PATCH): a cell is a row of its own, so images of any number of cells lie one behind the other."""
        grid = self.grid(image.height, image.width)
        small = normalise([image.resize((4 * grid.columns, 4 * grid.rows))])[0]
        cells = small.unfold(1, 4, 4).unfold(2, 4, 4)  # (3, rows, columns, 4, 4)
        return Pixels(cells.permute(1, 2, 0, 3, 4).reshape(-1, PATCH), grid)

    def build(self) -> "Vlm":
        return Vlm(self)

    @classmethod
    def made_of(cls, values: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def assembled(cls, values: Mapping[str, Any], tokens: int | None = None) -> dict[str, Any]:
        raise NotImplementedError


class Vlm(family.Vlm):
    def __init__(self, config: Family) -> None:
        super().__init__()
        self.image_token, width = config.image_token, config.language.hidden_size
        self.odd = nn.ModuleDict({"encoder": nn.Linear(PATCH, width), "project": nn.Linear(width, width)})
        self.odd.update({f"deep{level}": nn.Linear(PATCH, width) for level in range(2)})
        self.language_model = Qwen2ForCausalLM(config.language)

    @property
    def vision(self) -> nn.Module:
        return self.odd

    @property
    def dtype(self) -> torch.dtype:
        return self.odd["encoder"].weight.dtype

    def encode(self, values: Tensor, grids: Sequence[Grid]) -> list[Visual]:
        names = ("encoder", "deep0", "deep1")
        levels = [self.odd[name](values).split([grid.tokens for grid in grids]) for name in names]
        return [
            Visual(tokens[None], grid, tuple(level[None] for level in deep))
            for tokens, *deep, grid in zip(*levels, grids, strict=True)
        ]

    def project(self, tokens: Tensor) -> Tensor:
        return self.odd["project"](tokens)

    def positions(self, ids: Tensor, mask: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Qwen-VL's: an image's cells have their row and column, and text goes on from the larger of the two."""
        result = torch.zeros(3, *ids.shape, dtype=torch.long, device=ids.device)
        for row, grid in enumerate(grids):
            begin = int(mask[row].argmax())
            first = begin + int((ids[row, begin:] == self.image_token).int().argmax())
            last, before = first + grid.tokens, first - begin
            result[:, row, begin:first] = torch.arange(before)
            result[0, row, first:last] = before
            result[1, row, first:last] = before + torch.arange(grid.rows).repeat_interleave(grid.columns)
            result[2, row, first:last] = before + torch.arange(grid.columns).repeat(grid.rows)
            result[:, row, last:] = before + max(grid.rows, grid.columns) + torch.arange(ids.shape[1] - last)
        return result

    def run(self, inputs: Inputs, cache: Cache | None = None) -> States:
        """Rows and columns as vectors that are added; each deep level behind a layer of its own."""
        time, row, column = inputs.positions.expand(3, -1, -1)
        waves = torch.arange(inputs.embeds.shape[-1], device=row.device) / 10
        embeds = inputs.embeds + ((row - time)[..., None] * waves).sin() + ((column - time)[..., None] * waves).cos()
        layers, found, handles = self.language_model.model.layers, [], []
        if inputs.deep and inputs.visual.any():
            for layer, deep in zip(layers, inputs.deep, strict=False):
                handles.append(layer.register_forward_hook(_adding(inputs.visual, deep)))
        norm = self.language_model.model.norm
        handles.append(norm.register_forward_pre_hook(lambda module, arguments: found.append(arguments[0])))
        try:
            normed = self.language_model.model(
                inputs_embeds=embeds, attention_mask=inputs.mask, position_ids=time, past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state  # fmt: skip
        finally:
            for handle in handles:
                handle.remove()
        return States(normed, found[0])


def _adding(places: Tensor, deep: Tensor):
    def add(module: nn.Module, arguments: Any, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        whole = torch.zeros_like(hidden).masked_scatter(places[..., None], deep.to(hidden.dtype))
        return (hidden + whole, *out[1:]) if isinstance(out, tuple) else hidden + whole

    return add


def model() -> Segmenter:
    """The family with SAM2 and the words of the tiny model."""
    torch.manual_seed(11)
    tiny = ModelConfig.from_folder(TINY)
    language = Qwen2Config(
        vocab_size=tiny.language.vocab_size, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    words = load_tokenizer(TINY, language)
    image_token = words.convert_tokens_to_ids(tiny.template.image_token)
    made = Segmenter(ModelConfig(Family(language, tiny.template, image_token), tiny.decoder, {}), words)
    with torch.no_grad():
        for parameter in made.vlm.parameters():  # the defaults are too small for anything to matter
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.15)
    return made.eval()
