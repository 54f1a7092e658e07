"""The tasks on a tiny model and a small world."""

from pathlib import Path

import pytest

from tests import pipeline
from tests.task_case import TaskCase


@pytest.fixture(scope="package")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def case(small_world: Path) -> TaskCase:
    return TaskCase(small_world)
