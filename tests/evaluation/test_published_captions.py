"""Captions by the published scorers, where they are installed (`ans[captions]`)."""

import pytest

from ans.captions import cider
from ans.evaluation.published_captions import scores

CAPTIONS = [
    "a small red circle on the left",
    "the blue star near the blue star",
    "a cup",
    "the large striped green square below the circle",
    "person",
]
REFERENCES = [
    ["the small red circle on the left", "a red circle", "left circle"],
    ["the blue star to the right of the small square", "a blue star"],
    ["the cup on the table"],
    ["the large striped green square", "a large green square below the small circle"],
    ["a man in a red shirt on the left", "person in red"],
]


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="2 captions, 1 lists"):
        scores(["a", "b"], [["a"]])


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(RuntimeError, match=r"pip install 'ans\[captions\]'"):
        scores(["a"], [["a"]])


@pytest.mark.slow
def test_the_published_scores() -> None:
    """Recorded on 2026-11-27 from pycocoevalcap 1.2 with its METEOR 1.5; our own CIDEr-D is the same on plain words."""
    pytest.importorskip("pycocoevalcap")
    found = scores(CAPTIONS, REFERENCES)
    assert found["meteor"] == pytest.approx(0.387276771164954, abs=1e-9)
    assert found["cider"] == pytest.approx(2.6566622227717223, abs=1e-9)
    assert sum(cider(CAPTIONS, REFERENCES)) / len(CAPTIONS) == pytest.approx(found["cider"], abs=1e-9)
