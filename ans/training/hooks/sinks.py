"""Every step's values to where people watch them besides DVC, by accelerate's trackers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from ans.training.hooks import Hook

log = logging.getLogger(__name__)

PROJECT = "ans"


class Sinks(Hook):
    """Opens the trackers `names` at the first step and hands them each step's values. One that fails is left out from then on, with
    a warning: no run ends for want of its display.

    `run`: the run's name, by which a continued run finds its curves again. `folder`: for files. `settings`: shown beside the curves.
    """

    def __init__(self, names: Sequence[str], folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        self.names, self.folder, self.run, self.settings = list(names), folder, run, dict(settings)
        self.open: dict[str, GeneralTracker] | None = None

    def after(self, step: int, values: dict[str, float]) -> None:
        if self.open is None:
            self.open = {}
            for name in self.names:
                self._try(name, lambda name=name: self._begin(name, step))
        for name, tracker in list(self.open.items()):
            self._try(name, lambda tracker=tracker: tracker.log(dict(values), step=step))

    def finish(self) -> None:
        for name, tracker in list((self.open or {}).items()):
            self._try(name, tracker.finish)

    def _begin(self, name: str, step: int) -> None:
        """Open a tracker; what it may hold of `step` and later ones is of an earlier try, and goes."""
        arguments: dict[str, Any] = {
            "tensorboard": {"logging_dir": self.folder, "purge_step": step},
            "trackio": {"name": self.run, "resume": "allow"},
            "wandb": {"id": self.run, "resume": "allow", "dir": str(self.folder)},
            "dvclive": {"dir": str(self.folder / f"{self.run}-dvclive"), "resume": True, "save_dvc_exp": False, "dvcyaml": None},
        }[name]
        self.folder.mkdir(parents=True, exist_ok=True)
        tracker = LOGGER_TYPE_TO_CLASS[name](self.run if name == "tensorboard" else PROJECT, **arguments)
        tracker.start()
        tracker.store_init_configuration(self.settings)
        assert self.open is not None
        self.open[name] = tracker

    def _try(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            if self.open is not None:
                self.open.pop(name, None)
            log.warning(f"launch.log_with: {name} is left out from here on: {type(error).__name__}: {error}")
