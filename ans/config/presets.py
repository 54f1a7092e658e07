"""The presets: a file each of `ans/presets`, with what differs from the defaults."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ans.config.fields import ConfigError
from ans.config.files import read_yaml
from ans.config.sections import SECTIONS, task_names, task_settings
from ans.config.validated import dotted, validated

FOLDER = Path(__file__).parents[1] / "presets"
BY_PRESET = ("weights", "subset_sa1b", "train", "evaluate", "world")
"""The sections that a preset has, and no others: DVC's stages name each."""

Presets = Mapping[str, Mapping[str, Any]]


def read_presets(folder: Path = FOLDER) -> Presets:
    """Return name -> sections of every preset. Raises `ConfigError` naming the file."""
    return {path.stem: _read(path, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.yaml"))}


@cache
def _read(path: Path, _: int) -> dict[str, Any]:
    return read_yaml(path)


def where(name: str) -> str:
    """Return what an error of a preset begins with: its file."""
    return f"ans/presets/{name}.yaml: "


def check_presets(presets: Presets) -> None:
    """Raise `ConfigError` for the first value that no run could use, whichever preset is chosen. The settings of tasks are left
    to `check_tasks`."""
    tasks = task_names()
    for name, values in presets.items():
        for section in values:
            if section not in BY_PRESET:
                raise ConfigError(f"{where(name)}{section}: a preset sets {', '.join(BY_PRESET)}, nothing else")
        for section in BY_PRESET:
            if not isinstance(given := values.get(section), dict):
                found = "missing; an empty section is {}" if given is None else f"expected a section, found {given!r}"
                raise ConfigError(f"{where(name)}{section}: {found}")
            own = {key: value for key, value in given.items() if section != "train" or key not in tasks}
            _check(name, SECTIONS[section], own, section)


def check_tasks(presets: Presets) -> None:
    """Check as `check_presets` does, of the settings of tasks. Reading them imports the tasks."""
    for name, values in presets.items():
        for task in task_names():
            if (own := values["train"].get(task)) is not None:
                _check(name, task_settings(task), own, "train", task)


def _check(name: str, kind: Any, values: Any, *section: str) -> None:
    validated(kind, values, section, place=lambda path: where(name) + dotted(path), partial=True)
