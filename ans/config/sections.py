"""What may stand in `params.yaml`: its sections, the settings in them, and what was probably meant by one that is unknown."""

import difflib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from ans.config.fields import Section
from ans.config.schema import (
    Convert,
    Evaluate,
    IndexSettings,
    Launch,
    OwnSets,
    Paths,
    Report,
    Sources,
    SubsetSa1b,
    Variants,
    Weights,
    World,
)
from ans.config.tasks import TaskSettings
from ans.config.training import TrainSettings

SECTIONS: dict[str, Any] = {
    "paths": Paths,
    "launch": Launch,
    "sources": Sources,
    "own": OwnSets,
    "variants": Variants,
    "world": World,
    "index": IndexSettings,
    "subset_sa1b": SubsetSa1b,
    "weights": Weights,
    "train": TrainSettings,
    "convert": Convert,
    "evaluate": Evaluate,
    "report": Report,
}

TASKS = Path(__file__).parents[1] / "tasks"


def task_names() -> list[str]:
    """Return the tasks that there are: one file each."""
    return sorted(path.stem for path in TASKS.glob("*.py") if path.stem not in ("__init__", "base"))


def task_settings(name: str) -> type[TaskSettings]:
    """Return the settings of a task, which its file declares. Importing it imports PyTorch."""
    return importlib.import_module(f"ans.tasks.{name}").Settings


def task_role(name: str) -> str:
    """Return `primary` or `auxiliary`. Importing it imports PyTorch."""
    return importlib.import_module(f"ans.tasks.{name}").Task.role


def fields(kind: type[Section], path: str) -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted path, field) of every setting in a section and in the sections within."""
    for name, field in kind.model_fields.items():
        yield f"{path}.{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{path}.{name}")


def all_fields() -> dict[str, FieldInfo]:
    """Return every setting by its dotted path."""
    found = {path: of for name, kind in SECTIONS.items() if isinstance(kind, type) for path, of in fields(kind, name)}
    for name in task_names():
        found |= fields(task_settings(name), f"train.{name}")
    return found


def suggestion(path: str) -> str:
    """Return what was probably meant by an unknown path, as the end of a message."""
    last, known = path.rpartition(".")[2], [*SECTIONS, *(f"train.{name}" for name in task_names()), *all_fields()]
    same = [other for other in known if other.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(path, known, n=1)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""
