"""`params.yaml` -> the configuration of a run.

A section that presets have a say in (`BY_PRESET`) is put together from three places, the later one winning: the
schema's defaults, the chosen preset, and what `params.yaml` says at its top level. A key left empty there says nothing, so the preset
decides; `none` says explicitly that there is none.
"""

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_origin

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from ans.config.fields import ConfigError
from ans.config.schema import (
    SUBSET,
    Convert,
    Evaluate,
    Index,
    Launch,
    Own,
    Paths,
    Report,
    Source,
    SubsetSa1b,
    TrainSettings,
    VideoFolder,
    VideoSet,
    Weights,
    World,
)
from ans.config.sections import SECTIONS, suggestion, task_names, task_settings
from ans.config.tasks import TaskSettings

BY_PRESET = ("subset_sa1b", "weights", "train", "evaluate")
"""Sections that a preset may set."""

MAX_DEPTH = 30
"""Of sections in sections; params.yaml has five."""

REASONS = {
    "bool_type": "expected true or false",
    "int_type": "expected an integer",
    "float_type": "expected a number",
    "string_type": "expected a text",
    "tuple_type": "expected a list",
    "dict_type": "expected a section",
    "model_type": "expected a section",
    "literal_error": "expected {expected}",
    "finite_number": "must be finite",
    "too_short": "must not be empty",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": "does not match {pattern}",
}
"""What pydantic's errors are called here."""


class Config:
    """The configuration of a run: its sections, checked, with the chosen preset merged in."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        _known(raw, ["preset", *SECTIONS, "presets"])
        self.preset: str = _preset(raw)
        self._raw = raw
        self.paths: Paths = self._section("paths")
        self.launch: Launch = self._section("launch")
        self.sources: dict[str, Source] = self._section("sources")
        self.own: dict[str, Own] = self._section("own")
        self.variants: dict[str, tuple[str, ...]] = self._section("variants")
        self.world: World = self._section("world")
        self.index: Index = self._section("index")
        self.subset_sa1b: SubsetSa1b = self._section("subset_sa1b")
        self.weights: Weights = self._section("weights")
        self.train: TrainSettings = self._section("train")
        self.convert: Convert = self._section("convert")
        self.evaluate: Evaluate = self._section("evaluate")
        self.report: Report = self._section("report")
        self._check()

    @cached_property
    def tasks(self) -> dict[str, TaskSettings]:
        """The settings of the tasks that are on, by name, in the order of their names. Reading them imports the tasks."""
        settings = {name: self.task(name) for name in task_names()}
        found = {name: of for name, of in settings.items() if of.enabled}
        if not found:
            raise ConfigError(
                "train: every task is off, so nothing would be learnt; set train.<task>.enabled=true for one of them"
            )
        for name, of in found.items():
            for index in of.indexes():
                self._require_index(f"train.{name}", index)
        return found

    def changed(self, values: Mapping[str, Any]) -> "Config":
        """The configuration with other values in `params.yaml`, by dotted path."""
        raw = copy.deepcopy(dict(self._raw))
        for path, value in values.items():
            *parents, last = path.split(".")
            node = raw
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
        return Config(raw)

    def source(self, name: str) -> Source | Own | None:
        """Where the set lies from which the index of that name is made."""
        return self.sources.get(name) or self.own.get(name)

    def training_indexes(self) -> tuple[str, ...]:
        """The indexes that training reads: those of its tasks and of the validation."""
        names = [index for of in self.tasks.values() for index in of.indexes()]
        if self.train.validation:
            names.append(index_of(self.train.validation.split))
        return tuple(dict.fromkeys(names))

    def training_clips(self) -> dict[str, VideoFolder]:
        """The sets of videos that training reads, by name."""
        return {name: clips for of in self.tasks.values() for name, clips in of.clips().items()}

    def clips_left_out(self) -> dict[str, VideoSet]:
        """The evaluated sets of videos, none of whose clips training learns from; none where it learns from no clips."""
        return self.evaluate.videos if self.training_clips() else {}

    def evaluation_indexes(self) -> tuple[str, ...]:
        """The indexes that evaluation reads."""
        return tuple(dict.fromkeys(index_of(split) for split in (*self.evaluate.splits, *self.evaluate.captions)))

    def evaluated_alone(self) -> tuple[str, ...]:
        """The indexes that are evaluated and that training does not read: it does not leave out their images."""
        return tuple(name for name in self.evaluation_indexes() if name not in self.training_indexes())

    def task(self, name: str) -> TaskSettings:
        """The settings of a task, on or off. Reading them imports it."""
        kind, values = task_settings(name), dict(self._merged("train").get(name, {}))
        for key, field in kind.model_fields.items():
            # a collection by name is one value: whoever names its entries has named them all
            if get_origin(field.annotation) is dict and _says(given := _at(self._raw, ("train", name, key))):
                values[key] = given
        return self._validated(kind, values, ("train", name))

    def origin(self, *path: str) -> str:
        """Where the setting at `path` has its value from: `params.yaml`, `preset NAME` or `default`."""
        if _says(_at(self._raw, path)):
            return "params.yaml"
        return f"preset {self.preset}" if _at(self._presets(), path) is not None else "default"

    # ------------------------------------------------------------------------------------------------------------ inside

    def _presets(self) -> Mapping[str, Any]:
        return self._raw["presets"][self.preset] or {}

    def _section(self, name: str) -> Any:
        if name not in self._raw:
            raise ConfigError(f"{name}: missing")
        kind, values = SECTIONS[name], self._merged(name)
        if name == "train":
            values = {key: value for key, value in values.items() if key not in task_names()}
        return self._validated(kind, values, (name,))

    def _merged(self, name: str) -> dict[str, Any]:
        given, preset = self._raw[name], self._presets().get(name) if name in BY_PRESET else None
        for values, path in ((given, name), (preset, f"presets.{self.preset}.{name}")):
            if values is not None and not isinstance(values, dict):
                raise ConfigError(f"{path}: expected a section, found {values!r}")
        return _merge(preset or {}, given or {}) if name in BY_PRESET else dict(given or {})

    def _validated(self, kind: Any, values: Any, path: tuple[str, ...]) -> Any:
        try:
            return TypeAdapter(kind).validate_python(values)
        except ValidationError as error:
            raise ConfigError(self._message(error, path)) from None

    def _message(self, error: ValidationError, section: tuple[str, ...]) -> str:
        first = error.errors()[0]
        path = (*section, *(str(part) for part in first["loc"] if part != "[key]"))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error" and ": " in reason and reason.partition(": ")[0].isidentifier():
            key, _, reason = reason.partition(": ")  # a rule between several settings names the one that it is about
            path = (*path, key)
        dotted = ".".join(path)
        if first["type"] == "extra_forbidden":
            return f"{self._place(path)}: unknown key{suggestion(dotted)}"
        if first["type"] == "missing":
            return f"{dotted}: missing"
        if first["type"] in REASONS:
            limits = {name: f"{of:g}" if isinstance(of, float) else of for name, of in first.get("ctx", {}).items()}
            reason = REASONS[first["type"]].format(**limits)
        found = f", found {first['input']!r}" if "input" in first and not isinstance(first["input"], dict) else ""
        return f"{self._place(path)}: {reason}{found}"

    def _place(self, path: tuple[str, ...]) -> str:
        """The path at which the user finds the value."""
        in_preset = not _says(_at(self._raw, path)) and _at(self._presets(), path) is not None
        return ".".join(("presets", self.preset, *path) if in_preset else path)

    def _check(self) -> None:
        if self.variants.get("base") != ():
            raise ConfigError("variants.base: must be there and be [] (the untouched base)")
        for name, groups in self.variants.items():
            if name != "base" and not groups:
                raise ConfigError(f"variants.{name}: names no group; the untouched base is `base`")
        if twice := set(self.own) & {*self.sources, SUBSET}:
            raise ConfigError(f"own.{min(twice)}: the name of a published set; choose another")
        for key in ("splits", "captions"):
            for split in getattr(self.evaluate, key):
                self._require_split(f"evaluate.{key}", split)
        if self.train.validation:
            self._require_split("train.validation.split", self.train.validation.split)

    def _require_split(self, path: str, split: str) -> None:
        if "_" not in split:
            place = self._place(tuple(path.split(".")))
            raise ConfigError(f"{place}: {split!r} is no split; a split is <index>_<part>, e.g. refcoco_val")
        self._require_index(path, index_of(split))

    def _require_index(self, path: str, name: str) -> None:
        indexes = {*self.sources, *self.own, *([SUBSET] if "sa1b" in self.sources else [])} - {"sa1b"}
        if name not in indexes:
            known = ", ".join(sorted(indexes))
            raise ConfigError(
                f"{self._place(tuple(path.split('.')))}: no index named {name!r}; there are {known}, and your own data has a name "
                "below `own`"
            )


def load(path: str | Path = "params.yaml") -> Config:
    """Read and check `params.yaml`. Raises `ConfigError` naming the first setting that cannot be used, by its path.

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
    return Config(values)


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


