"""Gradient surgery against hand-computed vectors and TorchJD's own projection."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchjd.aggregation import PCGrad

from ans.training.surgery import along, combine, conflict

G1, G2 = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([-5.0, 0.0, 2.0])


def test_by_hand() -> None:
    """g2 . g1 = -15, g1 . g1 = 25: g2 without its part along g1 is g2 + 0.6 g1 = (-3.2, 2.4, 2)."""
    assert along(G1, G2) == pytest.approx(-0.6)
    torch.testing.assert_close(combine(G1, G2, "orthogonal", 0.5), torch.tensor([1.4, 5.2, 1.0]))
    torch.testing.assert_close(combine(G1, G2, "none", 0.5), torch.tensor([0.5, 4.0, 1.0]))
    torch.testing.assert_close(combine(G1, G2, "pcgrad", 0.5), torch.tensor([1.4, 5.2, 1.0]))
    torch.testing.assert_close(combine(G1, -G2, "pcgrad", 0.5), G1 - 0.5 * G2)  # they agree: nothing is taken away
    torch.testing.assert_close(combine(torch.zeros(3), G2, "orthogonal", 0.5), 0.5 * G2)


@given(st.integers(0, 2**31), st.floats(0.01, 2.0))
def test_orthogonal_adds_nothing_along_the_first(seed: int, beta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    g1, g2 = torch.randn(2, 5000, generator=generator)
    added = combine(g1, g2, "orthogonal", beta) - g1
    assert abs(float(added.double() @ g1.double())) <= 1e-6 * float((g1 + added).norm() * g1.norm())


def test_against_torchjd() -> None:
    """TorchJD's PCGrad projects both ways and sums; its first row plus ours on the second is the same for a conflicting pair."""
    both = PCGrad()(torch.stack([G1, G2]))
    first = combine(G2, G1, "pcgrad", 1.0) - G2  # G1 without its conflict with G2
    second = combine(G1, G2, "pcgrad", 1.0) - G1
    torch.testing.assert_close(both, first + second)


def test_conflict_by_group() -> None:
    values = conflict(G1, G2, {"a": [slice(0, 1), slice(2, 3)], "b": [slice(1, 2)]})
    assert values["norm1_all"] == pytest.approx(5.0) and values["norm2_all"] == pytest.approx(29**0.5)
    assert values["cosine_all"] == pytest.approx(-15 / (5 * 29**0.5)) and values["along_all"] == pytest.approx(-0.6)
    assert values["cosine_a"] == pytest.approx(-15 / (3 * 29**0.5)) and values["along_a"] == pytest.approx(-15 / 9)
    assert (values["norm2_b"], values["cosine_b"], values["along_b"]) == (0.0, 0.0, 0.0)
