"""The teacher: an exponential moving average of the trained tensors, and nothing else. What is frozen is the student's own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ans.model.segmenter import Segmenter


class Teacher:
    """float32 copies of the trained tensors. `decay` 0 makes the teacher the student itself."""

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float, warmup: bool) -> None:
        self.trained, self.decay, self.warmup = trained, decay, warmup
        self.average = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def rate(self, step: int) -> float:
        """Return the decay of update number `step` (from 0): with warm-up it grows from 0.1, as in TensorFlow's moving averages."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update: average <- rate * average + (1 - rate) * student."""
        if not self.trained:  # no task uses a teacher
            return
        averages, students = list(self.average.values()), [p.detach() for p in self.trained.values()]
        torch._foreach_lerp_(averages, students, 1 - self.rate(step))

    @contextmanager
    def of(self, model: Segmenter) -> Iterator[None]:
        """Put the teacher in its place: within, `model` is the teacher, in eval mode and without gradients; afterwards the student,
        untouched.

        Autocast keeps the low-precision copy of a parameter until its outermost context ends, whatever the parameter's data is by
        then; so the cache is cleared at both switches.
        """
        students = {name: parameter.data for name, parameter in self.trained.items()}
        try:
            for name, parameter in self.trained.items():
                parameter.data = self.average[name]
            torch.clear_autocast_cache()
            with model.evaluating():
                yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = students[name]
            torch.clear_autocast_cache()

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a saved average in. Raises `KeyError` for a tensor that it lacks."""
        for name, average in self.average.items():
            average.copy_(state[name])
