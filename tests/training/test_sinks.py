"""Displays: every step once, settings and pictures beside them, and no end of a run for want of one. DVCLive itself, and TensorBoard
and trackio where they are installed."""

import json
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from ans.training.hooks.curves import Curves
from ans.training.hooks.sinks import Sinks

SETTINGS = {"lr": 0.1, "groups": ["lora", "fcs"], "ema": {"decay": 0.99}, "validation": None}
PICTURES = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]


class Tracker:
    """Stands for accelerate's; fails at the call named by `fails`."""

    fails: str | None = None
    opened: "list[Tracker]" = []

    def __init__(self, run_name: str, **arguments: Any) -> None:
        self.run_name, self.arguments, self.calls = run_name, arguments, list[tuple[Any, ...]]()
        self.opened.append(self)

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.fails:
            raise ConnectionError("no display")

    def start(self) -> None:
        self._note("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("settings", values)

    def log(self, values: dict[str, float], step: int) -> None:
        self._note("log", step, values)

    def finish(self) -> None:
        self._note("finish")


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Tracker]]:
    made = {name: type(name, (Tracker,), {"opened": []}) for name in ("tensorboard", "wandb", "trackio", "dvclive")}
    for name, kind in made.items():
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, kind)
    return made


def begin(names: Sequence[str], folder: Path, curves: Curves | None = None) -> Sinks:
    return Sinks(names, folder / "live", folder / "logs", "train-1", SETTINGS, curves or Curves(None))


def run(sinks: Sinks, first: int, last: int) -> None:
    """Steps of a training, with pictures after every third; it is left as a kill would leave it."""
    for step in range(first, last + 1):
        values = {"loss": 1 / step}
        sinks.curves.after(step, values)
        if step % 3 == 0:
            sinks.show(step, "answers", PICTURES)
        sinks.after(step, values)


def continued(name: str, folder: Path) -> None:
    """Killed at step 7, when the last state was that of step 4, and continued to step 9."""
    names, killed = [name], begin([name], folder)
    run(killed, 1, 7)
    if name == "trackio":  # its thread would still write, which one of a killed process cannot
        killed.finish()
    curves = Curves(None)
    curves.load_state_dict({"rows": {"loss": [(step, 1 / step) for step in range(1, 5)]}})
    sinks = begin(names, folder, curves)
    run(sinks, 5, 9)
    sinks.finish()


def test_every_step_goes_to_each_with_the_settings(trackers: dict[str, type[Tracker]], tmp_path: Path) -> None:
    names = [name for name in trackers if name != "trackio"]  # which is asked what it has
    sinks = begin(names, tmp_path)
    run(sinks, 1, 2)
    sinks.finish()
    for name in names:
        (tracker,) = trackers[name].opened
        logged = [("log", step, {"loss": 1 / step}) for step in (1, 2)]
        settings = tracker.calls[1][1]
        assert tracker.calls == [("start",), ("settings", settings), *logged, ("finish",)]
        if name == "tensorboard":
            assert settings == {"lr": 0.1, "groups": "['lora', 'fcs']", "ema.decay": 0.99, "validation": "None"}
        else:
            assert settings == SETTINGS


def test_a_continued_run_says_where(trackers: dict[str, type[Tracker]], tmp_path: Path) -> None:
    run(begin(["tensorboard", "wandb", "dvclive"], tmp_path), 41, 42)
    arguments = {name: kind.opened[0].arguments for name, kind in trackers.items() if kind.opened}
    assert arguments["tensorboard"]["purge_step"] == 41 and trackers["tensorboard"].opened[0].run_name == "train-1"
    assert (arguments["wandb"]["id"], arguments["wandb"]["resume"]) == ("train-1", "allow")
    assert arguments["dvclive"]["resume"] is True


class Showing(Tracker):
    """One that takes pictures; DVCLive's are handed to what it wraps."""

    @property
    def tracker(self) -> Any:
        return SimpleNamespace(log_image=lambda name, picture: self._note("image", name, picture))

    def log_images(self, values: dict[str, Any], step: int, **more: Any) -> None:
        self._note("images", step, values, more)


