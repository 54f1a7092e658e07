"""What is learnt: one file per task, found by its name. docs/extending.md adds one."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ans.tasks.base import Task


def load(name: str) -> "type[Task[Any, Any]]":
    """Return the task in the file of that name."""
    return importlib.import_module(f"ans.tasks.{name}").Task
