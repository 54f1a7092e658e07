"""The configuration of a run: `params.yaml`, checked."""

from ans.config.fields import ConfigError
from ans.config.load import Config, load

__all__ = ["Config", "ConfigError", "load"]
