"""The reward of captions: its estimator against the exact gradient, and its parts by hand."""

from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ans.objectives.rloo import earned, leave_one_out, objective

CAPTIONS = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
"""All that can be said with two words in at most two of them."""


def log_probabilities(policy: Tensor) -> Tensor:
    """(7,): of each caption; `policy` (3, 3) has a row for what was said before (nothing, 0, 1), and in it the words and the end."""
    rows = policy.log_softmax(-1)
    found = []
    for caption in CAPTIONS:
        said = [*caption, 2][:2]  # the second word is the last
        before = [0, *(word + 1 for word in said)]
        found.append(torch.stack([rows[state, word] for state, word in zip(before, said, strict=False)]).sum())
    return torch.stack(found)


def policy(seed: int) -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_leave_one_out_by_hand() -> None:
    found = leave_one_out(torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.2, 0.2]]))
    assert found.tolist() == [pytest.approx([0.75, -0.75, 0.0]), pytest.approx([0.0, 0.0, 0.0], abs=1e-6)]
    assert leave_one_out(torch.tensor([[0.7, 0.1]]))[0].tolist() == pytest.approx([0.6, -0.6])


@pytest.mark.parametrize("draws", [2, 3])
def test_in_the_mean_the_gradient_is_exact(draws: int) -> None:
    """The mean over all draws, each as often as it comes, is the gradient of the expected reward less the distance to the teacher (KL)."""
    student, teacher, leash = policy(0).requires_grad_(), log_probabilities(policy(1)), 0.3
    reward = torch.randn(len(CAPTIONS), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    said = log_probabilities(student)
    assert float(said.exp().sum().detach()) == pytest.approx(1.0)
    expected = (said.exp() * (reward - leash * (said - teacher))).sum()
    (exact,) = torch.autograd.grad(expected, student, retain_graph=True)

    which = torch.tensor(list(product(range(len(CAPTIONS)), repeat=draws)))
    comes = said.detach()[which].sum(1).exp()
    mean = (comes * objective(said, reward - leash * (said.detach() - teacher), which)).sum()
    (found,) = torch.autograd.grad(mean, student)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
    assert exact.norm() > 0.1


def test_nothing_is_learnt_where_all_draws_earn_the_same() -> None:
    said = torch.tensor([-1.0, -2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(said, torch.tensor([0.3, 0.3]), torch.tensor([[0, 1, 1]])).sum(), said)
    assert gradient.abs().max() < 1e-7


def test_what_a_caption_earns_by_hand() -> None:
    """IoU with the own object less the best with another one's; an object by itself, and one in two frames, have their IoU alone."""
    left, right, half = torch.zeros(3, 2, 4)
    left[:, :2], right[:, 2:], half[:, 1:3] = 1, 1, 1

    def mask(of: Tensor) -> Tensor:
        return torch.where(of > 0, 5.0, -5.0)

    def rows(soft: list[Tensor], others: list[Tensor], shown: list[list[int]]) -> Any:
        return cast(Any, SimpleNamespace(targets=SimpleNamespace(soft=torch.stack(soft)), others=others, shown=shown))

    none = torch.empty(0)
    found = earned(
        torch.stack([mask(half), mask(half), mask(left)]),
        rows([left, left, left], [torch.stack([right, half]), none, right[None]], [[0], [0], [0]]),
    )
    assert found.tolist() == pytest.approx([1 / 3 - 1, 1 / 3, 1.0])
    assert earned(torch.stack([mask(left), mask(half)]), rows([left, left], [none], [[0, 1]])).tolist() == pytest.approx([2 / 3])
    behind_two_frames = rows([right, right, left], [none, right[None]], [[0, 1], [2]])
    assert earned(torch.stack([mask(right), mask(right), mask(left)]), behind_two_frames).tolist() == [1.0, 1.0]