def index_of(split: str) -> str:
    """The index that a split, `<index>_<part>`, belongs to."""
    return split.rpartition("_")[0]


def _preset(raw: Mapping[str, Any]) -> str:
    for key in ("preset", "presets"):
        if key not in raw:
            raise ConfigError(f"{key}: missing")
    name, presets = raw["preset"], raw["presets"]
    if not isinstance(presets, dict):
        raise ConfigError(f"presets: expected a section, found {presets!r}")
    for other, values in presets.items():
        if not isinstance(values, dict):
            raise ConfigError(f"presets.{other}: expected a section, found {values!r}")
        for section in values:
            if section not in BY_PRESET:
                raise ConfigError(f"presets.{other}.{section}: a preset sets {', '.join(BY_PRESET)}, nothing else")
    if not isinstance(name, str) or name not in presets:
        raise ConfigError(f"preset: no preset named {name!r}; there are {', '.join(sorted(presets))}")
    return name


def _known(raw: Mapping[Any, Any], known: list[str]) -> None:
    for key in raw:
        if key not in known:
            raise ConfigError(f"{key}: unknown key{suggestion(str(key))}; known here are {', '.join(known)}")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says in its place; a None there says nothing. Sections are merged, lists and other values replaced."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif isinstance(value, dict) and (_says(value) or merged.get(key) is None):
            merged[key] = _merge({}, value)
        elif _says(value):
            merged[key] = value
    return merged


def _says(value: Any) -> bool:
    """Whether a value in params.yaml is one: an empty one says nothing, nor does a section of nothing but such."""
    return any(map(_says, value.values())) if isinstance(value, Mapping) and value else value is not None


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return None
        values = values[part]
    return values
