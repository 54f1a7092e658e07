"""Small runs from their beginning to what they leave: which step's tensors lie in which file, what the state of a stopped run brings
back, and what ends a run with an error."""

import gc
import json
import logging
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator

from ans.config import ConfigError
from ans.formats.pth import read_pth
from ans.model.adapters import group_of_parameter
from ans.model.segmenter import Segmenter
from ans.training import loop
from ans.training.hooks.health import Health
from ans.training.hooks.validation import Validation
from ans.workspace import Workspace
from tests import pipeline

CIOU = {2: 0.1, 4: 0.3, 6: 0.2}
"""What the validations of these steps say, whatever the model does."""
STEPS = 7
VALIDATION = {
    "split": "refcoco_val", "metric": "ciou", "patience": 3, "every": 2, "save_best_only": False, "max_samples": 2,
    "max_new_tokens": 4, "tokens_per_batch": 500,
}  # fmt: skip
ALONE = {
    "train__loop1__enabled": False, "train__loop2__enabled": False, "train__batch": 2, "train__referring__max_images": 6,
    "launch__workers": 0, "launch__save_state_seconds": 0.0, "train__gallery": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("small_run"))


@pytest.fixture(scope="module", autouse=True)
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def values(work: Path, **changes: object) -> dict[str, Any]:
    settings = ALONE | {"train__steps": STEPS, "train__save_every": 1, "train__keep": None, "train__validation": VALIDATION}
    return pipeline.small_values(work.parent / "world", **settings | changes)


