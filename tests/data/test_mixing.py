"""The order of samples: every sample its share, spread evenly."""

from collections import Counter

import numpy as np
import pytest

from ans.data.mixing import Pool, interleaved


def test_the_very_first_step_is_referring_and_the_others_are_spread() -> None:
    chosen = [interleaved(step, 0.3) for step in range(100)]
    assert chosen[0] and sum(chosen) == 30
    gaps = np.diff(np.flatnonzero(chosen))
    assert set(gaps) <= {3, 4}
    assert [interleaved(step, 1.0) for step in range(5)] == [True] * 5


def test_a_pool_gives_every_sample_its_share() -> None:
    pool = Pool([5, 4], [1.0, 2.0], seed=3, stream=1, name="x")
    epochs = [[pool.at(epoch * 13 + i) for i in range(13)] for epoch in range(2)]
    for epoch in epochs:
        assert Counter(epoch) == {**{(0, i): 1 for i in range(5)}, **{(1, i): 2 for i in range(4)}}
    assert epochs[0] != epochs[1]
    half = Pool([10], [0.5], seed=3, stream=1, name="x")
    assert {half.at(i)[1] for i in range(10)} == set(range(10)), "the second epoch has what the first left out"
    with pytest.raises(ValueError, match="^x: no sample"):
        Pool([3], [0.0], seed=0, stream=0, name="x")
