"""Hooks one by one, with small stand-ins for the run around them: step checkpoints, validation, pictures, and the run's state."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ans.data import masks
from ans.model.config import ModelConfig
from ans.training import state as states
from ans.training.hooks import Hook, validation
from ans.training.hooks.checkpoints import StepCheckpoints
from ans.training.hooks.curves import Curves
from ans.training.hooks.examples import Examples
from ans.training.hooks.pictures import answer_picture
from ans.training.hooks.validation import Validation
from ans.training.manifest import text as manifest_text
from ans.training.state import ResumeError, ResumeFolder
from tests import pipeline

KEYS = ModelConfig.from_folder(pipeline.REPOSITORY / "weights" / "tiny").keys

# ---------------------------------------------------------------------------------------------------- step checkpoints


@pytest.mark.parametrize(
    ("every", "keep", "found"),
    [(2, 2, [6, 8]), (2, 1, [8]), (3, None, [3, 6, 9]), (1, 3, [7, 8, 9]), (0, 2, []), (4, 9, [4, 8])],
)
def test_the_newest_step_checkpoints_stay(tmp_path: Path, every: int, keep: int | None, found: list[int]) -> None:
    weight = nn.Parameter(torch.zeros(2))
    (tmp_path / "state.pt").write_bytes(b"state")
    manifest = {"preset": "tiny"}
    hook = StepCheckpoints(tmp_path, every, keep, KEYS, {"vlm.mlp1.0.weight": weight}, manifest)
    for step in range(1, 10):
        weight.data.fill_(step)
        hook.after(step, {})
    assert [path.name for path in hook.files()] == [f"step_{step:06d}.pth" for step in found]
    for step, path in zip(found, hook.files(), strict=True):
        content = torch.load(path, weights_only=True)
        (tensor,) = content["state_dict"].values()
        assert tensor.tolist() == [step, step] and content["meta"]["step"] == step and content["meta"]["preset"] == "tiny"
    assert manifest == {"preset": "tiny"} and (tmp_path / "state.pt").is_file()


# ---------------------------------------------------------------------------------------------------------- validation


class Looked:
    """What a validation touches of a run: metrics that are told, and notes of what it showed and said."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        told: Sequence[dict[str, float]],
        process: int = 0,
        processes: int = 1,
        **settings: Any,
    ) -> None:
        given = {"metric": "ciou", "patience": 2, "scope": (), "max_new_tokens": 4, "tokens_per_batch": 9} | settings
        items = [SimpleNamespace(record=SimpleNamespace(path=f"{n}.jpg")) for n in range(6)]
        self.asked: list[Any] = []
        self.shown: list[tuple[int, str, list[str]]] = []
        self.said: list[str] = []
        self.within: list[str] = []
        plan = SimpleNamespace(images=[*range(6)], item=items.__getitem__, batches=self._batches)
        monkeypatch.setattr(validation, "make_plan", lambda *_: plan)
        monkeypatch.setattr(validation, "row_tokens", lambda config, *size: sum(size))
        monkeypatch.setattr(validation, "predict", self._predict)
        left = iter(told)
        self.rows_of_metrics: list[list[dict[str, Any]]] = []

        def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
            self.rows_of_metrics.append(rows)
            return {"ciou": 0.0, "miou": 0.0, "box_giou": 0.0, "p50": 0.0, "seg_rate": 1.0, "gt_pixels": 9.0} | next(left)

        monkeypatch.setattr(validation, "summarise", summarise)
        monkeypatch.setattr(validation, "gather_object", lambda rows: [*rows, {"image_path": "other", "sent": "of another"}])
        monkeypatch.setattr(validation, "record_image", lambda root, record: record.path)
        monkeypatch.setattr(validation, "answer_picture", lambda image, row: f"{image}: {row['sent']}")
        self.weight = nn.Parameter(torch.zeros(1))
        self.curves = Curves(None)
        sinks: Any = SimpleNamespace(names=["dvclive"], show=lambda *shown: self.shown.append(shown))
        self.sinks = sinks
        model: Any = SimpleNamespace(config=None, evaluating=lambda: self._inside("evaluating"), meet=lambda: None)
        accelerator: Any = SimpleNamespace(
            process_index=process, num_processes=processes, autocast=lambda: self._inside("autocast")
        )
        progress: Any = SimpleNamespace(write=self.said.append)
        self.hook = Validation(
            SimpleNamespace(**given), Path(), Path(), model, {"w": self.weight}, 2, self.curves, sinks, progress, accelerator  # type: ignore[arg-type]
        )  # fmt: skip

    def _batches(self, tokens: Any, limit: int) -> list[list[int]]:
        assert (tokens(3, 5), limit) == (3 + 5 + 4, 9)
        return [[0, 1], [2, 3], [4, 5]]

    @contextmanager
    def _inside(self, what: str) -> Iterator[None]:
        self.within.append(what)
        yield
        self.within.remove(what)

    def _predict(self, model: Any, root: Path, items: Sequence[Any], tokens: int) -> list[dict[str, Any]]:
        assert self.within == ["evaluating", "autocast"] and tokens == 4
        paths = [item.record.path for item in items]
        self.asked.append(paths)
        return [{"image_path": path, "sent": f"{number} of {path}"} for path in paths for number in ("first", "second")]

    def go(self, first: int, last: int) -> list[dict[str, float]]:
        found = []
        for step in range(first, last + 1):
            self.weight.data.fill_(step)
            values = {"loss": float(step)}
            self.curves.after(step, dict(values))
            self.hook.after(step, values)
            found.append(values)
        return found


