"""The health of a run: what makes it pointless to go on stops it with the reason, what is only suspicious is said once."""

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from ans.tasks.base import CHECKED_STEPS, AnyTask, Degenerate
from ans.training.hooks import Hook

log = logging.getLogger(__name__)


class Health(Hook):
    """Raises `Degenerate` when the model stops saying `[SEG]`, or where a task's own check does."""

    def __init__(self, tasks: Mapping[str, AnyTask], min_seg_rate: float) -> None:
        self.tasks, self.min_seg_rate = tasks, min_seg_rate
        self.history: dict[str, deque[float]] = {}
        self.warned: list[str] = []

    def after(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.history.setdefault(name, deque(maxlen=CHECKED_STEPS)).append(value)
        means = {name: sum(of) / len(of) for name, of in self.history.items() if len(of) == CHECKED_STEPS}
        for name, task in self.tasks.items():
            curve = f"{task.prefix}_seg_rate"
            if means.get(curve, 1.0) < self.min_seg_rate:
                raise Degenerate(
                    f"step {step}: [SEG] has a probability of 0.1 or more in only {means[curve]:.0%} of the answers ({curve}, last "
                    f"{CHECKED_STEPS} steps), less than train.min_seg_rate ({self.min_seg_rate:.0%}). Lower train.lr or raise "
                    "train.loss.language"
                )
            warning = task.check(step, means)
            if warning is not None and name not in self.warned:
                self.warned.append(name)
                log.warning(warning)

    def state_dict(self) -> dict[str, Any]:
        return {"history": {name: list(values) for name, values in self.history.items()}, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {name: deque(values, maxlen=CHECKED_STEPS) for name, values in state["history"].items()}
        self.warned = state["warned"]
