"""Flat gradients and schedules against autograd, optimizers and hand-computed values."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ans.training.gradients import add_gradient, assign, clip
from ans.training.schedule import lr_factor
from ans.training.setup import page_again


def test_flat_gradient_equals_backward() -> None:
    torch.manual_seed(0)
    net, unused = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), nn.Linear(2, 2)
    x = torch.randn(5, 4)
    parameters = [*net.parameters(), *unused.parameters()]
    flat = torch.full((sum(p.numel() for p in parameters),), 0.5)
    add_gradient(net(x).square().sum(), parameters, flat)
    flat -= 0.5
    net(x).square().sum().backward()
    torch.testing.assert_close(
        flat, torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    )
    assign(2 * flat, parameters)
    torch.testing.assert_close(parameters[0].grad.flatten(), 2 * flat[:12])


def test_clip_equals_torch() -> None:
    p = nn.Parameter(torch.zeros(7))
    p.grad = torch.arange(7.0)
    clipped, norm = clip(p.grad.clone(), 1.5)
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_([p], 1.5)))
    torch.testing.assert_close(clipped, p.grad, atol=1e-5, rtol=1e-5)
    for short in (torch.tensor([0.3, 0.4]), torch.zeros(2)):
        assert torch.equal(clip(short, 1.0)[0], short)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_the_norm_says_that_a_gradient_is_not_finite(wrong: float) -> None:
    assert not clip(torch.tensor([1.0, wrong]), 1.0)[1].isfinite()


def test_schedule_by_hand() -> None:
    cosine = [lr_factor(step, 100, 0.1, "cosine") for step in range(100)]
    assert cosine[0] == pytest.approx(0.1) and cosine[9] == cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert [lr_factor(step, 10, 0.0, "constant") for step in range(10)] == [1.0] * 10


def test_a_loaded_state_lies_in_the_paged_optimizers_own_buffers() -> None:
    p, made = nn.Parameter(torch.zeros(4)), []

    def buffer(parameter: Tensor, kind: torch.dtype) -> Tensor:
        made.append(torch.full_like(parameter, 9.0, dtype=kind))
        return made[-1]

    loaded = torch.arange(4.0)
    optimizer = SimpleNamespace(state={p: {"step": 3, "state1": loaded, "qmap": torch.ones(2)}}, get_state_buffer=buffer)
    page_again(optimizer)
    state = optimizer.state[p]
    assert state["state1"] is made[0] and torch.equal(made[0], torch.arange(4.0)) and len(made) == 1
    assert state["step"] == 3 and torch.equal(state["qmap"], torch.ones(2))
    ordinary = torch.optim.AdamW([p])
    page_again(ordinary)  # has no pages
    assert not ordinary.state
