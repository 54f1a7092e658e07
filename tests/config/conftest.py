from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ans.config import Config

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="session")
def config() -> Config:
    return Config(YAML(typ="safe").load(PARAMS))


@pytest.fixture
def values() -> dict[str, Any]:
    return YAML(typ="safe").load(PARAMS)