def test_the_best_is_the_first_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Looked(monkeypatch, [{"ciou": c} for c in (0.2, 0.4, 0.4, 0.3)])
    values = looked.go(1, 5)
    best = looked.hook.best
    assert best is not None and best["row"]["step"] == 4 and best["trained"]["w"].tolist() == [4.0]
    assert not looked.hook.over, "one without a better one; two are waited for"
    looked.go(6, 7)
    assert looked.hook.best["row"]["number"] == 2 and not looked.hook.over
    looked.go(8, 8)
    assert looked.hook.over and looked.hook.best["trained"]["w"].tolist() == [4.0], "a copy, which later steps leave alone"
    assert [(row["number"], row["step"], row["loss"]) for row in looked.hook.history] == [
        (1, 2, 1.5),
        (2, 4, 3.5),
        (3, 6, 5.5),
        (4, 8, 7.5),
    ]
    assert [sorted(of) for of in values[:2]] == [
        ["loss"],
        ["loss", "val_box_giou", "val_ciou", "val_miou", "val_p50", "val_seg_rate"],
    ], "what the displays get"
    assert looked.curves.rows["val_ciou"] == [(2, 0.2), (4, 0.4), (6, 0.4), (8, 0.3)]
    metrics = "val_ciou 0.400, val_miou 0.000, val_box_giou 0.000, val_p50 0.000, val_seg_rate 1.000"
    assert looked.said[1] == f"validation 2, step 4: {metrics}"
    looked.hook.finish()
    assert looked.curves.best == {"val_ciou": 0.4, "val_miou": 0.0, "val_box_giou": 0.0, "val_p50": 0.0, "val_seg_rate": 1.0}


def test_the_metric_that_is_asked_for_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Looked(monkeypatch, [{"ciou": 0.9, "miou": 0.1}, {"ciou": 0.1, "miou": 0.2}], metric="miou")
    looked.go(1, 4)
    assert looked.hook.best is not None and looked.hook.best["row"]["step"] == 4


def test_nothing_is_over_or_best_before_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Looked(monkeypatch, [], patience=0)
    looked.go(1, 1)
    looked.hook.finish()
    assert not looked.hook.over and looked.hook.best is None and looked.curves.best == {}
    plain = Hook()
    assert not plain.over and plain.state_dict() == {}


