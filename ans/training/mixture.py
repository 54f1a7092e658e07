"""Which task's micro-batch comes when: a pure function of the step, the same for any number of processes."""

from collections.abc import Mapping
from math import ceil

from torch.utils.data import Dataset

from ans.data.mixing import interleaved
from ans.tasks.base import AnyTask, Batch

MicroBatch = list[tuple[str, Batch]]
"""One batch of a primary task, and one of each auxiliary task, with the tasks' names."""


class Mixture(Dataset[MicroBatch]):
    """Item i is this process's part of the i-th micro-batch: of `processes` times `batch` samples, the `process`-th `batch`.

    Primary tasks take turns by the step: evenly spread, in proportion to their samples, the first of them beginning. Every step has
    a batch of each auxiliary task beside it.
    """

    def __init__(
        self, tasks: Mapping[str, AnyTask], steps: int, batch: int, accumulation: int, process: int = 0, processes: int = 1
    ) -> None:
        self.tasks, self.steps, self.batch, self.accumulation = tasks, steps, batch, accumulation
        self.process, self.processes = process, processes
        self.primary = [name for name, task in tasks.items() if task.role == "primary"]
        self.auxiliary = [name for name, task in tasks.items() if task.role == "auxiliary"]

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def turn(self, step: int) -> tuple[str, int]:
        """Return the primary task of a step, and how many steps it had before."""
        rest, left = step, list(self.primary)
        while len(left) > 1:
            share = len(self.tasks[left[0]]) / sum(len(self.tasks[name]) for name in left)
            before = ceil(rest * share)
            if interleaved(rest, share):
                return left[0], before
            rest, left = rest - before, left[1:]
        return left[0], rest

    def __getitem__(self, index: int) -> MicroBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        step, micro = divmod(index, self.accumulation)
        name, before = self.turn(step)
        batches = [(name, self.tasks[name].batch(self._positions(before * self.accumulation + micro)))]
        return batches + [(other, self.tasks[other].batch(self._positions(index))) for other in self.auxiliary]

    def _positions(self, number: int) -> range:
        first = (number * self.processes + self.process) * self.batch
        return range(first, first + self.batch)
