"""`params.yaml` -> the configuration of a run.

A section that presets have a say in (`weights`, `train`, `evaluate`) is put together from three places, the later one winning: the
schema's defaults, the chosen preset, and what `params.yaml` says at its top level. A key left empty there says nothing, so the preset
decides; `none` says explicitly that there is none.
"""

import copy
import difflib
import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ans.config.fields import ConfigError, Section
from ans.config.schema import (
    SUBSET,
    Convert,
    Evaluate,
    Index,
    Launch,
    Own,
    OwnSets,
    Paths,
    Report,
    Source,
    Sources,
    SubsetSa1b,
    TrainSettings,
    Variants,
    Weights,
    World,
)
from ans.config.tasks import TaskSettings

T = TypeVar("T")

SECTIONS: dict[str, Any] = {
    "paths": Paths,
    "launch": Launch,
    "sources": Sources,
    "own": OwnSets,
    "variants": Variants,
    "world": World,
    "index": Index,
    "subset_sa1b": SubsetSa1b,
    "weights": Weights,
    "train": TrainSettings,
    "convert": Convert,
    "evaluate": Evaluate,
    "report": Report,
}
BY_PRESET = ("weights", "train", "evaluate")
"""Sections that a preset may set."""

TASKS = Path(__file__).parents[1] / "tasks"


class Config:
    """The configuration of a run. `values` and `origins`: every setting in force by dotted path, and where its value comes from."""

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
        """The settings of the tasks that are on, by name, in the order of their roles and names. Reading them imports the tasks."""
        settings = {name: self._task(name) for name in task_names()}
        found = {name: of for name, of in settings.items() if of.enabled}
        if not found:
            raise ConfigError("train: every task is off, so nothing would be learnt")
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

    def evaluation_indexes(self) -> tuple[str, ...]:
        """The indexes that evaluation reads."""
        return tuple(dict.fromkeys(index_of(split) for split in (*self.evaluate.splits, *self.evaluate.captions)))

    def evaluated_alone(self) -> tuple[str, ...]:
        """The indexes that are evaluated and whose labels are not learnt: training does not leave out their images."""
        learnt = {index for of in self.tasks.values() for index in of.labelled()}
        return tuple(name for name in self.evaluation_indexes() if name not in learnt)

    def values(self) -> dict[str, Any]:
        """All settings in force, as plain values, section by section."""
        found: dict[str, Any] = {"preset": self.preset}
        for name in SECTIONS:
            section = getattr(self, name)
            found[name] = (
                section.model_dump() if isinstance(section, Section) else {key: _plain(of) for key, of in section.items()}
            )
        found["train"] |= {name: self._task(name).model_dump() for name in task_names()}
        return found

    def origin(self, *path: str) -> str:
        """Where the setting at `path` has its value from: `params.yaml`, `preset NAME` or `default`."""
        if _at(self._raw, path) is not None:
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

    def _task(self, name: str) -> TaskSettings:
        kind = importlib.import_module(f"ans.tasks.{name}").Settings
        return self._validated(kind, self._merged("train").get(name, {}), ("train", name))

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
        found = f", found {first['input']!r}" if "input" in first and not isinstance(first["input"], dict) else ""
        if first["type"] == "float_type" and isinstance(first["input"], str):
            found += " (YAML reads 1e-4 as text: write 1.0e-4)"
        return f"{self._place(path)}: {reason[0].lower()}{reason[1:]}{found}"

    def _place(self, path: tuple[str, ...]) -> str:
        """The path at which the user finds the value."""
        in_preset = _at(self._raw, path) is None and _at(self._presets(), path) is not None
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
                self._require_index(f"evaluate.{key}", index_of(split))
        if self.train.validation:
            self._require_index("train.validation.split", index_of(self.train.validation.split))

    def _require_index(self, path: str, name: str) -> None:
        indexes = {*self.sources, *self.own, *([SUBSET] if "sa1b" in self.sources else [])} - {"sa1b"}
        if name not in indexes:
            known = ", ".join(sorted(indexes))
            place = self._place(tuple(path.split(".")))
            raise ConfigError(f"{place}: no index named {name!r}; there are {known}; a split is <index>_<part>, e.g. refcoco_val")


def load(path: str | Path = "params.yaml") -> Config:
    """Read and check `params.yaml`. Raises `ConfigError` naming the first setting that cannot be used, by its path."""
    with open(path, encoding="utf-8") as file:
        try:
            values = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections, found {values!r:.80}")
    return Config(values)


def index_of(split: str) -> str:
    """The index that a split, `<index>_<part>`, belongs to."""
    return split.rpartition("_")[0]


def task_names() -> list[str]:
    """The tasks that there are: one file each."""
    return sorted(path.stem for path in TASKS.glob("*.py") if path.stem not in ("__init__", "base"))


def fields(kind: type[Section], path: str) -> Iterator[tuple[str, FieldInfo]]:
    """(dotted path, field) of every setting in a section and in the sections within."""
    for name, field in kind.model_fields.items():
        yield f"{path}.{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{path}.{name}")


def known_paths() -> list[str]:
    """The dotted paths of all settings."""
    found = [path for name, kind in SECTIONS.items() if isinstance(kind, type) for path, _ in fields(kind, name)]
    for name in task_names():
        kind = importlib.import_module(f"ans.tasks.{name}").Settings
        found += [path for path, _ in fields(kind, f"train.{name}")]
    return found


def suggestion(path: str) -> str:
    """What was probably meant by an unknown path, as the end of a message."""
    path = path.removeprefix("presets.")
    last, known = path.rpartition(".")[2], known_paths()
    same = [other for other in known if other.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(path, known, n=1)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


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
    if name not in presets:
        raise ConfigError(f"preset: no preset named {name!r}; there are {', '.join(sorted(presets))}")
    return name


def _known(raw: Mapping[str, Any], known: list[str]) -> None:
    for key in raw:
        if key not in known:
            raise ConfigError(f"{key}: unknown key{suggestion(str(key))}; known here are {', '.join(known)}")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says in its place; a None there says nothing. Sections are merged, lists and other values replaced."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif isinstance(value, dict):
            merged[key] = _merge({}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return None
        values = values[part]
    return values


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Section) else list(value)
