"""LISA's Dice by hand: sums over 1000, 1e-6 beside them. (Sa2VA's own form is held by the golden case.)"""

import torch

from ans.objectives.mask import lisa_dice


def logit(*probabilities: float) -> torch.Tensor:
    return torch.logit(torch.tensor(probabilities, dtype=torch.float64))[None]


def test_by_hand() -> None:
    # overlap 2 * (0.75 + 0.5) / 1000 = 0.0025; sums (0.75 + 0.5 + 0.25) / 1000 + 2 / 1000 = 0.0035
    loss = lisa_dice(logit(0.75, 0.5, 0.25), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([1 - (0.0025 + 1e-6) / (0.0035 + 1e-6)]), rtol=1e-6, atol=0)
    # a soft target counts by its share
    loss = lisa_dice(logit(0.5, 0.5), torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([1 - (0.0005 + 1e-6) / (0.0015 + 1e-6)]), rtol=1e-6, atol=0)


def test_limits() -> None:
    """Right everywhere: 0. Nothing meant, nothing found: 0 too, by eps. Nothing meant, half of 1000 pixels found: nearly 1."""
    sure = torch.tensor([[40.0, 40.0, -40.0], [-40.0, -40.0, -40.0]])
    torch.testing.assert_close(
        lisa_dice(sure, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])), torch.zeros(2), rtol=0, atol=1e-6
    )
    found = lisa_dice(torch.zeros(1, 1000), torch.zeros(1, 1000))
    torch.testing.assert_close(found, torch.tensor([1 - 1e-6 / (0.5 + 1e-6)]), rtol=1e-6, atol=0)


def test_each_object_by_itself() -> None:
    logits, targets = torch.randn(3, 20), (torch.rand(3, 20) > 0.5).float()
    alone = torch.cat([lisa_dice(logits[i : i + 1], targets[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(lisa_dice(logits, targets), alone)
