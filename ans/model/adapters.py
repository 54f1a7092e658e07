"""Which tensors are trained: LoRA on the language model, and the named module groups."""

import re

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

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
    "embed_head": re.compile(r"vlm\.language_model\.(model\.embed_tokens|lm_head)\."),
}


def add_lora(model: Segmenter, rank: int, alpha: float, dropout: float, generator_seed: int) -> None:
    """Put LoRA (arXiv 2106.09685) on the language model's linear layers; B starts at zero, A is drawn from the seed."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(LORA_TARGETS))
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
