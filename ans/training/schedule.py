"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Literal


def lr_factor(step: int, steps: int, warmup: float, schedule: Literal["constant", "cosine", "linear"]) -> float:
    """Return what the base learning rate is multiplied by at `step` (from 0) of `steps`; linear warm-up over the share `warmup`."""
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return (step + 1) / ramp
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - (step - ramp) / max(1, steps - ramp)
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))
