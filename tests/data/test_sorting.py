"""Sorting more than fits into memory, beside Python's own."""

import random
import tracemalloc
from collections.abc import Iterator

import pytest

from ans.data import parts
from ans.data.parts import ordered


def rows(count: int) -> Iterator[tuple[str, str]]:
    draw = random.Random(count)
    return ((f"sa_{draw.randrange(count)}\udcff\n", draw.choice((".jpg", ".json"))) for _ in range(count))


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 1234])
def test_as_python_sorts(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SORTED_AT_ONCE", 10)
    monkeypatch.setattr(parts, "SORTED_CHUNK", 3)
    assert list(ordered(rows(count))) == sorted(rows(count))


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SORTED_AT_ONCE", 1000)
    monkeypatch.setattr(parts, "SORTED_CHUNK", 50)
    peaks = []
    for count in (5_000, 20_000):
        tracemalloc.start()
        assert sum(1 for _ in ordered(rows(count))) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] < len(list(rows(5_000))) * 200
