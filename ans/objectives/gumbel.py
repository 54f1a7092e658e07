"""The straight-through Gumbel bridge (arXiv 1611.01144) from token logits to input embeddings, over the top-k tokens."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**25
"""Elements of the widest temporary, (rows, V) scores: 128 MiB of float32."""


def straight_through(logits: Tensor, table: Tensor, noise: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings (N, D), token ids (N,) and kept probability mass (N,) of `logits` (N, V).

    `noise` (N, k) is Gumbel noise for the k highest logits of each row, k <= V; `table` (V', D) the embedding table, V' >= V.
    Forward: exactly the table's row of the arg-max of the perturbed logits. Backward to the logits: as if the embedding were the
    mean of the k rows, weighted by softmax((logit + noise) / tau). No (N, k, D) tensor is made: what is kept for the backward is
    (N, k), and the backward's product runs in chunks of rows whose size does not depend on k.
    """
    with torch.no_grad():
        values, index = logits.float().topk(noise.shape[-1], dim=-1)
        chosen = index.gather(1, (values + noise).argmax(-1, keepdim=True))[:, 0]
        kept = (values.logsumexp(-1) - logits.float().logsumexp(-1)).exp()
    embeds = F.embedding(chosen, table)
    return embeds + _SoftGradient.apply(logits, table.detach(), index, noise, tau).to(embeds.dtype), chosen, kept


def square_of_gradient(embeds: Tensor) -> Tensor:
    """Return a scalar, 0 until the backward pass, which adds the sum of squares of the gradient at `embeds` to it."""
    total = embeds.new_zeros(())
    if embeds.requires_grad:
        embeds.register_hook(partial(_add_square, total))
    return total


def _add_square(total: Tensor, gradient: Tensor) -> None:
    total.add_(gradient.detach().float().square().sum())


class _SoftGradient(torch.autograd.Function):
    """Zeros (N, D) with the gradient of the soft mean of embeddings."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, table: Tensor, index: Tensor, noise: Tensor, tau: float) -> Tensor:
        soft = ((logits.gather(1, index).float() + noise) / tau).softmax(-1)
        ctx.save_for_backward(soft, index, table)
        ctx.tau, ctx.shape, ctx.dtype = tau, logits.shape, logits.dtype
        return table.new_zeros(len(logits), table.shape[1], dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        soft, index, table = ctx.saved_tensors
        result = torch.zeros(ctx.shape, dtype=ctx.dtype, device=grad.device)
        rows = max(1, CHUNK // len(table))
        for start in range(0, len(grad), rows):
            part = slice(start, start + rows)
            scores = (grad[part].to(table.dtype) @ table.T).float().gather(1, index[part])
            weighted = soft[part] * (scores - (soft[part] * scores).sum(-1, keepdim=True)) / ctx.tau
            result[part].scatter_(1, index[part], weighted.to(ctx.dtype))
        return result, None, None, None, None
