"""The loss terms that tasks share. All are sums over a micro-batch's objects, divided by the objects of the whole step, so that those
of all micro-batches and processes add up to the loss of one large batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ans.config.training import LossWeights
from ans.model.host import sent
from ans.model.segmenter import Forward, Segmenter
from ans.objectives import mask
from ans.objectives.batches import Targets


def mask_terms(
    logits: Tensor,
    targets: Targets,
    weights: LossWeights,
    mask_points: int,
    objects: int,
    confidence: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted mask loss of `logits` (N, S/4, S/4) and its parts, on `mask_points` uncertain points or (0) on the whole mask;
    padding is not part of it. `objects`: of the whole step. `confidence` (N,), if given, weighs each object."""
    soft, share, uniform = (sent(of, logits.device) for of in (targets.soft, targets.share, targets.uniform))
    logits = logits.float()
    within = mask.within(share, *logits.shape[1:])
    visible = logits.masked_fill(~within, mask.NOTHING)
    if mask_points:
        points = mask.uncertain_points(logits, share[:, None] * uniform, mask_points)
        flat, truth, scale = mask.sample(logits, points), mask.sample(soft, points), 1.0
    else:
        flat, truth = visible.flatten(1), soft.flatten(1)
        scale = flat.shape[1] / within.flatten(1).sum(1)  # the mean is taken over the image, without its padding
    each = (1.0 if confidence is None else confidence) / objects
    entropy = (each * scale * mask.cross_entropy(flat, truth)).sum()
    dice = (each * (mask.lisa_dice if weights.lisa_dice else mask.dice)(flat, truth)).sum()
    iou = (each * mask.soft_iou(flat, truth)).sum()
    values = {
        "mask": entropy.detach(),
        "dice": dice.detach(),
        "iou": iou.detach(),
        "train_iou": hard_iou(visible, soft).sum() / objects,
    }
    return weights.mask * entropy + weights.dice * dice + weights.iou * iou, values


def distillation(logits: Tensor, reference: Tensor, masks: int) -> Tensor:
    """Return the cross-entropy of `logits` (N, S/4, S/4) to the probabilities of the teacher's `reference`, divided by the step's masks."""
    distance = F.binary_cross_entropy_with_logits(logits.float(), reference.float().sigmoid(), reduction="none")
    return distance.flatten(1).mean(1).sum() / masks


@torch.no_grad()
def hard_iou(logits: Tensor, soft: Tensor) -> Tensor:
    """Return (N,) IoU of the masks where logits > 0 with those where `soft` > 0.5; as in the evaluation, 1 where both are empty."""
    predicted, truth = logits > 0, soft > 0.5
    union = (predicted | truth).flatten(1).sum(1)
    return ((predicted & truth).flatten(1).sum(1) / union.clamp(min=1)).where(union > 0, 1.0)


@torch.no_grad()
def seg_rate(model: Segmenter, out: Forward, objects: int) -> Tensor:
    """Return the share of the objects whose `[SEG]` the model would say itself, given the answer so far: with a probability of 0.1 or more,
    since the answers differ in how many words come before it."""
    probability = out.logits[out.seg_labels].float().softmax(-1)[:, model.seg_token]
    return (probability >= 0.1).sum() / objects
