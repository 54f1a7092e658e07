"""Which tensors are trained: LoRA on the language model, the row of `[SEG]` alone, and the named module groups."""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ans.model.segmenter import Segmenter

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_PATTERNS = {
    "lora": re.compile(r"vlm\.language_model\..*\.lora_[AB]\."),
    "proj": re.compile(r"vlm\.(mlp1|multi_modal_projector)\."),
    "fcs": re.compile(r"text_hidden_fcs\."),
    # The IoU and object-score heads choose and gate masks, and LISA takes the first mask alone; no loss reaches the rest, so it
    # stays the base's.
    "sam2_decoder": re.compile(
        r"sam\.model\.sam_mask_decoder\.(?!iou_prediction_head|pred_obj_score_head)"
        r"|sam\.sam\.mask_decoder\.(?!iou_prediction_head|output_hypernetworks_mlps\.[1-3])"
    ),
    "seg_row": re.compile(r"vlm\.language_model\.(model\.embed_tokens|lm_head)\.seg_row$"),
    "embed_head": re.compile(r"vlm\.language_model\.(model\.embed_tokens|lm_head)\."),
}


class _OwnRow(nn.Module):
    """A frozen table, (V, D), of which row `index` is a parameter of its own, `seg_row` (1, D)."""

    def __init__(self, base_layer: nn.Module, index: int, row: nn.Parameter | None = None) -> None:
        super().__init__()
        self.base_layer, self.index = base_layer, index
        self.seg_row = row if row is not None else nn.Parameter(base_layer.weight[index : index + 1].detach().clone())

    @property
    def weight(self) -> Tensor:
        """The whole table as it is used."""
        place = torch.tensor([self.index], device=self.seg_row.device)
        return self.base_layer.weight.index_copy(0, place, self.seg_row.to(self.base_layer.weight.dtype))


class _OwnEmbedding(_OwnRow):
    def forward(self, ids: Tensor) -> Tensor:
        embeds = self.base_layer(ids)
        return torch.where((ids == self.index)[..., None], self.seg_row[0].to(embeds.dtype), embeds)


class _OwnOutput(_OwnRow):
    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.base_layer(hidden)
        own = F.linear(hidden, self.seg_row.to(hidden.dtype)).to(logits.dtype)
        return logits.index_copy(-1, torch.tensor([self.index], device=logits.device), own)


def add_seg_row(model: Segmenter) -> None:
    """Let the row of `[SEG]` in the embedding and in the output layer be trained by itself, one row where the two are tied."""
    language = model.vlm.language_model
    embedding = _OwnEmbedding(language.get_input_embeddings(), model.seg_token)
    tied = embedding.seg_row if language.config.tie_word_embeddings else None
    language.set_input_embeddings(embedding)
    language.lm_head = _OwnOutput(language.lm_head, model.seg_token, tied)


def add_lora(
    model: Segmenter, rank: int, alpha: float, dropout: float, generator_seed: int, targets: Sequence[str] = LORA_TARGETS
) -> None:
    """Put LoRA (arXiv 2106.09685) on the language model's linear layers; B starts at zero, A is drawn from the seed."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        # On the language model alone: on the whole, the same names also match SAM2 and the vision transformer.
        inject_adapter_in_model(config, model.vlm.language_model)


def select_trained(model: nn.Module, groups: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Freeze everything but `groups`, make the trained tensors float32, and return them by name.

    Raises `ValueError` for a group of which the model holds no tensor.
    """
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(_PATTERNS[group].match(name) for group in groups))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trained[name] = parameter
    for group in groups:
        if not any(_PATTERNS[group].match(name) for name in trained):
            raise ValueError(f"train.groups: the model holds no tensor of group {group}")
    return trained


def group_of_parameter(name: str) -> str:
    """The trained group of a tensor that `select_trained` returned."""
    return next(group for group, pattern in _PATTERNS.items() if pattern.match(name))
