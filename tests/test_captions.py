"""Caption metrics against hand-computed numbers and numbers recorded from the official CIDEr code."""

import math

import pytest

from ans.captions import cider, exact, token_accuracy, words


def test_words() -> None:
    assert words("The dog's well-known, RED ball (no. 2).") == ["the", "dog's", "well-known", "red", "ball", "no", "2"]
    assert words(" ... ") == []


def test_exact_and_token_accuracy_by_hand() -> None:
    references = ["The small red circle.", "a red circle on the left"]
    assert exact("the small RED circle", references) and not exact("small red circle", references)
    assert token_accuracy("the small red circle", references) == (4, 4)
    assert token_accuracy("a red square on the left", references) == (5, 6)
    assert token_accuracy("the small red", references) == (3, 4)  # a missing word counts
    assert token_accuracy("the small red circle there", references) == (4, 5)  # and so does one too many
    assert token_accuracy("", references) == (0, 4) and token_accuracy("", [""]) == (0, 1)


def test_cider_by_hand() -> None:
    """Two captions; every n-gram below is in one document, so that idf is log 2 throughout and cancels in each cosine."""
    references = [["a b"], ["c d"]]
    assert cider(["a b", "c d"], references) == pytest.approx([5.0, 5.0])  # 1 for words and for pairs, 0 for 3 and 4 words
    # one of two words: cosine 1/2 for words, no pair
    assert cider(["a c", ""], references) == pytest.approx([10 / 4 * 0.5, 0.0])
    # "b" twice is clipped to once: words (1 + 1) / sqrt(5 * 2), pairs 1 / sqrt(2 * 1); one pair longer: exp(-1 / 72)
    by_hand = 10 / 4 * (2 / math.sqrt(10) + 1 / math.sqrt(2)) * math.exp(-1 / 72)
    assert cider(["a b b", ""], references)[0] == pytest.approx(by_hand)
    # "the" is in both documents, so its idf is 0 and it changes nothing but the length; pairs with it count
    assert cider(["the a", "the"], [["the a"], ["the c"]]) == pytest.approx([5.0, 0.0])
    # two references: the mean
    assert cider(["a b", "x"], [["a b", "e f"], ["c d"]])[0] == pytest.approx(2.5)
    assert cider(["a b"], [["a b"]]) == [0.0], "one caption: idf is 0"


def test_cider_is_the_official_one() -> None:
    """Recorded on 2026-11-21 from the algorithm of tylin/coco-caption, cider_scorer.py, given the same words."""
    captions = [
        "a small red circle on the left",
        "the blue star near the blue star",
        "a cup",
        "the large striped green square below the circle",
        "person",
    ]
    references = [
        ["the small red circle on the left", "a red circle", "left circle"],
        ["the blue star to the right of the small square", "a blue star"],
        ["the cup on the table"],
        ["the large striped green square", "a large green square below the small circle"],
        ["a man in a red shirt on the left", "person in red"],
    ]
    official = [4.023652882197251, 1.4016838740770825, 1.5077612176696817, 5.574587048507089, 0.7756260914075066]
    assert cider(captions, references) == pytest.approx(official, abs=1e-12)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="2 captions, 1 lists"):
        cider(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="and none may be empty"):
        cider(["a"], [[]])
