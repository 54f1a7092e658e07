"""Every step's values, and pictures now and then, to where people watch them, by accelerate's trackers."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from ans.training.hooks import Hook
from ans.training.hooks.curves import Curves

log = logging.getLogger(__name__)

PROJECT = "ans"


class Sinks(Hook):
    """Opens the trackers `names` at the first step and hands them each step's values. One that fails is left out from then on, with
    a warning: no run ends for want of its display.

    `live`: folder of DVCLive's files; `folder`: for those of the others. `run`: the run's name, by which a continued run finds its
    curves again. `settings`: shown beside the curves. `curves`: all steps so far, of which DVCLive's and trackio's curves are made
    anew where a run continues: they cannot drop what an earlier try had logged after its last state. TensorBoard can, and W&B
    ignores the steps that it has.
    """

    def __init__(
        self, names: Sequence[str], live: Path, folder: Path, run: str, settings: Mapping[str, Any], curves: Curves
    ) -> None:
        self.names, self.live, self.folder, self.run, self.curves = list(names), live, folder, run, curves
        self.settings = dict(settings)
        self.open: dict[str, GeneralTracker] | None = None

    def after(self, step: int, values: dict[str, float]) -> None:
        for name, tracker in self._opened(step):
            self._try(name, lambda tracker=tracker: tracker.log(dict(values), step=step))

    def show(self, step: int, title: str, pictures: Sequence[Image.Image]) -> None:
        """Show pictures of a step, before its values. `title` names the series."""
        for name, tracker in self._opened(step):
            self._try(name, lambda name=name, tracker=tracker: _log_pictures(name, tracker, title, pictures, step))

    def finish(self) -> None:
        for name, tracker in list((self.open or {}).items()):
            self._try(name, tracker.finish)

    def _opened(self, step: int) -> list[tuple[str, GeneralTracker]]:
        if self.open is None:
            self.open = {}
            for name in self.names:
                self._try(name, lambda name=name: self._begin(name, step))
        return list(self.open.items())

    def _begin(self, name: str, step: int) -> None:
        """Open a tracker; what it may hold of `step` and later ones is of an earlier try, and goes."""
        arguments: dict[str, Any] = {
            "dvclive": {"dir": str(self.live), "resume": step > 1, "save_dvc_exp": False, "dvcyaml": None},
            "tensorboard": {"logging_dir": self.folder, "purge_step": step},
            "trackio": {"name": self.run},
            "wandb": {"id": self.run, "resume": "allow", "dir": str(self.folder)},
        }[name]
        if name == "dvclive":
            self._restore_live(step)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
        if name == "trackio":
            _remove_from_trackio(self.run)
        tracker = LOGGER_TYPE_TO_CLASS[name](self.run if name == "tensorboard" else PROJECT, **arguments)
        tracker.start()
        # TensorBoard's table of settings knows no lists or sections
        tracker.store_init_configuration(_flat(self.settings) if name == "tensorboard" else self.settings)
        if name == "trackio":
            for earlier, values in self._before(step).items():
                tracker.log(values, step=earlier)
        assert self.open is not None
        self.open[name] = tracker

    def _restore_live(self, step: int) -> None:
        """Leave DVCLive's curves as they were before `step`: handing it thousands of steps again would take minutes."""
        (self.live / "metrics.json").unlink(missing_ok=True)
        shutil.rmtree(self.live / "plots" / "metrics", ignore_errors=True)
        for name, rows in self.curves.rows.items():
            path = self.live / "plots" / "metrics" / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            if lines := [f"{earlier}\t{value}\n" for earlier, value in rows if earlier < step]:
                path.write_text(f"step\t{name}\n{''.join(lines)}", encoding="utf-8")

    def _before(self, step: int) -> dict[int, dict[str, float]]:
        """Return the values of all steps before `step`, by step."""
        found: dict[int, dict[str, float]] = {}
        for name, rows in self.curves.rows.items():
            for earlier, value in rows:
                if earlier < step:
                    found.setdefault(earlier, {})[name] = value
        return dict(sorted(found.items()))

    def _try(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            if self.open is not None:
                self.open.pop(name, None)
            log.warning(f"launch.log_with: {name} is left out from here on: {type(error).__name__}: {error}")


def _log_pictures(sink: str, tracker: Any, title: str, pictures: Sequence[Image.Image], step: int) -> None:
    named = {f"{title}/{number}": picture for number, picture in enumerate(pictures)}
    if sink == "dvclive":
        for name, picture in named.items():  # a folder of steps: editors show it with a slider
            tracker.tracker.log_image(f"{name}/{step:06d}.png", picture)
    elif sink == "trackio":
        import trackio

        tracker.log({name: trackio.Image(picture) for name, picture in named.items()}, step=step)
    elif sink == "tensorboard":
        tracker.log_images({name: np.asarray(picture)[None] for name, picture in named.items()}, step=step, dataformats="NHWC")
    else:
        tracker.log_images({name: [picture] for name, picture in named.items()}, step=step)


def _remove_from_trackio(name: str) -> None:
    """Remove them from the curves on this machine; a Space keeps what it has."""
    import trackio

    with suppress(ValueError):  # no such project yet
        for run in trackio.Api().runs(PROJECT):
            if run.name == name:
                run.delete()


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
        flat |= {name: of if isinstance(of, bool | int | float | str) else str(of) for name, of in inner.items()}
    return flat
