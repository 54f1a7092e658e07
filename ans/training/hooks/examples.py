"""Examples of what the tasks did with objects, kept at a few steps for the report."""

from typing import Any

import numpy as np
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

from ans.shown import EXAMPLE_SIDE
from ans.tasks.base import Example
from ans.training.hooks import Hook

PER_STEP = 4


class Examples(Hook):
    """Keeps of each task the first examples of `times` steps, evenly spread over `steps`, in `kept`."""

    def __init__(self, times: int, steps: int, first_process: bool) -> None:
        self.first_process = first_process
        self.chosen = sorted({round((i + 0.9) * (steps - 1) / times) for i in range(times)}) if times else []
        self.left: dict[str, list[int]] = {}
        self.kept: list[dict[str, object]] = []
        self.step = 0

    def wanted(self, task: str) -> bool:
        """Return whether an example of the task is wanted at the current step."""
        left = self.left.setdefault(task, list(self.chosen))
        # a step that was chosen or one since the last kept one was: not every step has a batch of every task
        return self.first_process and bool(left) and self.step >= left[0]

    def keep(self, task: str, example: Example) -> None:
        """Keep an example of the current step; after that, none of this task is wanted until the next chosen step."""
        self.left[task] = [step for step in self.left[task] if step > self.step]
        for number in range(min(PER_STEP, len(example.where))):
            path, source = example.where[number]
            self.kept.append(
                {
                    "task": task,
                    "step": self.step + 1,
                    "source": source,
                    "image": path,
                    "texts": {name: texts[number] for name, texts in example.texts.items()},
                    "truth": _rle(example.truth[number] - 0.5),
                    "mask": _rle(example.logits[number].float().cpu()),
                }
            )

    def after(self, step: int, values: dict[str, float]) -> None:
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        return {"left": self.left, "kept": self.kept, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left, self.kept, self.step = state["left"], state["kept"], state["step"]


def _rle(logits: Tensor) -> str:
    full = F.interpolate(logits[None, None], size=(EXAMPLE_SIDE, EXAMPLE_SIDE), mode="bilinear", align_corners=False)[0, 0] > 0
    return coco.encode(np.asfortranarray(full.numpy().astype(np.uint8)))["counts"].decode()
