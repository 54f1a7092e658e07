"""Settings as YAML files, read strictly."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from ans.config.fields import ConfigError

MAX_DEPTH = 30
"""Of sections in sections; params.yaml has five."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the sections of a file. Raises `ConfigError` naming the file for one that is not YAML or has no sections.

    Read as DVC reads it, as YAML 1.2: to PyYAML, the `1e-05` that `dvc exp run -S train.lr=1e-5` writes is a text.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        text = content.decode("utf-8")
        _refuse_references(text, path)
        values = YAML(typ="safe").load(text)
    except (YAMLError, ValueError, RecursionError) as error:  # a ValueError: a date or a number that there is not
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not YAML: {error or 'nested too deeply'}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections, found {values!r:.80}")
    return values


def _refuse_references(text: str, path: str | Path) -> None:
    """Raise `ConfigError` for tags, and for anchors and aliases: a few lines of them can stand for billions of values, and what DVC
    compares would not be what a reader of the file sees. And for brackets without end, before YAML takes minutes over them."""
    depth = 0
    for event in YAML(typ="safe").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path}: nested more than {MAX_DEPTH} deep")
        line = event.start_mark.line + 1 if event.start_mark else 0
        if getattr(event, "anchor", None) is not None:
            raise ConfigError(f"{path}, line {line}: an anchor or alias (& or *); write the value out")
        if getattr(event, "tag", None) is not None:
            raise ConfigError(f"{path}, line {line}: a tag ({event.tag}); write a plain value")
