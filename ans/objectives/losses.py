"""What all objectives share: the counts that losses are divided by, and the terms of a mask and of an answer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ans.config import LossWeights
from ans.model.segmenter import Forward, Segmenter
from ans.objectives import mask
from ans.objectives.batches import Targets


@dataclass(frozen=True)
class Counts:
    """Of a whole step, over all processes and micro-batches: so the shares of all add up to the loss of one large batch.
    `tokens`: labels of the answers, `caption_tokens`: labels of loop 2's captions."""

    objects: int
    tokens: int
    caption_tokens: int = 0


@dataclass(frozen=True)
class Losses:
    """One micro-batch's share of its step. `total` is what is differentiated; `values` are for the curves, already divided."""

    total: Tensor
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Chain:
    """What a loop did with its objects, to be looked at: the caption it began with, the one it came to, and the mask between or
    behind them. Loop 1: `before` is what the teacher said, `after` what the student fed on, and the mask came of that. Loop 2:
    `before` is the data's caption, the mask came of it, and `after` is what the model says of that mask.

    `logits` (R, S/4, S/4): the masks."""

    before: list[str]
    after: list[str]
    logits: Tensor


def mask_terms(
    logits: Tensor,
    targets: Targets,
    weights: LossWeights,
    mask_points: int,
    counts: Counts,
    confidence: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted mask loss of `logits` (N, S/4, S/4) and its parts, on `mask_points` uncertain points or (0) on the whole mask;
    padding is no part of it.
    `confidence` (N,), if given, weighs each object."""
    soft, share, uniform = (of.to(logits.device) for of in (targets.soft, targets.share, targets.uniform))
    logits = logits.float()
    within = mask.within(share, *logits.shape[1:])
    visible = logits.masked_fill(~within, mask.NOTHING)
    if mask_points:
        points = mask.uncertain_points(logits, share[:, None] * uniform, mask_points)
        flat, truth, scale = mask.sample(logits, points), mask.sample(soft, points), 1.0
    else:
        flat, truth = visible.flatten(1), soft.flatten(1)
        scale = flat.shape[1] / within.flatten(1).sum(1)  # the mean is taken over the image, without its padding
    each = (1.0 if confidence is None else confidence) / counts.objects
    entropy = (each * scale * mask.cross_entropy(flat, truth)).sum()
    dice = (each * (mask.lisa_dice if weights.lisa_dice else mask.dice)(flat, truth)).sum()
    iou = (each * mask.soft_iou(flat, truth)).sum()
    values = {
        "mask": entropy.detach(),
        "dice": dice.detach(),
        "iou": iou.detach(),
        "train_iou": hard_iou(visible, soft).sum() / counts.objects,
    }
    return weights.mask * entropy + weights.dice * dice + weights.iou * iou, values


@torch.no_grad()
def hard_iou(logits: Tensor, soft: Tensor) -> Tensor:
    """(N,) IoU of the masks where logits > 0 with those where `soft` > 0.5; 0 where both are empty."""
    predicted, truth = logits > 0, soft > 0.5
    union = (predicted | truth).flatten(1).sum(1)
    return (predicted & truth).flatten(1).sum(1) / union.clamp(min=1)


@torch.no_grad()
def seg_rate(model: Segmenter, out: Forward, counts: Counts) -> Tensor:
    """Share of the objects whose `[SEG]` the model would say itself, given the answer so far: with a probability of 0.1 or more,
    since the answers differ in how many words come before it."""
    probability = out.logits[out.labels == model.seg_token].float().softmax(-1)[:, model.seg_token]
    return (probability >= 0.1).sum() / counts.objects
