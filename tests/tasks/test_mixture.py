"""Which batch comes when: the same for any number of processes."""

from collections import Counter

import pytest
import torch

from ans.training.mixture import Mixture
from tests.task_case import TaskCase


def test_processes_share_one_global_batch(case: TaskCase) -> None:
    """Of all kinds: two processes with half the batch each see what one sees."""
    tasks = {name: case.task(name) for name in ("referring", "loop1", "loop2")}
    whole = Mixture(tasks, steps=6, batch=4, accumulation=1)
    halves = [Mixture(tasks, 6, 2, 1, process, 2) for process in range(2)]
    primary = set()
    for item in range(6):
        one, two = whole[item], [half[item] for half in halves]
        primary.add(one[0][0])
        assert [name for name, _ in one][1:] == ["loop2"]
        for (name, together), *parts in zip(one, *two, strict=True):
            assert [other for other, _ in parts] == [name] * 2
            apart = [batch for _, batch in parts]
            assert torch.equal(together.images.sam, torch.cat([batch.images.sam for batch in apart]))
            assert torch.equal(together.targets.soft, torch.cat([batch.targets.soft for batch in apart]))
            assert together.counts == {key: sum(batch.counts[key] for batch in apart) for key in together.counts}
            if name == "loop1":
                for part in ("corruption", "noise"):
                    assert torch.equal(getattr(together, part), torch.cat([getattr(batch, part) for batch in apart])), part
                cells = [cells for batch in apart for cells in batch.cells]
                assert all(torch.equal(a, b) for a, b in zip(together.cells, cells, strict=True))
                assert together.questions == apart[0].questions + apart[1].questions
            if name == "loop2":
                assert together.captions == apart[0].captions + apart[1].captions
    assert primary == {"referring", "loop1"}


class Counted:
    """A task of `size` samples whose batch is its positions."""

    def __init__(self, role: str, size: int) -> None:
        self.role, self.size = role, size

    def __len__(self) -> int:
        return self.size

    def batch(self, positions: range) -> range:
        return positions


@pytest.mark.parametrize("sizes", [(30, 70), (10, 20, 70), (1, 1, 1)])
def test_primary_tasks_take_turns_in_proportion_and_miss_no_sample(sizes: tuple[int, ...]) -> None:
    tasks = {f"task{i}": Counted("primary", size) for i, size in enumerate(sizes)}
    mixture = Mixture(tasks, steps=300, batch=2, accumulation=2)
    turns = [mixture.turn(step) for step in range(300)]
    assert turns[0] == ("task0", 0)
    for number, size in enumerate(sizes):
        mine = [(step, before) for step, (name, before) in enumerate(turns) if name == f"task{number}"]
        assert [before for _, before in mine] == list(range(len(mine)))
        assert abs(len(mine) - 300 * size / sum(sizes)) <= 2
        seen = [position for step, _ in mine for micro in range(2) for position in mixture[2 * step + micro][0][1]]
        assert seen == list(range(4 * len(mine))), "its samples follow each other"


def test_auxiliary_tasks_come_with_every_step() -> None:
    tasks = {"a": Counted("primary", 3), "b": Counted("auxiliary", 3), "c": Counted("auxiliary", 3)}
    mixture = Mixture(tasks, steps=4, batch=3, accumulation=2)
    assert Counter(name for item in range(8) for name, _ in mixture[item]) == {"a": 8, "b": 8, "c": 8}
    assert [batch for item in range(8) for name, batch in mixture[item] if name == "c"] == [
        range(3 * i, 3 * i + 3) for i in range(8)
    ]
    with pytest.raises(IndexError):
        mixture[8]