def test_processes_share_the_batches_and_all_rows_count(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Looked(monkeypatch, [{}])
    alone.go(1, 2)
    assert alone.asked == [["0.jpg", "1.jpg"], ["2.jpg", "3.jpg"], ["4.jpg", "5.jpg"]] and len(alone.rows_of_metrics[0]) == 12
    asked = []
    for process in (0, 1):
        one = Looked(monkeypatch, [{}], process, 2)
        one.hook.evaluate()
        asked += one.asked
        assert one.rows_of_metrics[0][-1]["image_path"] == "other"
    assert asked == [["0.jpg", "1.jpg"], ["4.jpg", "5.jpg"], ["2.jpg", "3.jpg"]]


def test_pictures_are_of_the_first_answers_and_only_for_displays(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Looked(monkeypatch, [{}, {}])
    looked.go(1, 2)
    assert looked.shown == [(2, "answers", [f"{n}.jpg: first of {n}.jpg" for n in range(4)])]
    looked.sinks.names = []
    looked.go(3, 4)
    assert len(looked.shown) == 1


def test_a_continued_validation_knows_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Looked(monkeypatch, [{"ciou": 0.5}, {"ciou": 0.4}])
    before.go(1, 4)
    after = Looked(monkeypatch, [{"ciou": 0.45}])
    after.hook.load_state_dict(before.hook.state_dict())
    after.curves.rows = {"loss": [(step, float(step)) for step in range(1, 5)]}
    after.go(5, 6)
    assert after.hook.over and after.hook.best is not None and after.hook.best["trained"]["w"].tolist() == [2.0]
    assert [row["number"] for row in after.hook.history] == [1, 2, 3]


# ------------------------------------------------------------------------------------------------------------ pictures


def row_of(height: int, width: int, **changes: Any) -> dict[str, Any]:
    truth, predicted = np.zeros((height, width), bool), np.zeros((height, width), bool)
    truth[:, : width // 2] = True
    predicted[height // 2 :] = True
    row = {"height": height, "width": width, "gt_counts": masks.from_array(truth), "counts": masks.from_array(predicted)}
    return row | {"sent": "the left one", "iou": 0.25, "has_seg": True} | changes


@pytest.mark.parametrize(
    ("size", "each"), [((640, 480), (320, 240)), ((100, 60), (100, 60)), ((300, 1280), (75, 320)), ((2000, 2), (320, 1))]
)
def test_truth_and_prediction_side_by_side(size: tuple[int, int], each: tuple[int, int]) -> None:
    picture = answer_picture(Image.new("RGB", size, (100, 100, 100)), row_of(size[1], size[0]))
    assert picture.mode == "RGB" and picture.size == (2 * each[0], each[1] + 28)
    if each[1] == 1:
        return
    grey, green, orange = (100, 100, 100), (45, 131, 108), (162, 96, 45)  # 0.45 of the image, 0.55 of the colour
    left, right, top, bottom = each[0] // 4, 3 * each[0] // 4, each[1] // 4, 3 * each[1] // 4
    found = [picture.getpixel((x, y)) for y in (top, bottom) for x in (left, right, each[0] + left, each[0] + right)]
    assert found == [green, grey, grey, grey, green, grey, orange, orange]


def test_the_answer_and_its_score_stand_below() -> None:
    image = Image.new("RGB", (200, 100))

    def lines(**changes: Any) -> tuple[np.ndarray, np.ndarray]:
        below = np.asarray(answer_picture(image, row_of(100, 200, **changes)))[100:]
        return below[:14], below[14:]

    sent, score = lines()
    for line in (sent, score):
        assert (line[:, 300:] == 255).all() and (line < 60).any() and (line[:, :2] == 255).all()
    other = lines(sent="the right one")
    assert (other[0] != sent).any() and (other[1] == score).all()
    for changes in ({"iou": 0.35}, {"has_seg": False}):
        other = lines(**changes)
        assert (other[0] == sent).all() and (other[1] != score).any()
    assert (lines(iou=0.251)[1] == score).all(), "two digits"
    assert (lines(sent="die Lampe \u00fc")[0] == lines(sent="die Lampe ?")[0]).all()


# ------------------------------------------------------------------------------------------------- curves and examples


def test_metrics_are_the_main_curves(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    main = ["loss", "grad_norm", "cosine_all", "ref_train_iou", "val_miou"]
    for step in range(1, 31):
        curves.after(step, dict.fromkeys([*main, "lr", "ref_mask", "cosine_lora", "lossy"], step / 7))
    curves.finish()
    assert json.loads((tmp_path / "metrics.json").read_text()) == dict.fromkeys(main, pytest.approx(29 / 7))
    assert (tmp_path / "plots" / "lr.tsv").read_text().splitlines()[-1] == f"30\t{30 / 7:.6g}"
    assert (tmp_path / "plots" / "lr.tsv").read_text().count("\n") == 31


def test_another_process_keeps_curves_and_writes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curves = Curves(None)
    for step in (1, 2):
        curves.after(step, {"loss": float(step)})
    curves.finish()
    assert curves.rows == {"loss": [(1, 1.0), (2, 2.0)]} and not list(tmp_path.iterdir())
    other = Curves(None)
    other.load_state_dict(curves.state_dict())
    assert other.rows == curves.rows


def test_examples_go_on_and_are_of_the_first_process() -> None:
    assert not Examples(3, 10, first_process=False).wanted("loop1")
    one, other = Examples(3, 31, True), Examples(3, 31, True)
    one.wanted("loop1")
    one.after(20, {})
    one.left["loop1"] = [27]
    other.load_state_dict(one.state_dict())
    assert (other.step, other.left, other.kept) == (20, {"loop1": [27]}, [])
    assert not other.wanted("loop1") and other.wanted("loop2")


# ------------------------------------------------------------------------------------------------------------ the state

WHAT = {"preset": "tiny", "train.lr": 0.1, "the base weights": "a" * 64}


def lock(folder: ResumeFolder) -> None:
    """Lock a run that writes its results into a folder of its own."""
    folder.lock(folder.folder.parent.with_name("results") / folder.folder.name)


def test_a_run_is_found_by_what_decides_it(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path, WHAT, {"code": "1"}, 60.0)
    assert folder.folder == ResumeFolder(tmp_path, dict(reversed(WHAT.items())), {"code": "2"}, 0.0).folder
    assert folder.folder != ResumeFolder(tmp_path, WHAT | {"train.lr": 0.2}, {}, 60.0).folder
    digits = folder.folder.name.removeprefix("train-")
    assert len(digits) == 12 and set(digits) <= set("0123456789abcdef")
    assert folder.load() is None
    lock(folder)
    with pytest.raises(ResumeError, match=r"train-.*: this run is locked by another training; wait for it or stop it"):
        lock(ResumeFolder(tmp_path, WHAT, {}, 60.0))


def test_a_lock_clears_away_what_a_killed_run_left(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path, WHAT, {}, 60.0)
    folder.folder.mkdir()
    for name in (".1234.state.pt", "bad_images_referring", "bad_images_loop1", "step_000002.pth", "state.pt"):
        (folder.folder / name).write_bytes(b"")
    assert folder.bad_images("loop1") == folder.folder / "bad_images_loop1"
    lock(folder)
    assert sorted(os.listdir(folder.folder)) == ["lock", "run.json", "state.pt", "step_000002.pth"]
    assert json.loads((folder.folder / "run.json").read_text()) == WHAT
    for _ in range(2):
        folder.remove()
    assert not list(tmp_path.iterdir())
    lock(again := ResumeFolder(tmp_path, WHAT, {}, 60.0))
    again.remove()


def test_what_decides_a_run(tmp_path: Path) -> None:
    """Every setting of the training and of its tasks, the preset, and the contents of what is read; of how the effective batch is
    shared out, nothing."""
    for name in ("z.arrow", "a.arrow"):
        (tmp_path / name).write_text(name)
    config = pipeline.small_config(pipeline.REPOSITORY, train__batch=3, train__accumulation=5)
    found = states.describe(config, "b" * 64, sorted(tmp_path.iterdir(), reverse=True), {"x.json": "c"}, 2)
    assert found == json.loads(json.dumps(found))
    assert found["the effective batch"] == 30 and found["preset"] == config.preset and found["the base weights"] == "b" * 64
    assert found["the contents of a.arrow"] == hashlib.sha256(b"a.arrow").hexdigest() != found["the contents of z.arrow"]
    assert found["the contents of x.json"] == "c"
    assert found["train.lr"] == config.train.lr and found["train.lora.rank"] == config.train.lora.rank
    assert found["train.schedule"] == config.train.schedule
    settings = {f"train.{name}" for name in type(config.train).model_fields} - {"train.batch", "train.accumulation"}
    settings |= {f"train.{task}.{name}" for task, of in config.tasks.items() for name in type(of).model_fields}
    assert all(any(key == name or key.startswith(f"{name}.") for key in found) for name in settings)
    assert not {"train.batch", "train.accumulation"} & found.keys()
    assert {key.split(".")[1] for key in found if key.startswith("train.")} == {name.split(".")[1] for name in settings}


def test_a_run_is_continued_under_its_conditions(tmp_path: Path) -> None:
    begun = ResumeFolder(tmp_path, WHAT, {"code": "1", "cache": "on"}, 60.0)
    lock(begun)
    content = {"step": 7, "w": [torch.ones(2)], "nested": ({"x": torch.zeros(1)}, 3)}
    begun.save(content, wait=True)
    state = ResumeFolder(tmp_path, WHAT, {"code": "1", "cache": "on"}, 60.0).load()
    assert state is not None and state["step"] == 7 and state["conditions"] == {"code": "1", "cache": "on"}
    assert torch.equal(state["w"][0], torch.ones(2)) and torch.equal(state["nested"][0]["x"], torch.zeros(1))
    assert state["nested"][1] == 3
    with pytest.raises(ResumeError, match="started with cache on, now it is off.*continue at step 7, or remove"):
        ResumeFolder(tmp_path, WHAT, {"code": "1", "cache": "off"}, 60.0).load()


def test_similar_runs_are_named_with_what_differs(tmp_path: Path) -> None:
    mine = WHAT | {"a": 1, "b": 2, "c": 3}
    for number, other in enumerate(
        (mine | {"train.lr": 0.2, "the base weights": "b" * 64}, mine | {"a": 0, "b": 0, "c": 0}, WHAT | {"train.lr": 5})
    ):
        of = ResumeFolder(tmp_path, other, {}, 60.0)
        lock(of)
        if number < 3:
            of.save({"step": 1}, wait=True)
    unsaved = ResumeFolder(tmp_path, mine | {"preset": "other"}, {}, 60.0)
    lock(unsaved)
    folder = ResumeFolder(tmp_path, mine, {}, 60.0)
    lock(folder)
    folder.save({"step": 1}, wait=True)
    lines = folder.similar()
    assert len(lines) == 2, "four differences are another run, and what has no state is none"
    assert any(line.endswith("ago: a was 0, is 1; b was 0, is 2; c was 0, is 3") for line in lines)
    assert any(line.endswith(f"ago: the base weights was {'b' * 12}, is {'a' * 12}; train.lr was 0.2, is 0.1") for line in lines)
    assert all(line.startswith(f"{tmp_path}/train-") and re.search(r", saved \d s ago: ", line) for line in lines)


def test_a_state_is_due_after_its_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(states.time, "monotonic", lambda: now)
    always, folder = ResumeFolder(tmp_path, {"a": 1}, {}, 0.0), ResumeFolder(tmp_path, WHAT, {}, 60.0)
    assert always.due() and not folder.due()
    always.cost = 100.0
    assert always.due()
    now = 1059.0
    assert not folder.due()
    now = 1060.0
    assert folder.due()
    lock(folder)
    folder.save({"step": 1}, wait=True)
    assert not folder.due()
    now = 1119.0
    assert not folder.due()
    now = 1120.0
    assert folder.due()
    folder.cost = 2.0  # at most two hundredths of the time go into it
    assert not folder.due()
    now = 1160.0
    assert folder.due()


def test_a_state_that_could_not_be_written_is_said_at_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ResumeFolder(tmp_path, WHAT, {}, 60.0)
    lock(folder)
    threads = []

    def full(path: Path, content: Any) -> None:
        threads.append((threading.current_thread().name, path.name))
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(states, "save_durably", full)
        folder.save({"step": 1})
        with pytest.raises(OSError, match="full"):
            folder.save({"step": 2})
        with pytest.raises(OSError, match="full"):
            folder.save({"step": 3}, wait=True)
    assert threads == [("state", "state.pt")] * 2
    folder.save({"step": 4}, wait=True)
    state = folder.load()
    assert state is not None and state["step"] == 4
    folder.wait()  # said once


# --------------------------------------------------------------------------------------------------------- the manifest


def test_the_manifest_as_text() -> None:
    manifest = {
        "groups": {"vlm": {"state": "frozen", "tensors": 12, "parameters": 3456789},
            "lora (trained)": {"state": "trained", "tensors": 4, "parameters": 96}},
        "effective_batch": 24, "processes": 2, "batch": 4, "accumulation": 3, "samples": {"refcoco": 1234, "sav": 5},
        "left_out_evaluated_images": 678,
    }  # fmt: skip
    assert manifest_text(manifest).splitlines() == [
        "vlm                     frozen      12 tensors    3,456,789 parameters",
        "lora (trained)          trained      4 tensors           96 parameters",
        "effective batch 24 = 2 process(es) x 4 images x 3 accumulated",
        "    1,234 samples of refcoco",
        "        5 samples of sav",
        "      678 images left out, because they are in an evaluated split",
    ]
