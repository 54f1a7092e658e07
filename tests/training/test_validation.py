"""Validation inside training: epochs instead of steps, the best epoch kept, an early end, and all of it across a kill."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ans.config import Config, ConfigError
from ans.formats.pth import read_pth
from ans.model.config import ModelConfig
from ans.training import loop
from ans.training.hooks import validation
from ans.workspace import Workspace
from tests import pipeline
from tests.training.death import die_and_go_on

pytestmark = pytest.mark.slow

VALIDATION = {
    "split": "refcoco_val", "metric": "ciou", "patience": 2, "save_best_only": True, "max_samples": 2, "max_new_tokens": 8,
    "tokens_per_batch": 500,
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("validation"))


@pytest.fixture
def here(work: Path, tmp_path: Path) -> Workspace:
    return pipeline.beside(work, tmp_path)


def config(work: Path, **changes: object) -> Config:
    settings = {
        "train__epochs": 4, "train__loop1__enabled": False, "train__loop2__enabled": False, "train__batch": 4,
        "train__referring__max_images": 6, "train__validation": VALIDATION | changes, "train__lr": 1e-5, "train__gallery": 0,
        "launch__workers": 0, "launch__save_state_seconds": 0.0,
    }  # fmt: skip
    return pipeline.small_config(work.parent / "world", **settings)


def left(at: Workspace) -> dict[str, bytes]:
    files = [*at.training.rglob("*.json"), *at.training.rglob("*.tsv"), *at.checkpoint.glob("*.json")]
    checkpoints = at.checkpoint.glob("*.pth")
    weights = {path.name: {k: t.numpy().tobytes() for k, t in read_pth(path).state.items()} for path in checkpoints}
    return {path.name: path.read_bytes() for path in files} | weights


def scores(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the epochs have these cIoUs, whatever the model says."""
    real, looks = validation.summarise, iter(values)
    monkeypatch.setattr(validation, "summarise", lambda rows: real(rows) | {"ciou": next(looks)})


def test_epochs_and_what_is_left(here: Workspace, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, [0.1, 0.3, 0.2, 0.25])
    states: dict[int, dict[str, torch.Tensor]] = {}
    real = validation.Validation.evaluate

    def evaluate(self):
        states[self.curves.rows["loss"][-1][0]] = {name: p.detach().clone() for name, p in self.trained.items()}
        assert self.model.training
        metrics = real(self)
        assert self.model.training and torch.is_grad_enabled()
        return metrics

    monkeypatch.setattr(validation.Validation, "evaluate", evaluate)
    loop.train(config(work), here)
    history = json.loads((here.training / "history.json").read_text())
    assert [(row["number"], row["step"], row["val_ciou"]) for row in history] == [
        (1, 2, 0.1),
        (2, 4, 0.3),
        (3, 6, 0.2),
        (4, 8, 0.25),
    ]
    assert all(0 <= row["val_seg_rate"] <= 1 and row["loss"] > 0 for row in history)
    losses = [float(line.split()[1]) for line in (here.training / "plots" / "loss.tsv").read_text().splitlines()[1:]]
    assert history[1]["loss"] == pytest.approx(sum(losses[2:4]) / 2, rel=1e-5)
    assert (here.training / "plots" / "val_ciou.tsv").read_text() == "step\tval_ciou\n2\t0.1\n4\t0.3\n6\t0.2\n8\t0.25\n"
    assert [path.name for path in here.checkpoint.glob("*.pth")] == ["best.pth"]
    assert json.loads((here.checkpoint / "manifest.json").read_text())["best"] == history[1]
    kept, keys = read_pth(here.checkpoint).state, ModelConfig.from_folder(here.base).keys
    for name, tensor in states[4].items():
        assert torch.equal(kept[keys.trained_name(name)], tensor)
    assert any(not torch.equal(states[4][name], states[8][name]) for name in states[4])


def test_an_early_end(here: Workspace, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, [0.3, 0.3, 0.2, 0.9])
    loop.train(config(work, save_best_only=False), here)
    assert [row["number"] for row in json.loads((here.training / "history.json").read_text())] == [1, 2, 3]
    steps = {path.name: torch.load(path, weights_only=True)["meta"]["step"] for path in here.checkpoint.glob("*.pth")}
    assert steps == {"best.pth": 2, "last.pth": 6}


@pytest.fixture(scope="module")
def uninterrupted(work: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    at = pipeline.beside(work, tmp_path_factory.mktemp("uninterrupted"))
    loop.train(config(work, patience=1), at)
    return left(at)


def test_killed_and_continued(here: Workspace, work: Path, uninterrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every rename and every write of tensors: the same history, the same best tensors, the same early end."""
    deaths = die_and_go_on(lambda: loop.train(config(work, patience=1), here), monkeypatch, stride=6)
    assert deaths > 12
    assert left(here) == uninterrupted


def test_with_the_loops_every_so_many_steps(here: Workspace, work: Path) -> None:
    """The dual loop, without epochs: curves of the split, pictures of the same answers each time, and the tensors of the better look
    are what is converted."""
    settings = {"train__validation": VALIDATION | {"every": 2}, "train__steps": 5, "train__epochs": None, "train__gallery": 0}
    shown = {"launch__log_with": ["dvclive"], "launch__workers": 0}
    loop.train(pipeline.small_config(work.parent / "world", **settings, **shown), here)
    for number in (0, 1):  # of two images
        pictures = sorted((here.live / "plots" / "images" / "answers" / str(number)).iterdir())
        assert [path.name for path in pictures] == ["000002.png", "000004.png"]
        sizes = set()
        for path in pictures:
            with Image.open(path) as picture:
                sizes.add(picture.size)
        ((width, height),) = sizes
        assert height < width <= 700
    live = here.live / "plots" / "metrics"
    assert (live / "val_ciou.tsv").read_text().split()[2::2] == ["2", "4"] and (live / "loop2_caption.tsv").exists()
    history = json.loads((here.training / "history.json").read_text())
    assert [(row["number"], row["step"]) for row in history] == [(1, 2), (2, 4)]
    for name in ("ciou", "seg_rate"):
        rows = (here.training / "plots" / f"val_{name}.tsv").read_text().split()[2:]
        assert rows[::2] == ["2", "4"] and [float(x) for x in rows[1::2]] == pytest.approx([r[f"val_{name}"] for r in history])
    assert "loop2_caption" in json.loads((here.training / "last_steps.json").read_text())
    best = max(history, key=lambda row: row["val_ciou"])
    assert torch.load(here.checkpoint / "best.pth", weights_only=True)["meta"]["step"] == best["step"]


def test_settings_that_cannot_be(work: Path) -> None:
    with pytest.raises(ConfigError, match="validation: evaluates after epochs; set validation.every"):
        pipeline.small_config(work, train__validation=VALIDATION)
    assert config(work).training_indexes() == ("refcoco", "refcoco_plus", "refcocog")
    assert config(work, split="reasonseg_val-all").training_indexes()[-1] == "reasonseg"
