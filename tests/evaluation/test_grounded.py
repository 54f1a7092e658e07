"""Grounded conversation's metrics by hand and against COCO's, and the command on the world."""

import json
from pathlib import Path

import numpy as np
import pytest

from ans.evaluation import grounded
from ans.evaluation.grounded import Conversation


def boxes(*places: tuple[int, int, int, int]) -> np.ndarray:
    """Masks (n, 10, 10) of boxes (x, y, width, height)."""
    drawn = np.zeros((len(places), 10, 10), bool)
    for mask, (x, y, w, h) in zip(drawn, places, strict=True):
        mask[y : y + h, x : x + w] = True
    return drawn


def conversation(masks: np.ndarray, truth: np.ndarray, phrases: str, true: str) -> Conversation:
    return Conversation("a.jpg", phrases, phrases.split(), masks, true, true.split(), truth)


def same(first: str, second: str) -> float:
    return float(first == second)


def test_pairs_are_made_best_first_each_mask_once() -> None:
    truth = boxes((0, 0, 4, 2), (5, 5, 2, 2))
    predicted = boxes((0, 0, 4, 2), (0, 0, 4, 1), (6, 5, 2, 2))
    assert grounded.ious(predicted, truth).tolist() == [[1, 0], [0.5, 0], [0, 2 / 6]]
    assert grounded.paired_iou(predicted, truth) == pytest.approx((1 + 1 / 3) / 2), "the second has no partner left"
    assert grounded.paired_iou(predicted[:1], truth) == 1.0, "what is missed has no pair"
    assert grounded.paired_iou(boxes((9, 9, 1, 1)), truth) == grounded.paired_iou(predicted[:0], truth) == 0.0


def test_a_phrase_is_found_by_its_mask_and_its_words() -> None:
    truth = boxes((0, 0, 4, 2), (5, 5, 2, 2), (0, 8, 4, 2))
    predicted = boxes((5, 5, 2, 2), (0, 0, 4, 1), (0, 8, 1, 1))
    assert grounded.matched(conversation(predicted, truth, "b a c", "a b c"), same) == 2, (
        "IoU 1, 0.5, and 1/8, which is too little"
    )
    assert grounded.matched(conversation(predicted, truth, "b x c", "a b c"), same) == 1
    assert grounded.matched(conversation(predicted, truth, "x a c", "a b c"), same) == 0, (
        "the best pair falls short: no other is tried"
    )
    assert grounded.matched(conversation(predicted, truth, "b", "a b c"), same) == 0, "a mask without a phrase"
    assert grounded.matched(conversation(predicted[:0], truth, "", "a b c"), same) == 0


def test_average_precision_by_hand() -> None:
    """All scores are equal, so COCO takes predictions in their order, image by image: right, wrong | right; 3 true masks. Precision is
    1 up to recall 1/3, and 2/3 up to 2/3; at the 101 recalls 0, 0.01, ...: 34 of 1 and 33 of 2/3."""
    first = conversation(boxes((0, 0, 4, 2), (9, 9, 1, 1)), boxes((0, 0, 4, 2)), "a b", "a")
    second = conversation(boxes((0, 0, 4, 1)), boxes((0, 0, 4, 2), (5, 5, 2, 2)), "a", "a b")
    assert grounded.average_precision([first, second]) == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert grounded.average_precision([conversation(boxes(), boxes((0, 0, 1, 1)), "", "a")]) == 0.0
    found = grounded.metrics([first, second], same)
    assert found["gcg_miou"] == pytest.approx((1 + 0.5) / 2) and found["gcg_recall"] == 2 / 3 and found["seg_per_image"] == 1.5
    assert "gcg_recall" not in grounded.metrics([first])
    with pytest.raises(ValueError, match="no image"):
        grounded.metrics([])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from ans.cli import main
    from ans.config import Config
    from ans.data.index import build
    from ans.toy import world_grounded
    from ans.workspace import Workspace
    from tests import pipeline

    values = pipeline.small_values(tmp_path / "world", sources__grand_f={"reader": "grand_f", "folder": world_grounded.FOLDER})
    world_grounded.write(tmp_path / "world", Config(values).world.model_copy(update={"grounded_images": 6}))
    work = tmp_path / "work"
    work.mkdir()
    build("grand_f", Config(values), Workspace(work))
    pipeline.write_params(work, values)
    monkeypatch.chdir(work)
    model = ["--model", str(pipeline.REPOSITORY / "weights" / "tiny"), "--max-new-tokens", "8"]
    main(["ground", "grand_f_val", *model, "--limit", "2", "--save", "said.jsonl"])
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 2 and 0 <= found["gcg_miou"] <= 1
    assert len((work / "said.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    with pytest.raises(ValueError, match="no region of split 'dev'; its splits are test, train, val"):
        main(["ground", "grand_f_dev", *model])