def run(work: Path, at: Workspace, stop_after: int | None = None, **changes: object) -> list[str]:
    """Train with the validations of `CIOU`; with `stop_after` it is asked to stop in that step. Returns what it wrote to the
    terminal between its bars."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        evaluate = Validation.evaluate

        def evaluated(self: Validation) -> dict[str, float]:
            assert self.model.training
            found = evaluate(self)
            assert self.model.training and torch.is_grad_enabled()
            return found | {"val_ciou": CIOU[self.curves.rows["loss"][-1][0]]}

        after = Health.after

        def asked(self: Health, step: int, values: dict[str, float]) -> None:
            after(self, step, values)
            if step == stop_after:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(Validation, "evaluate", evaluated)
        patch.setattr(Health, "after", asked)
        patch.setattr("ans.progress.Progress.write", lambda self, text: said.append(text))
        loop.train(pipeline.Config(values(work, **changes)), at)
    return said


def status(work: Path, at: Workspace, stop_after: int) -> int:
    """How a run ends that is asked to stop."""
    try:
        run(work, at, stop_after)
    except SystemExit as end:
        return end.code  # type: ignore[return-value]
    return 0


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return dict(read_pth(path).state)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def left(at: Workspace) -> dict[str, Any]:
    files = [*at.training.rglob("*.json"), *at.training.rglob("*.tsv"), *at.checkpoint.glob("*.json")]
    weights = {path.name: {k: t.numpy().tobytes() for k, t in tensors(path).items()} for path in at.checkpoint.glob("*.pth")}
    return {path.name: path.read_bytes() for path in files} | weights


@pytest.fixture(scope="module")
def whole(work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[str]]:
    at = pipeline.beside(work, tmp_path_factory.mktemp("whole"))
    return at, run(work, at)


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["meta"]["step"]


def curve(at: Workspace, name: str) -> dict[int, float]:
    rows = [line.split("\t") for line in (at.training / "plots" / f"{name}.tsv").read_text().splitlines()]
    assert rows[0] == ["step", name]
    return {int(step): float(value) for step, value in rows[1:]}


@pytest.mark.second
def test_each_file_has_the_student_of_its_step(whole) -> None:
    at, _ = whole
    names = [f"step_{step:06d}.pth" for step in range(1, STEPS + 1)]
    assert sorted(path.name for path in at.checkpoint.glob("*.pth")) == ["best.pth", "last.pth", *names]
    assert [step_of(at.checkpoint / name) for name in names] == [1, 2, 3, 4, 5, 6, 7]
    steps = [tensors(at.checkpoint / name) for name in names]
    assert not any(same(before, after) for before, after in zip(steps, steps[1:], strict=False)), "each step changes something"
    assert (step_of(at.checkpoint / "best.pth"), step_of(at.checkpoint / "last.pth")) == (4, 7)
    assert same(tensors(at.checkpoint / "best.pth"), steps[3]) and same(tensors(at.checkpoint / "last.pth"), steps[6])


def test_history_and_curves(whole) -> None:
    at, said = whole
    history = json.loads((at.training / "history.json").read_text())
    assert [(row["number"], row["step"], row["val_ciou"]) for row in history] == [(1, 2, 0.1), (2, 4, 0.3), (3, 6, 0.2)]
    losses = curve(at, "loss")
    assert list(losses) == list(range(1, STEPS + 1))
    for row in history:
        step = row["step"]
        assert row["loss"] == pytest.approx((losses[step - 1] + losses[step]) / 2, rel=1e-5)
        assert row.keys() == {"number", "step", "loss", "val_ciou", "val_miou", "val_box_giou", "val_p50", "val_seg_rate"}
    assert curve(at, "val_ciou") == CIOU
    best = history[1]
    manifest = json.loads((at.checkpoint / "manifest.json").read_text())
    assert manifest["best"] == best and manifest["steps"] == STEPS
    metrics = json.loads((at.training / "metrics.json").read_text())
    assert {name: of for name, of in metrics.items() if name.startswith("val_")} == {
        name: of for name, of in best.items() if name.startswith("val_")
    }
    assert metrics["loss"] == pytest.approx(losses[STEPS], rel=1e-5)
    assert [text.partition(":")[0] for text in said] == ["validation 1, step 2", "validation 2, step 4", "validation 3, step 6"]
    assert "ciou 0.300" in said[1]
    assert not list(at.runs.glob("train-*")), "a finished run leaves no state"


def test_the_manifest_counts_what_there_is(whole, work: Path) -> None:
    at, _ = whole
    manifest = json.loads((at.checkpoint / "manifest.json").read_text())
    base = Segmenter.from_pretrained(at.base)
    trained = tensors(at.checkpoint / "last.pth")
    groups = manifest["groups"]
    of_state = {
        state: [sum(of[what] for of in groups.values() if of["state"] == state) for what in ("tensors", "parameters")]
        for state in ("trained", "frozen")
    }
    assert of_state["trained"] == [len(trained), sum(tensor.numel() for tensor in trained.values())]
    own = {name for name, _ in base.named_parameters() if group_of_parameter(base, name) in manifest["trained"]}
    frozen = [p.numel() for name, p in base.named_parameters() if name not in own]
    assert of_state["frozen"] == [len(frozen), sum(frozen)]
    assert all(of["tensors"] > 0 for of in groups.values())
    sizes = [manifest[name] for name in ("processes", "batch", "accumulation", "effective_batch")]
    assert sizes == [1, 2, 1, 2]
    assert manifest["preset"] == "tiny" and manifest["seg_token"] == base.seg_token and list(manifest["tasks"]) == ["referring"]
    assert manifest["tasks"]["referring"]["role"] == "primary" and manifest["train"]["lora"]["targets"]
    titles = [panel["title"] for panel in manifest["panels"]]
    assert len(titles) == len(set(titles)) and {"learning rate", "gradient norm", "validation split", "training IoU"} <= set(
        titles
    )
    drawn = {panel["title"]: panel for panel in manifest["panels"]}
    assert (drawn["gradient norm"]["log"], drawn["learning rate"]["log"]) == (True, False)
    assert (drawn["training IoU"]["share"], drawn["Dice loss"]["share"]) == (True, False)
    for panel in drawn.values():
        for name in panel["curves"]:
            assert (at.training / "plots" / f"{name}.tsv").is_file(), name


def test_a_line_of_progress() -> None:
    values = {"loss": 1.0, "ref_mask": 2.0, "ref_train_iou": 0.5, "lr": 0.1, "grad_norm": 3.0, "iou": 0.25}
    line = {name: of for name, of in loop.shown(values).items() if name != "memory"}
    assert line == {"loss": 1.0, "ref_train_iou": 0.5, "lr": 0.1, "grad_norm": 3.0}


@pytest.mark.slow
def test_stopped_and_continued_it_ends_in_the_same_bits(
    work: Path, tmp_path: Path, whole, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two validations, with the best one behind and with it ahead. A process that stops waits for the others."""
    at, waited = pipeline.beside(work, tmp_path), list[int]()
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: waited.append(1))
    caplog.set_level("INFO")
    for step in (3, 5):
        assert status(work, at, step) == 128 + signal.SIGTERM
        gc.collect()  # the exception's frames hold the run's lock
        assert len(waited) == 1
        waited.clear()
        (folder,) = at.runs.glob("train-*")
        state = torch.load(folder / "state.pt", weights_only=True)
        assert state["step"] == step and state["processes"] == 1
        assert sorted(path.name for path in folder.glob("step_*.pth")) == [f"step_{n:06d}.pth" for n in range(1, step + 1)]
        assert not list(at.checkpoint.glob("*.pth")), "results are for finished runs"
    assert "continued at step 3" in caplog.text and "begun on" not in caplog.text
    torch.save(state | {"processes": 3}, folder / "state.pt")
    run(work, at)
    assert "continued at step 5" in caplog.text and "begun on 3 process(es), continued on 1: the samples" in caplog.text
    assert "continued at step 0" not in caplog.text and "starting a new run" not in caplog.text
    assert caplog.text.count("effective batch 2 = 1 process(es) x 2 images x 1 accumulated") == 3
    assert left(at) == left(whole[0])


