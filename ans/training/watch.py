"""Looking after a run: what makes it pointless to go on stops it with the reason, what is only suspicious is said once."""

import sys
from collections import deque

WINDOW = 20
"""Steps over which a share is judged; single batches are small."""


class Degenerate(ArithmeticError):
    """The run has left the region in which its losses mean anything."""


class Watch:
    """Takes the values of every step. Raises `Degenerate` when the model stops saying `[SEG]` or the teacher says nothing; warns
    on standard error when the teacher says the same of everything."""

    def __init__(self, min_seg_rate: float) -> None:
        self.min_seg_rate = min_seg_rate
        self.history: dict[str, deque[float]] = {}
        self.warned = False

    def look(self, step: int, values: dict[str, float]) -> None:
        for name in ("ref_seg_rate", "loop1_seg_rate", "loop2_seg_rate"):
            if self._mean(name, values) < self.min_seg_rate:
                raise Degenerate(
                    f"step {step}: the model would say [SEG] in only {self._mean(name):.0%} of the answers ({name}, last "
                    f"{WINDOW} steps), less than train.min_seg_rate ({self.min_seg_rate:.0%}). Lower presets.<preset>.train.lr "
                    "or raise train.loss.language"
                )
        if 1 - self._mean("loop1_teacher_empty", values, missing=0.0) < 0.1:
            raise Degenerate(
                f"step {step}: the teacher says nothing about nearly all objects (last {WINDOW} steps), so loop 1 has no caption "
                "to work on. Can the base describe regions at all? If so, raise train.ema.decay or lower the learning rate"
            )
        if not self.warned and self._mean("loop1_teacher_different", values) < 0.05:
            self.warned = True
            print(f"warning: step {step}: the teacher says the same of nearly all objects; see loop1_teacher_*", file=sys.stderr)

    def state_dict(self) -> dict[str, object]:
        return {"history": {name: list(values) for name, values in self.history.items()}, "warned": self.warned}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.history = {name: deque(values, maxlen=WINDOW) for name, values in state["history"].items()}
        self.warned = state["warned"]

    def _mean(self, name: str, values: dict[str, float] | None = None, missing: float = 1.0) -> float:
        """Mean over the last `WINDOW` values of a curve; `missing` before there are that many."""
        history = self.history.setdefault(name, deque(maxlen=WINDOW))
        if values is not None and name in values:
            history.append(values[name])
        return sum(history) / len(history) if len(history) == WINDOW else missing
