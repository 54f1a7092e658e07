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

from ans.config.fields import ConfigError
from ans.config.files import read_yaml
from ans.config.presets import BY_PRESET, Presets, check_presets, check_tasks, read_presets, where
from ans.config.schema import (
    SUBSET,
    Convert,
    Evaluate,
    IndexSettings,
    Launch,
    Own,
    Paths,
    Report,
    Source,
    SubsetSa1b,
    VideoFolder,
    VideoSet,
    Weights,
    World,
)
from ans.config.sections import SECTIONS, suggestion, task_names, task_role, task_settings
from ans.config.tasks import TaskSettings
from ans.config.training import TrainSettings
from ans.config.validated import dotted, validated


class Config:
    """The configuration of a run: its sections, checked, with the chosen preset merged in."""

    def __init__(self, raw: Mapping[str, Any], presets: Presets | None = None) -> None:
        """`raw`: the values of `params.yaml`; `presets`: by name, those of `ans/presets` unless others are given."""
        _known(raw, ["preset", *SECTIONS])
        self._raw, self._presets = raw, read_presets() if presets is None else presets
        check_presets(self._presets)
        self.preset: str = _preset(raw, self._presets)
        self.paths: Paths = self._section("paths")
        self.launch: Launch = self._section("launch")
        self.sources: dict[str, Source] = self._section("sources")
        self.own: dict[str, Own] = self._section("own")
        self.variants: dict[str, tuple[str, ...]] = self._section("variants")
        self.world: World = self._section("world")
        self.index: IndexSettings = self._section("index")
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
        check_tasks(self._presets)
        settings = {name: self.task(name) for name in task_names()}
        found = {name: of for name, of in settings.items() if of.enabled}
        primary = [name for name in found if task_role(name) == "primary"]
        if not found:
            raise ConfigError(
                "train: every task is off, so nothing would be learnt; set train.<task>.enabled=true for one of them"
            )
        if not primary:
            only = f"{', '.join(found)} only {'helps' if len(found) == 1 else 'help'} other tasks"
            raise ConfigError(f"train: {only}; turn on a primary task too: set train.<task>.enabled=true")
        if self.train.epochs is not None and len(primary) > 1:
            raise ConfigError(
                f"{self._place(('train', 'epochs'))}: counts passes over one task's samples, but {', '.join(primary)} take turns; "
                "set train.steps instead"
            )
        if "memory" in self.train.trained and not any(of.follows for of in found.values()):
            raise ConfigError(
                f"{self._place(('train', 'groups'))}: names memory, which no task uses; set train.clips.enabled=true and "
                "train.clips.followed above 0"
            )
        for name, of in found.items():
            for index in of.indexes():
                self._require_index(f"train.{name}", index)
        return found

    def changed(self, values: Mapping[str, Any]) -> "Config":
        """Return the configuration with other values in `params.yaml`, by dotted path."""
        raw = copy.deepcopy(dict(self._raw))
        for path, value in values.items():
            *parents, last = path.split(".")
            node = raw
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
        return Config(raw, self._presets)

    def source(self, name: str) -> Source | Own | None:
        """Return where the set lies from which the index of that name is made."""
        return self.sources.get(name) or self.own.get(name)

    def training_indexes(self) -> tuple[str, ...]:
        """Return the indexes that training reads: those of its tasks and of the validation."""
        names = [index for of in self.tasks.values() for index in of.indexes()]
        if self.train.validation and self.validation_videos() is None:
            names.append(index_of(self.train.validation.split))
        return tuple(dict.fromkeys(names))

    def training_clips(self) -> dict[str, VideoFolder]:
        """Return the sets of videos that training reads, by name."""
        return {name: clips for of in self.tasks.values() for name, clips in of.clips().items()}

    def clips_left_out(self) -> dict[str, VideoSet]:
        """Return the evaluated sets of videos, none of whose clips training learns from; none where it reads no clips."""
        return self.evaluate.videos if self.training_clips() or self.validation_videos() else {}

    def validation_videos(self) -> VideoSet | None:
        """Return the set of videos that the validation evaluates; None where it is images."""
        name, _, kind = (self.train.validation.split if self.train.validation else "").rpartition("_")
        return self.evaluate.videos.get(name) if kind == "video" else None

    def evaluation_indexes(self) -> tuple[str, ...]:
        """Return the indexes that evaluation reads."""
        evaluate = self.evaluate
        return tuple(dict.fromkeys(map(index_of, (*evaluate.splits, *evaluate.captions, *evaluate.grounded))))

    def evaluated_alone(self) -> tuple[str, ...]:
        """Return the indexes that are evaluated and that training does not read: it does not leave out their images."""
        return tuple(name for name in self.evaluation_indexes() if name not in self.training_indexes())

    def task(self, name: str) -> TaskSettings:
        """Return the settings of a task, on or off. Reading them imports it."""
        kind, given = task_settings(name), self._merged("train").get(name, {})
        if not isinstance(given, dict):
            raise ConfigError(f"{self._place(('train', name))}: expected a section, found {given!r:.200}")
        values = dict(given)
        for key, field in kind.model_fields.items():
            # a collection by name is one value: whoever names its entries has named them all
            if get_origin(field.annotation) is dict and _says(own := _at(self._raw, ("train", name, key))):
                values[key] = own
        return self._validated(kind, values, ("train", name))

    def origin(self, *path: str) -> str:
        """Return where the setting at `path` has its value from: `params.yaml`, `preset NAME` or `default`."""
        if _says(_at(self._raw, path)):
            return "params.yaml"
        return f"preset {self.preset}" if _at(self._presets[self.preset], path) is not None else "default"

    # ------------------------------------------------------------------------------------------------------------ inside

    def _section(self, name: str) -> Any:
        if name not in self._raw:
            raise ConfigError(f"{name}: missing")
        kind, values = SECTIONS[name], self._merged(name)
        if name == "train":
            values = {key: value for key, value in values.items() if key not in task_names()}
        return self._validated(kind, values, (name,))

    def _merged(self, name: str) -> dict[str, Any]:
        given = self._raw[name]
        if given is not None and not isinstance(given, dict):
            raise ConfigError(f"{name}: expected a section, found {given!r:.200}")
        return _merge(self._presets[self.preset][name], given or {}) if name in BY_PRESET else dict(given or {})

    def _validated(self, kind: Any, values: Any, path: tuple[str, ...]) -> Any:
        return validated(kind, values, path, self._place)

    def _place(self, path: tuple[str, ...]) -> str:
        """Return the path at which the user finds the value."""
        in_preset = not _says(_at(self._raw, path)) and _at(self._presets[self.preset], path) is not None
        return (where(self.preset) if in_preset else "") + dotted(path)

    def _check(self) -> None:
        if self.variants.get("base") != ():
            raise ConfigError("variants.base: is required and must be [] (the untouched base)")
        for name, groups in self.variants.items():
            if name != "base" and not groups:
                raise ConfigError(f"variants.{name}: names no group; the untouched base is `base`")
        if SUBSET in self.sources:
            raise ConfigError(f"sources.{SUBSET}: the name of the index that stage subset_sa1b makes; choose another")
        if twice := set(self.own) & {*self.sources, SUBSET}:
            raise ConfigError(f"own.{min(twice)}: the name of a published set; choose another")
        for key in ("splits", "captions", "grounded"):
            for split in getattr(self.evaluate, key):
                self._require_split(f"evaluate.{key}", split)
        if validation := self.train.validation:
            videos = self.validation_videos() is not None
            if not videos:
                self._require_split("train.validation.split", validation.split)
            if videos != (validation.metric == "jf"):
                wanted = "jf" if videos else "one of images'; jf is that of videos"
                raise ConfigError(
                    f"{self._place(('train', 'validation', 'metric'))}: must be {wanted}, for {validation.split}; found {validation.metric}"
                )
        if self.launch.shard_frozen and self.launch.processes * self.launch.machines == 1:
            raise ConfigError("launch.shard_frozen: needs several processes; raise launch.processes, or set it to false")
        if self.launch.shard_frozen and self.train.four_bit:
            raise ConfigError("launch.shard_frozen: layers in 4 bits cannot be sharded; set either it or train.four_bit")

    def _require_split(self, path: str, split: str) -> None:
        if "_" not in split:
            place = self._place(tuple(path.split(".")))
            raise ConfigError(f"{place}: {split!r} is not a split; a split is <index>_<part>, e.g. refcoco_val")
        self._require_index(path, index_of(split))

    def _require_index(self, path: str, name: str) -> None:
        indexes = {*self.sources, *self.own, *([SUBSET] if "sa1b" in self.sources else [])} - {"sa1b"}
        if name not in indexes:
            known = ", ".join(sorted(indexes)) or "none"
            raise ConfigError(
                f"{self._place(tuple(path.split('.')))}: no index named {name!r:.200}; there are {known}, and your own data has a name "
                "below `own`"
            )


def load(path: str | Path = "params.yaml") -> Config:
    """Read and check `params.yaml`. Raises `ConfigError` naming the first setting that cannot be used, by its path."""
    return Config(read_yaml(path))


def index_of(split: str) -> str:
    """Return the index that a split, `<index>_<part>`, belongs to."""
    return split.rpartition("_")[0]


def _preset(raw: Mapping[str, Any], presets: Presets) -> str:
    if "preset" not in raw:
        raise ConfigError("preset: missing")
    name = raw["preset"]
    if not isinstance(name, str) or name not in presets:
        raise ConfigError(f"preset: no preset named {name!r:.200}; there are {', '.join(sorted(presets))}")
    return name


def _known(raw: Mapping[Any, Any], known: list[str]) -> None:
    for key in raw:
        if key not in known:
            raise ConfigError(f"{key}: unknown key{suggestion(str(key))}; known here are {', '.join(known)}")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with what `above` says in its place; a None there says nothing. Sections are merged, lists and other values
    replaced."""
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
    """Return whether a value in params.yaml is one: an empty one says nothing, nor does a section of nothing but such."""
    return any(map(_says, value.values())) if isinstance(value, Mapping) and value else value is not None


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return None
        values = values[part]
    return values
