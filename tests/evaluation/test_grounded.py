"""Grounded conversation's metrics by hand and against COCO's, and the command on the world."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from ans.cli import main
from ans.config import Config
from ans.data.arrow import read_index
from ans.data.index import build
from ans.data.masks import decode, from_array
from ans.data.matching import record_image
from ans.evaluation import grounded
from ans.evaluation.grounded import Conversation
from ans.model.segmenter import Segmenter
from ans.toy import world_grounded
from ans.workspace import Workspace
from tests import pipeline


def boxes(*places: tuple[int, int, int, int]) -> np.ndarray:
    """Masks (n, 10, 10) of boxes (x, y, width, height)."""
    drawn = np.zeros((len(places), 10, 10), bool)
    for mask, (x, y, w, h) in zip(drawn, places, strict=True):
        mask[y : y + h, x : x + w] = True
    return drawn


def conversation(masks: np.ndarray, truth: np.ndarray, phrases: str, true: str) -> Conversation:
    counts, true_counts = ([from_array(mask) for mask in of] for of in (masks, truth))
    return Conversation("a.jpg", 10, 10, phrases, phrases.split(), counts, true, true.split(), true_counts)


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


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder to run in, with params.yaml and the index of six images to learn from, three of val and three of test."""
    values = pipeline.small_values(
        tmp_path / "world", sources__grand_f={"reader": "grand_f", "folder": world_grounded.FOLDER},
        evaluate__grounded=["grand_f_val", "grand_f_test"], evaluate__max_new_tokens=8,
    )  # fmt: skip
    world_grounded.write(tmp_path / "world", Config(values).world.model_copy(update={"grounded_images": 6}))
    work = tmp_path / "work"
    work.mkdir()
    build("grand_f", Config(values), Workspace(work))
    pipeline.write_params(work, values)
    return work


class Speaker:
    """A model that says the same of every image, with the masks that it is told."""

    template = SimpleNamespace(suffix="<end>")

    def __init__(self, masks: dict[str, np.ndarray]) -> None:
        self.masks, self.asked, self.breaks_after = masks, [], 10

    def ask(self, images: list[Image.Image], questions: list[list[str]], _: int) -> list[list[SimpleNamespace]]:
        if len(self.asked) == self.breaks_after:
            raise InterruptedError
        self.asked.append(len(images))
        text = "<p> a square </p> [SEG] and <p> a star </p> [SEG].<end>"
        return [[SimpleNamespace(answer=text, masks=self.masks[hashlib.sha256(image.tobytes()).hexdigest()])] for image in images]


def test_a_variants_files_are_those_of_its_answers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that finds each first phrase exactly, and besides points to a corner: of every image one pair of IoU 1, and whatever the
    corner has with another. Batched and one by one, killed after two batches and continued, the files are the same."""
    config, here = Config(yaml.safe_load((work / "params.yaml").read_text(encoding="utf-8"))), Workspace(work)
    index, root = read_index(here.indexes / "grand_f.arrow"), Path(config.paths.root)
    said, truth = {}, {}
    for record in index.records():
        drawn = np.stack([decode(region.counts, record.height, record.width).astype(bool) for region in record.regions])
        corner = np.zeros((1, *drawn.shape[1:]), bool)
        corner[0, -2:, -2:] = True
        predicted = np.concatenate([drawn[:1], corner])
        said[hashlib.sha256(record_image(root, record).tobytes()).hexdigest()] = predicted
        truth[record.path] = (predicted, drawn)
    here.variant("full").parent.mkdir(parents=True)
    here.variant("full").symlink_to(pipeline.REPOSITORY / "weights" / "tiny")
    speaker = Speaker(said)
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_: speaker)
    grounded.evaluate_grounded(config, "full", here)
    results, predictions = here.results("full"), here.predictions("full")
    for part in ("val", "test"):
        found = json.loads((results / f"grand_f_{part}_grounded.json").read_text(encoding="utf-8"))
        lines = (predictions / f"grand_f_{part}_grounded.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        expected = [grounded.paired_iou(*truth[row["image"]]) for row in rows]
        assert [row["miou"] for row in rows] == expected and found["gcg_miou"] == pytest.approx(np.mean(expected))
        assert min(expected) <= found["gcg_miou_low"] <= found["gcg_miou"] <= found["gcg_miou_high"] <= max(expected)
        assert (found["n"], found["seg_per_image"], rows[0]["phrases"]) == (3, 2, ["a square", "a star"])
    assert speaker.asked == [3, 3] and not list((work / "runs").glob("evaluate-grounded*"))

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for folder in (results, predictions) for path in folder.glob("*_grounded.json*")}

    whole = files()
    small = config.changed({"evaluate.tokens_per_batch": 1})
    speaker.asked, speaker.breaks_after = [], 2
    with pytest.raises(InterruptedError):
        grounded.evaluate_grounded(small, "full", here)
    speaker.breaks_after = 10
    grounded.evaluate_grounded(small, "full", here)
    assert speaker.asked == [1] * 6, "what was done before is kept"
    different = {name for name, content in files().items() if content != whole[name]}
    assert different == {"protocol_grounded.json"}, "which says how many tokens a batch had"


def test_other_indexes_are_refused(work: Path) -> None:
    index = read_index(Workspace(work).indexes / "grand_f.arrow")
    record = next(index.records())
    several = [replace(one, expressions=[replace(one.expressions[0], raw=f"{i}")]) for i, one in enumerate(record.regions)]
    other = replace(record, regions=several)
    strange = SimpleNamespace(path="x.arrow", splits=lambda: {"train"}, records=lambda: [other])
    with pytest.raises(ValueError, match=r"x\.arrow: .* has no caption with phrases; this is no index of reader grand_f"):
        grounded.rows_of_part(strange, "train")  # type: ignore[arg-type]


def test_the_command(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(work)
    model = ["--model", str(pipeline.REPOSITORY / "weights" / "tiny"), "--max-new-tokens", "8"]
    main(["ground", "grand_f_val", *model, "--limit", "2", "--save", "said.jsonl"])
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 2 and 0 <= found["gcg_miou"] <= 1
    assert len((work / "said.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    with pytest.raises(ValueError, match="no region of split 'dev'; its splits are test, train, val"):
        main(["ground", "grand_f_dev", *model])
