"""A step's operations are those of the formula: nothing is encoded twice, nothing is computed that nobody asked for.

The formula knows the layers' sizes, which calls a step should make of the language model, and what has a gradient. SAM2's part is
counted once by itself, so here it is held that the step does that, and does it once.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from tests.bench import sizes
from tests.bench.gpu import FlopCount, micro_batches
from tests.bench.trainer import Trainer, preset

CAPTION = 3
CASES = {
    "supervised": ("supervised", 1, 4, True, [True]),
    "seven tiles": ("supervised", 7, 4, True, [True]),
    "loop1": ("loop1", 1, 1, True, [False] * (1 + CAPTION) + [True, True]),
    "loop2": ("loop2", 1, 1, False, [True, True]),
}
"""Name -> objective, tiles, objects, whether the masks have a gradient, and the same of every call of the language model: of loop 1
the teacher's reading of the prompt's beginning and of every token, then the student's reading and segmenting."""


@dataclass(frozen=True)
class Call:
    """Of the language model: rows, new tokens of each, keys that they see, and whether a gradient is wanted."""

    rows: int
    tokens: int
    keys: int
    gradient: bool


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    tiny = ModelConfig.from_folder(sizes.REPOSITORY / "weights" / "tiny")
    return Trainer.of_size(tiny, preset("tiny"))


def weights(module: nn.Module, lora: bool = False) -> int:
    """Weights of the linear layers, LoRA's alone or all others."""
    layers = ((name, layer) for name, layer in module.named_modules() if type(layer) is nn.Linear)
    return sum(layer.weight.numel() for name, layer in layers if ("lora_" in name) is lora)


def vision(trainer: Trainer, tiles: int) -> int:
    """One forward over the tiles."""
    config = trainer.model.vlm.vision.config
    patches, width = (config.image_size[0] // config.patch_size[0]) ** 2, config.hidden_size
    tokens = patches + 1
    linear = 4 * width**2 + 2 * width * config.intermediate_size
    layer = 2 * tokens * linear + 4 * tokens**2 * width
    return tiles * (2 * patches * 3 * config.patch_size[0] ** 2 * width + config.num_hidden_layers * layer)


def language(trainer: Trainer, call: Call) -> float:
    """Forward and, with a gradient, backward: to the inputs of every layer, to LoRA's weights alone."""
    layers, config = trainer.model.vlm.language_model.model.layers, trainer.model.vlm.language_model.config
    tokens, heads = call.rows * call.tokens, config.num_attention_heads
    attention = 4 * tokens * call.keys * heads * (config.hidden_size // heads) * len(layers)
    frozen, lora = 2 * tokens * weights(layers), 2 * tokens * weights(layers, lora=True)
    rotary = tokens * config.hidden_size // heads
    return rotary + (2 * frozen + 3 * lora + 3.5 * attention if call.gradient else frozen + lora + attention)


class Watched:
    """What a step does, by hooks: the images that each encoder sees, the calls of the language model, the rows of what follows it, and
    SAM2's own operations."""

    def __init__(self, model: Segmenter) -> None:
        self.tiles = self.images = 0
        self.calls: list[Call] = []
        self.rows = {"head": 0, "projector": 0, "fcs": 0}
        self.with_gradient = dict(self.rows)
        language_model = model.vlm.language_model
        self.handles = [
            model.vlm.vision.register_forward_pre_hook(self.saw, with_kwargs=True),
            model.sam.encoder.register_forward_pre_hook(self.encoded, with_kwargs=True),
            language_model.model.register_forward_pre_hook(self.called, with_kwargs=True),
            *(
                module.register_forward_pre_hook(partial(self.went, name))
                for name, module in (
                    ("head", language_model.lm_head),
                    ("projector", model.vlm.mlp1),
                    ("fcs", model.text_hidden_fcs),
                )
            ),
        ]

    def saw(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self.tiles += len(args[0] if args else kwargs["pixel_values"])

    def encoded(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self.images += len(args[0])

    def called(self, module: nn.Module, args: tuple[()], kwargs: dict[str, Any]) -> None:
        rows, tokens, _ = kwargs["inputs_embeds"].shape
        cache = kwargs["past_key_values"]
        keys = tokens if cache is None else tokens + cache.get_seq_length()
        self.calls.append(Call(rows, tokens, keys, torch.is_grad_enabled()))

    def went(self, name: str, module: nn.Module, given: tuple[Tensor]) -> None:
        rows = given[0].shape[:-1].numel()
        (self.with_gradient if torch.is_grad_enabled() else self.rows)[name] += rows


def sam(trainer: Trainer, images: Tensor, objects: int, gradient: bool) -> int:
    """SAM2's image encoder, once over `images`, and its decoder, once for so many objects of the first image."""
    model = trainer.model
    parts = [p for p in model.sam.parameters() if p.requires_grad]
    prompt = torch.zeros(objects, 128, requires_grad=True)
    with FlopCount() as counter:
        with torch.no_grad():
            levels = model.sam.encode(images)
        with torch.set_grad_enabled(gradient):
            low_res = model.sam.decode(model.sam.project(levels), torch.zeros(objects, dtype=torch.long), prompt).low_res
        if gradient:
            torch.autograd.grad(low_res.sum(), [prompt, *parts], allow_unused=True)
    return counter.total


@pytest.mark.parametrize("name", CASES)
@pytest.mark.second
def test_operations_of_a_step(trainer: Trainer, name: str) -> None:
    objective, tiles, objects, masks, calls = CASES[name]
    model = trainer.model
    batches = micro_batches(trainer, (objective, tiles, CAPTION if "loop" in objective else 0), 1)
    watched = Watched(model)
    with FlopCount() as counter:
        trainer.step(batches)
    for handle in watched.handles:
        handle.remove()
    assert (watched.tiles, watched.images) == (tiles, 1)
    assert [call.gradient for call in watched.calls] == calls
    rows, learnt = watched.rows, watched.with_gradient
    head, projector, fcs = map(weights, (model.vlm.language_model.lm_head, model.vlm.mlp1, model.text_hidden_fcs))
    expected = vision(trainer, tiles) + sam(trainer, batches[0][1].images.sam, objects, masks)
    expected += sum(language(trainer, call) for call in watched.calls)
    expected += 2 * head * (rows["head"] + 2 * learnt["head"]) + 2 * projector * (rows["projector"] + 3 * learnt["projector"])
    expected += 2 * fcs * learnt["fcs"] * (3 if masks else 1)
    assert counter.total == pytest.approx(expected, rel=0.002)
