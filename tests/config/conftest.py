import copy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ans.config import Config
from ans.config.presets import read_presets

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="session")
def config() -> Config:
    return Config(YAML(typ="safe").load(PARAMS))


@pytest.fixture
def values() -> dict[str, Any]:
    return YAML(typ="safe").load(PARAMS)


@pytest.fixture
def presets() -> dict[str, Any]:
    """The committed presets, as a copy that a test may change."""
    return copy.deepcopy(dict(read_presets()))


def put(values: dict[str, Any], path: str, value: object) -> None:
    """Set a value by its dotted path."""
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value
