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


def clip(gradient: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Return the vector, scaled down to norm `limit` where it is longer, and its norm before, on the vector's device.

    The norm of a vector with NaN or infinity is neither a number: who fetches it has to look.
    """
    norm = gradient.norm()
    return gradient * (limit / norm.double()).clamp(max=1.0), norm


def assign(gradient: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Give each tensor its part of the vector as `.grad`, without a copy."""
    parts = gradient.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
