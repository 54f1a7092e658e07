"""The straight-through bridge against the plain formula over (N, k, D)."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ans.objectives import gumbel
from ans.objectives.gumbel import straight_through

N, V, D, K, TAU = 7, 50, 6, 8, 0.7


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(N, V, generator=generator, dtype=dtype)).requires_grad_()
    table = torch.randn(V, D, generator=generator, dtype=dtype)
    uniform = torch.rand(N, K, generator=generator)
    return logits, table, -(-uniform.log()).log(), torch.randn(N, D, generator=generator, dtype=dtype)


def plain(logits: torch.Tensor, table: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The textbook form: hard + soft - soft.detach()."""
    values, index = logits.topk(K)
    soft = ((values.float() + noise) / TAU).softmax(-1)
    rows = table[index]
    mean = (soft[..., None].to(rows.dtype) * rows).sum(1)
    hard = rows[torch.arange(N), soft.argmax(-1)]
    return hard + mean - mean.detach()


def test_value_and_gradient_equal_the_plain_formula() -> None:
    logits, table, noise, upstream = inputs()
    ours = straight_through(logits, table, noise, TAU)[0]
    ours_gradient = torch.autograd.grad((ours * upstream).sum(), logits)[0]
    theirs = plain(logits, table, noise)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours_gradient, torch.autograd.grad((theirs * upstream).sum(), logits)[0], atol=1e-6, rtol=1e-5)


def test_forward_is_exactly_the_row_of_the_perturbed_arg_max() -> None:
    logits, table, noise, _ = inputs(torch.float32)
    embeds, chosen, kept = straight_through(logits, table, noise, TAU)
    perturbed = torch.full((N, V), -torch.inf).scatter(1, logits.topk(K).indices, logits.topk(K).values + noise)
    assert chosen.tolist() == perturbed.argmax(1).tolist()
    assert torch.equal(embeds, F.embedding(chosen, table))
    torch.testing.assert_close(kept, logits.softmax(-1).topk(K).values.sum(-1))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, table, noise, upstream = inputs()
    whole = torch.autograd.grad((straight_through(logits, table, noise, TAU)[0] * upstream).sum(), logits)[0]
    monkeypatch.setattr(gumbel, "CHUNK", 2 * V)
    parts = torch.autograd.grad((straight_through(logits, table, noise, TAU)[0] * upstream).sum(), logits)[0]
    torch.testing.assert_close(whole, parts)


def test_under_activation_checkpointing() -> None:
    logits, table, noise, upstream = inputs()
    direct = torch.autograd.grad((straight_through(logits, table, noise, TAU)[0] * upstream).sum(), logits)[0]
    again = checkpoint(lambda x: straight_through(x, table, noise, TAU)[0], logits, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad((again * upstream).sum(), logits)[0], direct)


def test_tokens_that_may_not_be_said_never_are() -> None:
    logits, table, noise, upstream = inputs()
    barred = logits.topk(3).indices[0]
    masked = logits.index_fill(1, barred, -torch.inf)
    embeds, chosen, _ = straight_through(masked, table, noise, TAU)
    gradient = torch.autograd.grad((embeds * upstream).sum(), logits)[0]
    assert not set(chosen.tolist()) & set(barred.tolist()) and gradient.isfinite().all()