def test_pictures_go_to_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = {name: type(name, (Showing,), {"opened": []}) for name in ("tensorboard", "wandb", "trackio", "dvclive")}
    gone: list[str] = []
    runs = [SimpleNamespace(name=name, delete=lambda name=name: gone.append(name)) for name in ("train-0", "train-1")]
    trackio: Any = SimpleNamespace(Image=lambda picture: ("shown", picture), Api=lambda: SimpleNamespace(runs={"ans": runs}.get))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for name, kind in kinds.items():
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, kind)
    curves = Curves(None)
    curves.load_state_dict({"rows": {"loss": [(1, 1.0), (2, 0.5)], "rare": [(2, 7.0)]}})
    sinks = begin([*kinds], tmp_path, curves)
    run(sinks, 3, 3)
    found = {name: kind.opened[0].calls[2:] for name, kind in kinds.items()}
    logged = ("log", 3, {"loss": 1 / 3})
    names = ["answers/0", "answers/1"]
    _, step, arrays, more = found["tensorboard"][0]
    assert step == 3 and more == {"dataformats": "NHWC"} and list(arrays) == names
    assert all((array == np.asarray(picture)[None]).all() for array, picture in zip(arrays.values(), PICTURES, strict=True))
    assert found["tensorboard"][1:] == [logged]
    assert found["wandb"] == [("images", 3, {name: [of] for name, of in zip(names, PICTURES, strict=True)}, {}), logged]
    earlier = [("log", 1, {"loss": 1.0}), ("log", 2, {"loss": 0.5, "rare": 7.0})]
    shown = ("log", 3, {name: ("shown", of) for name, of in zip(names, PICTURES, strict=True)})
    assert found["trackio"] == [*earlier, shown, logged] and gone == ["train-1"]
    assert found["dvclive"] == [("image", f"{name}/000003.png", of) for name, of in zip(names, PICTURES, strict=True)] + [logged]
    assert {name: kind.opened[0].run_name for name, kind in kinds.items()} == dict.fromkeys(kinds, "ans") | {
        "tensorboard": "train-1"
    }
    assert {name: kind.opened[0].arguments for name, kind in kinds.items()} == {
        "dvclive": {"dir": str(tmp_path / "live"), "resume": True, "save_dvc_exp": False, "dvcyaml": None},
        "tensorboard": {"logging_dir": tmp_path / "logs", "purge_step": 3},
        "trackio": {"name": "train-1"},
        "wandb": {"id": "train-1", "resume": "allow", "dir": str(tmp_path / "logs")},
    }
    assert (tmp_path / "logs").is_dir()
    assert (tmp_path / "live/plots/metrics/rare.tsv").read_text() == "step\trare\n2\t7.0\n"
    assert (tmp_path / "live/plots/metrics/loss.tsv").read_text() == "step\tloss\n1\t1.0\n2\t0.5\n", "not yet that of step 3"


@pytest.mark.parametrize("call", ["start", "settings", "log", "finish"])
def test_one_that_fails_is_left_out(
    trackers: dict[str, type[Tracker]], tmp_path: Path, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    trackers["wandb"].fails = call
    sinks = begin(["wandb", "tensorboard"], tmp_path)
    run(sinks, 1, 2)
    sinks.finish()
    assert caplog.text.count("launch.log_with: wandb is left out from here on: ConnectionError: no display") == 1
    assert [of[0] for of in trackers["tensorboard"].opened[0].calls] == ["start", "settings", "log", "log", "finish"]
    calls = [of[0] for of in trackers["wandb"].opened[0].calls]
    assert calls.count(call) == 1 and calls[-1] == call


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "wandb", None)
        run(begin(["wandb"], tmp_path), 1, 2)
    assert caplog.text.count("wandb is left out") == 1 and "ModuleNotFoundError" in caplog.text


def test_one_that_cannot_show_pictures_is_left_out(
    trackers: dict[str, type[Tracker]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(begin(["wandb"], tmp_path), 1, 4)  # the one here has no `log_images`
    assert caplog.text.count("launch.log_with: wandb is left out from here on: AttributeError") == 1


# ------------------------------------------------------------------------------------------------------------ themselves


def test_dvclive_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    continued("dvclive", tmp_path)
    assert not caplog.text
    curve = "step\tloss\n" + "".join(f"{step}\t{1 / step}\n" for step in range(1, 10))
    assert (tmp_path / "live" / "plots" / "metrics" / "loss.tsv").read_text() == curve
    assert json.loads((tmp_path / "live" / "metrics.json").read_text()) == {"loss": 1 / 9, "step": 9}
    for number in (0, 1):
        shown = sorted((tmp_path / "live" / "plots" / "images" / "answers" / str(number)).iterdir())
        assert [path.name for path in shown] == ["000003.png", "000006.png", "000009.png"]
    run(begin(["dvclive"], tmp_path), 1, 1)  # another run, from its beginning
    assert (tmp_path / "live" / "plots" / "metrics" / "loss.tsv").read_text() == "step\tloss\n1\t1.0\n"
    assert not (tmp_path / "live" / "plots" / "images").exists()
    assert sorted(os.listdir(tmp_path)) == ["live"], "no dvc.yaml, no repository, no experiment"


def test_tensorboard_has_every_step_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard", reason="an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    continued("tensorboard", tmp_path)
    assert not caplog.text
    events = EventAccumulator(str(tmp_path / "logs" / "train-1"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 10))
    assert [event.step for event in events.Images("answers/1")] == [3, 6, 9]


def test_trackio_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="an extra")
    continued("trackio", tmp_path)
    assert not caplog.text
    with sqlite3.connect(tmp_path / "trackio" / "ans.db") as database:
        rows = [(step, json.loads(of)) for step, of in database.execute("select step, metrics from metrics order by step")]
    assert [step for step, of in rows if "loss" in of] == list(range(1, 10))
