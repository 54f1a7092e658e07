"""The supervised objective (Sa2VA's recipe): image and expression -> mask, with the language loss on the answer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ans.config import LossWeights
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives import mask


@dataclass(frozen=True)
class Losses:
    """`total` is what is differentiated. The others are unweighted sums over this batch: `mask`, `dice`, `iou` over `objects`,
    `language` over `tokens`; `train_iou` sums the IoU of the thresholded masks."""

    total: Tensor
    mask: Tensor
    dice: Tensor
    iou: Tensor
    language: Tensor
    train_iou: Tensor


def supervised(
    model: Segmenter,
    features: Features,
    batch: Conversations,
    targets: Tensor,
    uniform: Tensor,
    weights: LossWeights,
    mask_points: int,
    objects: int,
    tokens: int,
) -> Losses:
    """One batch's share of the loss. `objects` and `tokens` count the whole step over all processes and micro-batches, so that
    the shares add up to the loss of one large batch. `targets` (N, S/4, S/4) in the order of the `[SEG]` tokens; `uniform`
    (N, M, 2) point candidates, read when `mask_points` > 0.
    """
    out = model(features, batch)
    logits = model.masks(features, out.seg_image, out.seg_embeds).low_res.float()
    if mask_points:
        points = mask.uncertain_points(logits, uniform, mask_points)
        flat_logits, flat_targets = mask.sample(logits, points), mask.sample(targets, points)
    else:
        flat_logits, flat_targets = logits.flatten(1), targets.flatten(1)
    entropy = mask.cross_entropy(flat_logits, flat_targets).sum()
    dice = mask.dice(flat_logits, flat_targets).sum()
    iou = mask.soft_iou(flat_logits, flat_targets).sum()
    total = (weights.mask * entropy + weights.dice * dice + weights.iou * iou) / objects
    total = total + weights.language * out.language_loss / tokens
    with torch.no_grad():
        predicted, truth = logits > 0, targets > 0.5
        union = (predicted | truth).flatten(1).sum(1)
        train_iou = ((predicted & truth).flatten(1).sum(1) / union.clamp(min=1)).sum()
    return Losses(total, entropy.detach(), dice.detach(), iou.detach(), out.language_loss.detach(), train_iou)
