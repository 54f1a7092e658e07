"""Run lengths, many at once, against pycocotools and against the reader of one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from ans.data import masks

HEIGHT, WIDTH = 7, 9
DRAWN = st.integers(0, 2**31).map(
    lambda seed: (np.random.default_rng(seed).random((HEIGHT, WIDTH)) < np.random.default_rng(seed + 1).random()).astype(np.uint8)
)


@settings(max_examples=100, deadline=None)
@given(st.lists(DRAWN, min_size=1, max_size=6))
def test_what_pycocotools_writes_is_sound(drawn: list[np.ndarray]) -> None:
    counts = [coco.encode(np.asfortranarray(mask))["counts"].decode() for mask in drawn]
    masks.check_counts(counts, HEIGHT, WIDTH)
    for text, mask in zip(counts, drawn, strict=True):
        assert (masks.decode(text, HEIGHT, WIDTH) == mask).all()
        assert masks.run_lengths(text)[1::2].sum() == mask.sum()


@settings(max_examples=300, deadline=None)
@given(DRAWN, st.integers(0, 2**31), st.characters(min_codepoint=40, max_codepoint=120))
def test_many_at_once_say_what_one_says(mask: np.ndarray, place: int, character: str) -> None:
    """Damaged in one place, between two sound ones: the same answer, in the same words."""
    sound = masks.from_array(mask)
    place %= len(sound)
    damaged = sound[:place] + character + sound[place + 1 :]
    answers = []
    for check in (
        lambda: masks.check_counts([sound, damaged, sound], HEIGHT, WIDTH),
        lambda: masks.decode(damaged, HEIGHT, WIDTH),
    ):
        try:
            check()
            answers.append("")
        except ValueError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("counts", [None, 3, "", "é", "0\ud800", b"0"])
def test_what_is_no_text_is_refused(counts: object) -> None:
    with pytest.raises(ValueError, match="RLE counts"):
        masks.check_counts([masks.from_array(np.ones((HEIGHT, WIDTH), np.uint8)), counts], HEIGHT, WIDTH)


def test_none_are_sound() -> None:
    masks.check_counts([], HEIGHT, WIDTH)
