"""Curves for other displays: every step once, settings beside them, and no end of a run for want of one."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from ans.training.hooks.sinks import Sinks


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


def run(sinks: Sinks, first: int, last: int) -> None:
    for step in range(first, last + 1):
        sinks.after(step, {"loss": 1 / step})
    sinks.finish()


def test_every_step_goes_to_each_with_the_settings(trackers: dict[str, type[Tracker]], tmp_path: Path) -> None:
    run(Sinks(list(trackers), tmp_path / "logs", "train-1", {"lr": 0.1}), 1, 3)
    for kind in trackers.values():
        (tracker,) = kind.opened
        logged = [("log", step, {"loss": 1 / step}) for step in (1, 2, 3)]
        assert tracker.calls == [("start",), ("settings", {"lr": 0.1}), *logged, ("finish",)]


def test_a_continued_run_takes_its_curves_up(trackers: dict[str, type[Tracker]], tmp_path: Path) -> None:
    run(Sinks(list(trackers), tmp_path, "train-1", {}), 41, 42)
    arguments = {name: kind.opened[0].arguments for name, kind in trackers.items()}
    assert arguments["tensorboard"]["purge_step"] == 41 and trackers["tensorboard"].opened[0].run_name == "train-1"
    assert (arguments["wandb"]["id"], arguments["wandb"]["resume"]) == ("train-1", "allow")
    assert (arguments["trackio"]["name"], arguments["trackio"]["resume"]) == ("train-1", "allow")
    assert arguments["dvclive"]["resume"] is True


@pytest.mark.parametrize("call", ["start", "settings", "log", "finish"])
def test_one_that_fails_is_left_out(
    trackers: dict[str, type[Tracker]], tmp_path: Path, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    trackers["wandb"].fails = call
    run(Sinks(["wandb", "trackio"], tmp_path, "train-1", {}), 1, 3)
    assert caplog.text.count("launch.log_with: wandb is left out from here on: ConnectionError: no display") == 1
    assert [of[0] for of in trackers["trackio"].opened[0].calls] == ["start", "settings", "log", "log", "log", "finish"]
    calls = [of[0] for of in trackers["wandb"].opened[0].calls]
    assert calls.count(call) == 1 and calls[-1] == call


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "wandb", None)
        run(Sinks(["wandb"], tmp_path, "train-1", {}), 1, 2)
    assert caplog.text.count("wandb is left out") == 1 and "ModuleNotFoundError" in caplog.text
