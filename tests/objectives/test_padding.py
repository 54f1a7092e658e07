"""What SAM's padding adds to a mask loss: nothing; and what a loss on points reads."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ans.config.training import LossWeights
from ans.objectives import mask
from ans.objectives.batches import Targets
from ans.objectives.losses import mask_terms

SIDE, ROWS = 16, 10


@pytest.fixture()
def logits() -> Tensor:
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_()


def terms(logits: Tensor, soft: Tensor, rows: float, points: int = 0, lisa: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    weights = LossWeights(mask=2.0, dice=0.5, language=1.0, iou=0.3, lisa_dice=lisa)
    share = torch.tensor([[1.0, rows]]).expand(len(soft), 2)
    uniform = torch.rand(len(soft), 4 * points, 2, generator=torch.Generator().manual_seed(2))
    return mask_terms(logits, Targets(soft, share, uniform), weights, points, len(soft))


@pytest.mark.parametrize("lisa", [False, True])
def test_the_loss_is_that_of_the_image_alone(logits: Tensor, lisa: bool) -> None:
    """Against the same masks cut back to the image; no gradient below it."""
    soft = torch.zeros(3, SIDE, SIDE)
    soft[:, 2:7, 3:9] = 1.0
    loss, values = terms(logits, soft, ROWS / SIDE, lisa=lisa)
    expected, alone = terms(logits[:, :ROWS], soft[:, :ROWS], 1.0, lisa=lisa)
    torch.testing.assert_close(loss, expected)
    assert all(torch.allclose(values[name], alone[name]) for name in alone)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, ROWS:].count_nonzero() == 0 and gradient[:, :ROWS].count_nonzero() == gradient[:, :ROWS].numel()


def test_points_lie_on_the_image(logits: Tensor) -> None:
    """A point is read between cells, so at the lower edge the next row has a part in it, and none behind that."""
    soft = torch.zeros(3, SIDE, SIDE)
    soft[:, 2:7, 3:9] = 1.0
    (gradient,) = torch.autograd.grad(terms(logits, soft, ROWS / SIDE, points=64)[0], logits)
    assert gradient[:, ROWS + 1 :].count_nonzero() == 0 and gradient[:, ROWS - 1].count_nonzero()
    (gradient,) = torch.autograd.grad(terms(logits, soft, 1.0, points=64)[0], logits)
    assert gradient[:, ROWS + 1 :].count_nonzero()


@pytest.mark.parametrize("dice", [mask.dice, mask.lisa_dice])
def test_on_points_both_terms_read_the_same_points(logits: Tensor, dice: Callable[[Tensor, Tensor], Tensor]) -> None:
    soft = torch.zeros(3, SIDE, SIDE)
    soft[:, 2:7, 3:9] = 1.0
    uniform = torch.rand(3, 4 * 32, 2, generator=torch.Generator().manual_seed(2))
    points = mask.uncertain_points(logits, uniform, 32)
    flat, truth = mask.sample(logits.detach(), points), mask.sample(soft, points)
    _, values = terms(logits, soft, 1.0, points=32, lisa=dice is mask.lisa_dice)
    assert float(values["dice"]) == pytest.approx(float(dice(flat, truth).mean()))
    assert float(values["mask"]) == pytest.approx(float(mask.cross_entropy(flat, truth).mean()))
