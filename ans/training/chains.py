"""What loop 1 makes of objects, kept at chosen steps: the teacher's caption, what the student made of it, and the mask."""

import numpy as np
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

from ans.objectives.batches import MaskBatch
from ans.objectives.loop1 import Chain

PER_STEP = 4
SIDE = 128
"""Masks are kept at this size (pixels, square): they are for looking at."""


class Chains:
    """Keeps `times` steps' first chains, evenly spread over `steps`, in `kept`."""

    def __init__(self, times: int, steps: int) -> None:
        self.left = sorted({round((i + 0.9) * (steps - 1) / times) for i in range(times)}) if times else []
        self.kept: list[dict[str, object]] = []

    def wanted(self, step: int) -> bool:
        """Whether `step` or one since the last kept one was chosen: not every step has a chain."""
        return bool(self.left) and step >= self.left[0]

    def keep(self, step: int, batch: MaskBatch, chain: Chain) -> None:
        self.left = [wanted for wanted in self.left if wanted > step]
        for number in range(min(PER_STEP, len(chain.said))):
            path, source = batch.where[number]
            self.kept.append(
                {
                    "step": step + 1,
                    "source": source,
                    "image": path,
                    "said": chain.said[number],
                    "heard": chain.heard[number],
                    "truth": _rle(batch.targets.soft[number] - 0.5),
                    "mask": _rle(chain.logits[number].float().cpu()),
                }
            )

    def state_dict(self) -> dict[str, object]:
        return {"left": self.left, "kept": self.kept}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.left, self.kept = state["left"], state["kept"]


def _rle(logits: Tensor) -> str:
    full = F.interpolate(logits[None, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0] > 0
    return coco.encode(np.asfortranarray(full.numpy().astype(np.uint8)))["counts"].decode()
