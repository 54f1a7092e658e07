"""Mask losses, per object. Pure functions; the caller divides the sums by global counts.

`logits` and `targets` are (N, P): N objects with P pixels or sampled points; targets lie in [0, 1] and may be soft.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING = -1e4
"""A logit that adds nothing to any of these losses where the target is 0."""


def within(share: Tensor, height: int, width: int) -> Tensor:
    """Return (N, height, width) bool: the cells that show some of an image that reaches to `share` (N, 2) of the width and height."""
    across = torch.arange(width, device=share.device) / width < share[:, :1]
    down = torch.arange(height, device=share.device) / height < share[:, 1:]
    return down[:, :, None] & across[:, None]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (N,) mean sigmoid cross-entropy of each object."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").mean(-1)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (N,) Dice loss of each object, the naive form with eps 1 (official Sa2VA; mmdet's `naive_dice`)."""
    probability, targets = logits.float().sigmoid(), targets.float()
    overlap = 2 * (probability * targets).sum(-1) + 1
    return 1 - overlap / (probability.sum(-1) + targets.sum(-1) + 1)


def lisa_dice(logits: Tensor, targets: Tensor, scale: float = 1000.0, eps: float = 1e-6) -> Tensor:
    """Return (N,) Dice loss of each object as LISA has it (dvlab-research/LISA, `dice_loss`): all sums over `scale`, with `eps`."""
    probability, targets = logits.float().sigmoid(), targets.float()
    overlap = 2 * (probability / scale * targets).sum(-1) + eps
    return 1 - overlap / ((probability / scale).sum(-1) + (targets / scale).sum(-1) + eps)


def soft_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (N,) 1 - soft IoU of each object."""
    probability, targets = logits.float().sigmoid(), targets.float()
    overlap = (probability * targets).sum(-1)
    return 1 - (overlap + 1) / (probability.sum(-1) + targets.sum(-1) - overlap + 1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Return values (N, P) of maps (N, h, w) at points (N, P, 2), (x, y) in [0, 1]; bilinear, zero outside (PointRend, mmcv)."""
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(maps[:, None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0, :, 0]


def uncertain_points(logits: Tensor, uniform: Tensor, count: int, importance: float = 0.75) -> Tensor:
    """Choose `count` points (N, count, 2) per object where the mask is least certain (PointRend, arXiv 1912.08193).

    `uniform` (N, M, 2) in [0, 1] are the random candidates, M > count; a share `importance` of the result are the candidates
    whose logit is nearest to zero, the rest are the last of `uniform`, which that choice must not have seen: M is
    3 * count + (count - int(importance * count)).
    """
    chosen = int(importance * count)
    rest = count - chosen
    candidates, random = uniform[:, : uniform.shape[1] - rest], uniform[:, uniform.shape[1] - rest :]
    with torch.no_grad():
        nearest = (-sample(logits, candidates).abs()).topk(chosen, dim=1).indices
    picked = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([picked, random], dim=1)


def point_candidates(count: int, importance: float = 0.75, oversample: float = 3.0) -> int:
    """Return m: how many uniform points `uncertain_points` needs for `count`."""
    return int(oversample * count) + count - int(importance * count)
