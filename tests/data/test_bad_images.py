"""An image that cannot be opened costs a training one sample, not its end; many end it by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ans.data.bad_images import BadImages
from ans.data.mixing import Pool

BAD = {3, 7}


def take(_: int, sample: int) -> int:
    if sample in BAD:
        raise ValueError(f"{sample}.jpg: not a readable image")
    return sample


def test_others_take_their_place_wherever_one_begins() -> None:
    pool = Pool([100], [1.0], 5, 0, "some")
    whole = BadImages(100, 0.02)
    found = [whole.instead(pool, position, take) for position in range(300)]
    sound = [pool.at(position)[1] for position in range(300)]
    assert [one for one, other in zip(found, sound, strict=True) if one != other and other not in BAD] == []
    assert not BAD & set(found) and len(whole.seen) == 2
    halves = [BadImages(100, 0.02) for _ in range(2)]  # two processes
    assert [halves[position % 2].instead(pool, position, take) for position in range(300)] == found


def test_too_many_end_it_by_name(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool([100], [1.0], 5, 0, "some")
    bad = BadImages(100, 0.01)
    with pytest.raises(ValueError, match=r"[37]\.jpg: not a readable image; 2 of 100 images .* index.max_bad_fraction is 0.01"):
        for position in range(300):
            bad.instead(pool, position, take)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["skipped, 1 so far"]
    with pytest.raises(ValueError, match="1 of 1 images"):
        BadImages(1, 0.0).instead(Pool([8], [1.0], 5, 0, "some"), 0, lambda *_: take(0, 3))


def test_none_ends_without_a_sound_one() -> None:
    with pytest.raises(ValueError, match="1 of 1 images"):
        BadImages(1, 0.5).instead(Pool([1], [1.0], 5, 0, "some"), 0, lambda *_: take(0, 3))


def test_processes_have_one_count(tmp_path: Path) -> None:
    """Two that see one bad image each, where one in a hundred is allowed: by itself neither would end."""
    two = [BadImages(100, 0.01) for _ in range(2)]
    pools = [Pool([100], [1.0], 5, 0, "some"), Pool([100], [1.0], 5, 0, "some")]
    for bad in two:
        bad.path = tmp_path / "bad"

    def only(mine: int) -> Callable[[int, int], int]:
        return lambda _, sample: take(0, sample) if sample == mine else sample

    places = [next(position for position in range(100) if pools[0].at(position)[1] == sample) for sample in (3, 7)]
    two[0].instead(pools[0], places[0], only(3))
    with pytest.raises(ValueError, match=r"7\.jpg: .*; 2 of 100 images cannot be used"):
        two[1].instead(pools[1], places[1], only(7))
    assert (tmp_path / "bad").read_text().splitlines() == [f"{n}.jpg: not a readable image" for n in (3, 7)]
