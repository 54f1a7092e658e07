"""Combining the primary and the auxiliary gradient into the one that is stepped. Pure functions over flat float32 vectors.

The projection is not linear: it is applied once, to the sums over micro-batches and processes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ans.config.training import Surgery


def combine(first: Tensor, second: Tensor, rule: Surgery, beta: float) -> Tensor:
    """Return first + beta * second (P,), `second` without its part along `first`: always (`orthogonal`), only where the two disagree
    (`pcgrad`, arXiv 2001.06782, one-sided), or never (`none`). A `first` of zeros leaves `second` whole.
    """
    if rule == "none":
        return first + beta * second
    coefficient = along(first, second)
    if rule == "pcgrad":
        coefficient = coefficient.clamp(max=0.0)
    return first + beta * (second - coefficient * first)


def along(first: Tensor, second: Tensor) -> Tensor:
    """Return (second . first) / (first . first), a float64 on their device: how much of `first` is in `second`; 0 for a `first` of
    zeros."""
    return _share(_dot(second, first), _dot(first, first))


def conflict(first: Tensor, second: Tensor, groups: Mapping[str, list[slice]]) -> dict[str, Tensor]:
    """Return per group of the vector and for `all` of it: norms of both, their cosine (0 where one vanishes) and `along`; each a float64 on
    the vectors' device, where the host need not wait for it."""
    values = {}
    for name, parts in {"all": [slice(0, len(first))], **groups}.items():
        a2, b2, ab = (
            torch.stack([_dot(x[part], y[part]) for part in parts]).sum()
            for x, y in ((first, first), (second, second), (first, second))
        )
        values[f"norm1_{name}"], values[f"norm2_{name}"] = a2.sqrt(), b2.sqrt()
        values[f"cosine_{name}"] = _share(ab, (a2 * b2).sqrt())
        values[f"along_{name}"] = _share(ab, a2)
    return values


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, 0.0)


def _dot(a: Tensor, b: Tensor, chunk: int = 2**20) -> Tensor:
    """Return a . b in float64 over float32 chunks: a single float32 sum over 10^8 terms loses the digits that decide."""
    return torch.stack([torch.dot(x, y) for x, y in zip(a.split(chunk), b.split(chunk), strict=True)]).double().sum()
