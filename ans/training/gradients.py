"""Gradients as one flat float32 vector over the trained tensors.

No DDP wrapper: a loop may run several forwards per backward and leave heads unused. The vector is accumulated over micro-batches
and reduced over processes once, before anything that is not linear is done to it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def add_gradient(loss: Tensor, parameters: Sequence[nn.Parameter], total: Tensor) -> None:
    """Add the gradient of `loss` to the vector `total` (P,); a tensor that took no part adds nothing. Frees the graph."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for part, gradient in zip(total.split([p.numel() for p in parameters]), gradients, strict=True):
        if gradient is not None:
            part.add_(gradient.flatten())


def clip(gradient: Tensor, limit: float) -> tuple[Tensor, float]:
    """The vector, scaled down to norm `limit` where it is longer, and its norm before.

    Raises `FloatingPointError` for NaN or infinity.
    """
    norm = float(gradient.norm())
    if not torch.isfinite(gradient).all():
        raise FloatingPointError("the gradient holds NaN or infinity; lower train.lr, or look at the batch")
    return (gradient * (limit / norm) if norm > limit else gradient), norm


def assign(gradient: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Give each tensor its part of the vector as `.grad`, without a copy."""
    parts = gradient.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
