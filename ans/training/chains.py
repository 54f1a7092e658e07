"""What the loops make of objects, kept at chosen steps: two captions and a mask each (`ans.objectives.losses.Chain`)."""

import numpy as np
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

from ans.objectives.batches import CaptionBatch, MaskBatch
from ans.objectives.losses import Chain

PER_STEP = 4
SIDE = 128
"""Masks are kept at this size (pixels, square): they are for looking at."""


class Chains:
    """Keeps of each loop the first chains of `times` steps, evenly spread over `steps`, in `kept`."""

    def __init__(self, times: int, steps: int) -> None:
        chosen = sorted({round((i + 0.9) * (steps - 1) / times) for i in range(times)}) if times else []
        self.left = {1: list(chosen), 2: list(chosen)}
        self.kept: list[dict[str, object]] = []

    def wanted(self, loop: int, step: int) -> bool:
        """Whether `step` or one since the last kept one was chosen: not every step has a chain of loop 1."""
        return bool(self.left[loop]) and step >= self.left[loop][0]

    def keep(self, loop: int, step: int, batch: MaskBatch | CaptionBatch, chain: Chain) -> None:
        self.left[loop] = [wanted for wanted in self.left[loop] if wanted > step]
        for number in range(min(PER_STEP, len(chain.before))):
            path, source = batch.where[number]
            self.kept.append(
                {
                    "loop": loop,
                    "step": step + 1,
                    "source": source,
                    "image": path,
                    "before": chain.before[number],
                    "after": chain.after[number],
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
