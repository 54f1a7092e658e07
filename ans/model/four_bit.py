"""Frozen linear layers in 4 bits: NF4 with double quantisation (QLoRA, arXiv 2305.14314), by bitsandbytes, on a GPU or a CPU."""

import torch
from torch import nn


def hold_in_four_bits(module: nn.Module, device: torch.device) -> None:
    """Replace every linear layer in `module` by one of the same values in NF4 on `device`, one after the other.

    What it computes with stays in the layer's own type. Raises `ModuleNotFoundError` where bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit  # an extra: large, and only for this
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"four_bit needs bitsandbytes (pip install bitsandbytes): {error}") from error
    for name, layer in list(module.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        small = Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=layer.weight.dtype, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        small.weight = Params4bit(layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
        small.bias = layer.bias
        # its own way on CPUs with AVX512-BF16 repacks the weights at the first use, and fails on inputs narrower than a block of 64
        small.support_avx512bf16_for_cpu = False
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, small.to(device))


def numbers(parameter: nn.Parameter) -> int:
    """Return how many values a parameter holds; in 4 bits two lie in a byte."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
