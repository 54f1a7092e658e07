"""An image that cannot be opened costs a training one sample, not its end; many end it by name."""

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
