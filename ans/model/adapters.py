"""Which tensors are trained: LoRA on the language model, the row of `[SEG]` alone, and the named module groups."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ans.model.segmenter import Segmenter


class _OwnRow(nn.Module):
    """A frozen table, (V, D), of which row `index` is a parameter of its own, `seg_row` (1, D)."""

    def __init__(self, base_layer: nn.Embedding | nn.Linear, index: int, row: nn.Parameter | None = None) -> None:
        super().__init__()
        self.base_layer, self.index = base_layer, index
        self.seg_row = row if row is not None else nn.Parameter(base_layer.weight[index : index + 1].detach().clone())

    @property
    def weight(self) -> Tensor:
        """The whole table as it is used."""
        place = torch.full((1,), self.index, device=self.seg_row.device)
        return self.base_layer.weight.index_copy(0, place, self.seg_row.to(self.base_layer.weight.dtype))


class _OwnEmbedding(_OwnRow):
    def forward(self, ids: Tensor) -> Tensor:
        embeds = self.base_layer(ids)
        return torch.where((ids == self.index)[..., None], self.seg_row[0].to(embeds.dtype), embeds)


class _OwnOutput(_OwnRow):
    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.base_layer(hidden)
        own = F.linear(hidden, self.seg_row.to(hidden.dtype)).to(logits.dtype)
        return logits.index_copy(-1, torch.full((1,), self.index, device=logits.device), own)


def add_seg_row(model: Segmenter) -> None:
    """Let the row of `[SEG]` in the embedding and in the output layer be trained by itself, one row where the two are tied."""
    language = model.vlm.language_model
    table, output = language.get_input_embeddings(), language.lm_head
    assert isinstance(table, nn.Embedding) and isinstance(output, nn.Linear)
    embedding = _OwnEmbedding(table, model.seg_token)
    tied = embedding.seg_row if language.config.tie_word_embeddings else None
    language.set_input_embeddings(embedding)
    language.lm_head = _OwnOutput(output, model.seg_token, tied)


def add_lora(
    model: Segmenter, rank: int, alpha: float, dropout: float, generator_seed: int, targets: Sequence[str] | None = None
) -> None:
    """Put LoRA (arXiv 2106.09685) on linear layers of the language model, by the last part of their names (None: those that the
    family's official recipe adapts); B starts at zero, A is drawn from the seed.

    Raises `ValueError` for a layer that the family's recipe does not know.
    """
    known = model.config.family.lora_targets
    if unknown := sorted(set(targets or ()) - set(known)):
        raise ValueError(
            f"train.lora.targets: {unknown[0]} is not a linear layer of this language model; it has {', '.join(known)}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(Any, alpha),  # declared as an int, and only divided by the rank
        lora_dropout=dropout,
        target_modules=list(known if targets is None else targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        # On the language model alone: on the whole, the same names also match SAM2 and the vision transformer.
        inject_adapter_in_model(config, model.vlm.language_model)


def group_of_parameter(model: Segmenter, name: str) -> str | None:
    """Return the group that a parameter of the model can be trained in; None for one that is never trained."""
    keys = model.config.keys
    return keys.trained_group(keys.to_hf_name(name, "model"))


def select_trained(model: Segmenter, groups: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Freeze everything but `groups`, make the trained tensors float32, and return them by name.

    Raises `ValueError` for a group of which the model holds no tensor.
    """
    trained: dict[str, nn.Parameter] = {}
    found = set()
    for name, parameter in model.named_parameters():
        group = group_of_parameter(model, name)
        parameter.requires_grad_(group in groups)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trained[name] = parameter
            found.add(group)
    if missing := [group for group in groups if group not in found]:
        raise ValueError(f"train.groups: the model holds no tensor of group {missing[0]}")
    return trained