@pytest.mark.second
def test_an_early_end_and_the_best_alone(work: Path, tmp_path: Path) -> None:
    at = pipeline.beside(work, tmp_path)
    run(work, at, train__validation=VALIDATION | {"patience": 1, "save_best_only": True}, train__save_every=2, train__keep=1)
    history = json.loads((at.training / "history.json").read_text())
    assert [row["step"] for row in history] == [2, 4, 6] and list(curve(at, "loss")) == [1, 2, 3, 4, 5, 6]
    assert {path.name: step_of(path) for path in at.checkpoint.glob("*.pth")} == {"best.pth": 4, "step_000006.pth": 6}


def test_without_validation(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    at = pipeline.beside(work, tmp_path)
    at.checkpoint.mkdir(parents=True)
    few = {"train__steps": 1, "train__save_every": 0, "train__referring__sources": ["refcoco"]}
    text = yaml.safe_dump(json.loads(json.dumps(values(work, train__validation="none", **few))))
    at.params.write_text(text)
    config = pipeline.Config(yaml.safe_load(text))

    def skipped(self: Health, step: int, values: dict[str, float]) -> None:
        (folder,) = at.runs.glob("train-*")
        (folder / "bad_images_referring").write_text("b.jpg: broken\na.jpg: cut\nb.jpg: broken\n")

    monkeypatch.setattr(Health, "after", skipped)
    caplog.set_level("INFO")
    loop.train(config, at, guard_params=True)
    assert f"note: {', '.join(config.evaluated_alone())} will be evaluated, and" in caplog.text and config.evaluated_alone()
    assert "referring: 2 images could not be used and were skipped:\na.jpg: cut\nb.jpg: broken\n" in caplog.text
    assert [path.name for path in at.checkpoint.glob("*.pth")] == ["last.pth"] and step_of(at.checkpoint / "last.pth") == 1
    assert json.loads((at.training / "history.json").read_text()) == []
    assert json.loads((at.checkpoint / "examples.json").read_text()) == [], "of this task there are none"
    assert "best" not in json.loads((at.checkpoint / "manifest.json").read_text())
    assert not list(at.runs.glob("train-*"))


@pytest.mark.parametrize("changed", ["lr", "nothing readable"])
@pytest.mark.second
def test_other_settings_at_the_end_are_refused_and_the_run_kept(work: Path, tmp_path: Path, caplog, changed: str) -> None:
    at = pipeline.beside(work, tmp_path)
    mine = values(work, train__validation="none", train__steps=1, train__save_every=0, launch__save_state_seconds=600.0)
    config = pipeline.Config(mine)
    other = json.loads(json.dumps(mine))
    other["train"]["lr"] = 1e-5 if changed == "lr" else "much"
    at.params.write_text(yaml.safe_dump(other))
    with pytest.raises(ConfigError, match="its training settings were changed while the run went on"):
        loop.train(config, at, guard_params=True)
    assert not (at.checkpoint / "last.pth").exists()
    (folder,) = at.runs.glob("train-*")
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 1
    gc.collect()
    if changed == "lr":
        caplog.set_level("INFO")
        loop.train(pipeline.Config(other), at, guard_params=True)
        similar = f"starting a new run; unfinished runs with similar settings:\n{folder}, saved "
        assert similar in caplog.text and f" s ago: train.lr was {config.train.lr}, is 1e-05" in caplog.text
        assert step_of(at.checkpoint / "last.pth") == 1 and folder.is_dir(), "a run of its own"
        (at.checkpoint / "last.pth").unlink()
    at.params.write_text(yaml.safe_dump(json.loads(json.dumps(mine))))
    loop.train(config, at, guard_params=True)
    assert step_of(at.checkpoint / "last.pth") == 1 and not folder.exists()


def test_a_frozen_tensor_that_changes_is_an_error(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = pipeline.beside(work, tmp_path)
    made = loop.setup.load_model
    models: list[Segmenter] = []

    def load(*arguments: Any) -> Any:
        model, trained = made(*arguments)
        models.append(model)
        return model, trained

    def spoil(self: Health, step: int, values: dict[str, float]) -> None:
        frozen = next(p for p in models[0].parameters() if not p.requires_grad)
        frozen.data.view(-1)[0] += 1

    monkeypatch.setattr(loop.setup, "load_model", load)
    monkeypatch.setattr(Health, "after", spoil)
    with pytest.raises(RuntimeError, match="a frozen tensor changed during training"):
        loop.train(pipeline.Config(values(work, train__validation="none", train__steps=1, train__save_every=0)), at)
    assert not (at.checkpoint / "last.pth").exists()


@pytest.mark.second
def test_each_step_of_each_process_draws_its_own(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What dropout draws from. And only the first leaves anything."""
    monkeypatch.setattr(logging.getLogger("ans"), "level", logging.getLogger("ans").level)
    connect, seed, seeds = loop.connect, torch.manual_seed, list[int]()

    class Process:
        """An accelerator that is not the first."""

        def __init__(self, real: Any, index: int) -> None:
            self.real, self.process_index, self.is_main_process = real, index, index == 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    def seeded(number: int) -> Any:
        seeds.append(number)
        return seed(number)

    for index in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "connect", lambda precision, index=index: Process(connect(precision), index))
            patch.setattr(loop.torch, "manual_seed", seeded)
            at = pipeline.beside(work, tmp_path / str(index))
            changes = {"train__validation": "none", "train__steps": 2, "train__save_every": 1, "launch__log_with": ["dvclive"]}
            loop.train(pipeline.Config(values(work, **changes)), at)
        left_there = [at.live.exists(), at.training.exists(), at.checkpoint.exists()]
        assert left_there == [index == 0] * 3 and list(at.runs.glob("train-*")) == []
        assert (logging.getLogger("ans").level == logging.ERROR) == (index == 1)
    expected = [hash((pipeline.Config(values(work)).train.seed, step, index)) for index in (0, 1) for step in (0, 1)]
    assert [number for number in seeds if number in expected] == expected
