"""Which sample comes when: pure functions of seeds and positions, so any number of processes, and a resumed run, see the same."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil

import numpy as np


def keyed_rng(*key: int) -> np.random.Generator:
    """Return a generator that depends on its key alone: (seed, purpose, position)."""
    return np.random.default_rng(list(key))


def interleaved(step: int, share: float) -> bool:
    """Return whether `step` (from 0) is one of the `share` (0..1) of steps that are evenly spread, the very first step being one."""
    return ceil((step + 1) * share) > ceil(step * share)


class Pool:
    """Samples of several sources in an endless series of epochs, each in its own seeded order.

    Source i has `counts[i]` samples and comes with round(counts[i] * repeats[i]) of them per epoch: some left out below 1, some
    twice above. `stream` tells pools of one seed apart. Raises `ValueError`, beginning with `name`, when nothing is left.
    """

    def __init__(self, counts: Sequence[int], repeats: Sequence[float], seed: int, stream: int, name: str) -> None:
        self.counts, self.key = counts, (seed, stream)
        self.ends = np.cumsum([round(count * times) for count, times in zip(counts, repeats, strict=True)])
        if not len(self):
            raise ValueError(f"{name}: no sample is left to train on")

    def __len__(self) -> int:
        """Return samples of an epoch."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def at(self, position: int) -> tuple[int, int]:
        """Return (source, sample of it) at `position`."""
        epoch, offset = divmod(position, len(self))
        slot = int(_order(len(self), *self.key, epoch)[offset])
        source = int(np.searchsorted(self.ends, slot, side="right"))
        start = int(self.ends[source - 1]) if source else 0
        # below one repeat the epochs take different parts of the source
        size, taken = self.counts[source], int(self.ends[source]) - start
        return source, (slot - start + epoch * taken) % size


@lru_cache(maxsize=8)
def _order(size: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    return keyed_rng(seed, stream, epoch).permutation(size)
