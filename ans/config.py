"""`params.yaml` -> strict typed configuration.

Read once, at the edge: a stage script calls `load()` and hands typed values on. An unknown, missing or ill-typed key raises
`ConfigError` with the key's full path. Derived numbers are methods here, never further keys.
"""

import dataclasses
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar

import yaml

T = TypeVar("T")

INFINITY = sys.float_info.max
"""As the upper end of a range: any finite number."""

TINY = sys.float_info.min
"""As the lower end of a range: any positive number."""

Group = Literal["embed_head", "seg_row", "lora", "proj", "fcs", "sam2_decoder"]
"""Module groups that a run may train. `lora` stands for the language model's linear layers; `seg_row` is one row (of `[SEG]`) of
what `embed_head` is the whole of."""

Part = Literal["language", "vision", "sam"]
"""Parts of a model that may be held in 4 bits: the language model, its image encoder, the mask part's image encoder."""


SUBSET = "sa1b_subset"
"""The index of SA-1B's images that are used; `sa1b` itself only lists them."""

READERS = Path(__file__).parent / "data" / "sources"
SEEDS = (0, 2**32 - 1)


class ConfigError(ValueError):
    """A key of `params.yaml` is unknown, missing, of the wrong type, or out of range. The message begins with its path."""


@dataclass(frozen=True)
class Paths:
    root: str


@dataclass(frozen=True)
class Launch:
    processes: int
    machines: int
    machine_rank: int
    main_address: str
    main_port: int
    workers: int
    save_state_seconds: float
    feature_cache_gb: float

    def __post_init__(self) -> None:
        whole, positive = (1, INFINITY), (0, INFINITY)
        _check_ranges(self, "launch", processes=whole, machines=whole, main_port=(1, 65535), workers=positive)
        _check_ranges(self, "launch", save_state_seconds=positive, feature_cache_gb=positive)
        _require(0 <= self.machine_rank < self.machines, "launch.machine_rank", "must be below launch.machines")


@dataclass(frozen=True)
class Source:
    """A published data set: its reader (`ans/data/sources/<reader>.py`), where it lies below `paths.root`, and how much of it is
    indexed at most: its first images, its first masks."""

    reader: str
    folder: str
    max_images: int | None
    max_samples: int | None

    def __post_init__(self) -> None:
        _check_ranges(self, "sources.*", max_images=(1, INFINITY), max_samples=(1, INFINITY))
        there = sorted(path.stem for path in READERS.glob("*.py") if path.stem not in ("__init__", "common", "own"))
        _require(self.reader in there, "sources.*.reader", f"no reader named {self.reader!r}; there are {', '.join(there)}")


@dataclass(frozen=True)
class Own:
    """A folder of one's own data, below `paths.root`."""

    folder: str

    reader: ClassVar[str] = "own"
    max_images: ClassVar[None] = None
    max_samples: ClassVar[None] = None


NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
"""Names of sets become names of files and of DVC's stages."""


@dataclass(frozen=True)
class World:
    seed: int
    train_images: int
    val_images: int
    test_images: int
    sa1b_images: int
    sav_pairs: int
    openimages_images: int
    describe_images: int
    reasonseg_images: int
    shift: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name not in ("seed", "shift"):
                _check_ranges(self, "world", **{field.name: (1, INFINITY)})
        _check_ranges(self, "world", seed=SEEDS, shift=(0, 1))


@dataclass(frozen=True)
class Index:
    max_bad_fraction: float

    def __post_init__(self) -> None:
        _check_ranges(self, "index", max_bad_fraction=(0, 1))


@dataclass(frozen=True)
class SubsetSa1b:
    images: int
    order: Literal["name", "seed"]
    seed: int
    min_area_share: float
    max_area_share: float
    min_predicted_iou: float
    min_stability_score: float
    max_masks: int | None

    def __post_init__(self) -> None:
        _check_ranges(self, "subset_sa1b", images=(1, INFINITY), seed=SEEDS, max_masks=(1, INFINITY))
        _check_ranges(self, "subset_sa1b", min_predicted_iou=(0, 2), min_stability_score=(0, 1))
        shares = 0 <= self.min_area_share <= self.max_area_share <= 1
        _require(shares, "subset_sa1b.min_area_share", "must lie between 0 and max_area_share, and that at most at 1")


@dataclass(frozen=True)
class LossWeights:
    mask: float
    dice: float
    language: float
    iou: float
    lisa_dice: bool

    def __post_init__(self) -> None:
        _check_ranges(self, "train.loss", **dict.fromkeys(("mask", "dice", "language", "iou"), (0, INFINITY)))
        _require(self.mask + self.dice + self.iou > 0, "train.loss", "no mask loss: mask, dice and iou are 0")


@dataclass(frozen=True)
class MaskSource:
    repeats: float
    max_samples: int | None

    def __post_init__(self) -> None:
        _check_ranges(self, "train.loop1.sources.*", repeats=(0, INFINITY), max_samples=(1, INFINITY))


@dataclass(frozen=True)
class Loop1:
    enabled: bool
    sources: dict[str, MaskSource]
    bridge: Literal["gumbel", "detached", "hard", "discrete"]
    rescored: Literal["all", "corrupted"]
    tau: float
    tau_end: float
    top_k: int
    mask_ratio: float
    noise: float
    description_prompts: int
    denoising: float
    confidence: bool
    distillation: float
    reward: float
    reward_by: Literal["iou", "cider"]
    objects_per_image: int

    def __post_init__(self) -> None:
        _require(bool(self.sources), "train.loop1.sources", "names no source; to leave loop 1 out set train.loop1.enabled=false")
        weights = dict.fromkeys(("noise", "denoising", "distillation", "reward"), (0, INFINITY))
        _check_ranges(self, "train.loop1", tau=(TINY, INFINITY), tau_end=(TINY, INFINITY), top_k=(1, INFINITY), **weights)
        _check_ranges(self, "train.loop1", mask_ratio=(0, 1), description_prompts=(1, 4), objects_per_image=(1, INFINITY))
        _require(
            not self.denoising or self.mask_ratio, "train.loop1.denoising", "needs corrupted tokens: train.loop1.mask_ratio > 0"
        )
        _require(not self.reward or self.bridge == "gumbel", "train.loop1.reward", "needs train.loop1.bridge=gumbel")

    def tau_at(self, step: int, steps: int) -> float:
        """The Gumbel temperature of a step, on a line from `tau` to `tau_end`."""
        return self.tau + (self.tau_end - self.tau) * step / max(1, steps - 1)


@dataclass(frozen=True)
class Loop2:
    enabled: bool
    source: str
    max_samples: int | None
    soft_region: bool
    mask_supervision: float

    def __post_init__(self) -> None:
        _check_ranges(self, "train.loop2", max_samples=(1, INFINITY), mask_supervision=(0, INFINITY))


@dataclass(frozen=True)
class Ema:
    decay: float
    warmup: bool

    def __post_init__(self) -> None:
        _check_ranges(self, "train.ema", decay=(0, 1 - sys.float_info.epsilon))


@dataclass(frozen=True)
class Train:
    seed: int
    steps: int
    loss: LossWeights
    beta: float
    surgery: Literal["orthogonal", "pcgrad", "none"]
    ema: Ema
    loop1: Loop1
    loop2: Loop2
    min_seg_rate: float
    gallery: int
    save_every: int
    keep: int | None

    def __post_init__(self) -> None:
        _check_ranges(self, "train", seed=SEEDS, steps=(1, INFINITY), beta=(0, INFINITY), min_seg_rate=(0, 1))
        _check_ranges(self, "train", gallery=(0, INFINITY), save_every=(0, INFINITY), keep=(1, INFINITY))


@dataclass(frozen=True)
class LoraSize:
    """A checkpoint's LoRA, where the checkpoint does not say it itself."""

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        _check_ranges(self, "convert.lora", rank=(1, INFINITY), alpha=(TINY, INFINITY))


@dataclass(frozen=True)
class Convert:
    source: str
    under: str | None
    groups: tuple[Literal["vision", "embed_head", "llm", "lora", "proj", "fcs", "sam2_encoder", "sam2_decoder"], ...] | None
    lora: LoraSize | None
    precision: Literal["float32", "bf16"]
    code: str

    def __post_init__(self) -> None:
        _require(self.groups != (), "convert.groups", "is empty; null lets the checkpoint say what it holds")
        _require(self.code.count("/") == 1, "convert.code", "must be owner/name of a hub repository")


@dataclass(frozen=True)
class Evaluate:
    seed: int
    max_samples: int | None
    max_texts_per_image: int | None

    def __post_init__(self) -> None:
        _check_ranges(self, "evaluate", seed=SEEDS, max_samples=(1, INFINITY), max_texts_per_image=(1, INFINITY))


@dataclass(frozen=True)
class Questions:
    """What an evaluation asks: the preset's splits, within the caps of `evaluate`. Made by `Config.questions`."""

    splits: tuple[str, ...]
    captions: tuple[str, ...]
    max_samples: int | None
    max_texts_per_image: int | None

    @property
    def capped(self) -> bool:
        """Whether only a part of each split is evaluated."""
        return self.max_samples is not None or self.max_texts_per_image is not None

    def split_results(self) -> tuple[str, ...]:
        """The names under which the results of `splits` are kept. Those of a part of a split have its size in them
        (images x expressions per image), so that they never stand in the place of a full result."""
        return tuple(self._name(split) for split in self.splits)

    def caption_results(self) -> tuple[str, ...]:
        """The names under which the captioning results of `captions` are kept; see `split_results`."""
        return tuple(self._name(f"{split}_captions") for split in self.captions)

    def _name(self, split: str) -> str:
        return f"{split}_capped_{self.max_samples or 'all'}x{self.max_texts_per_image or 'all'}" if self.capped else split


@dataclass(frozen=True)
class Report:
    seed: int
    bootstrap: int
    gallery: int
    examples: int

    def __post_init__(self) -> None:
        _check_ranges(self, "report", seed=SEEDS, **dict.fromkeys(("bootstrap", "gallery", "examples"), (1, INFINITY)))


@dataclass(frozen=True)
class Sam2Weights:
    """SAM2's released `.pt` (an address or a path), to put a new base together with InternVL2.5."""

    location: str
    sha256: str


@dataclass(frozen=True)
class PresetWeights:
    """Where a base lies. With `sam2` the location is a released InternVL2.5, and the base is made of the two."""

    source: Literal["embedded", "hub", "url", "path"]
    location: str
    revision: str | None
    sha256: dict[str, str]
    sam2: Sam2Weights | None


UNSUPPORTED = {
    "Sa2VA-8B": "its language model is InternLM2.5",
    "Sa2VA-26B": "its language model is InternLM2.5 and its vision transformer InternViT-6B",
    "Sa2VA-Qwen2_5-VL-3B": "it is built on Qwen2.5-VL",
    "Sa2VA-Qwen2_5-VL-7B": "it is built on Qwen2.5-VL",
    "Sa2VA-Qwen3-VL-4B": "it is built on Qwen3-VL",
    "Sa2VA-InternVL3-2B": "it is built on InternVL3, which is not tried yet",
    "Sa2VA-InternVL3-8B": "it is built on InternVL3, which is not tried yet",
    "Sa2VA-InternVL3-14B": "it is built on InternVL3, which is not tried yet",
}
"""Official releases that `ans` cannot load yet, and why. Sa2VA-1B and Sa2VA-4B (InternVL2.5 with Qwen2.5) are supported."""


@dataclass(frozen=True)
class Lora:
    """`enabled: false` leaves group `lora` out, whatever `groups` says. `targets`: the linear layers that are adapted."""

    enabled: bool
    rank: int
    alpha: float
    dropout: float
    targets: tuple[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...]

    def __post_init__(self) -> None:
        path = "presets.<preset>.train.lora"
        _check_ranges(self, path, rank=(1, INFINITY), alpha=(TINY, INFINITY), dropout=(0, 0.99))
        _require(len(self.targets) >= 1, f"{path}.targets", "names no layer; to leave LoRA out set lora.enabled=false")

    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Validation:
    """A look at a split after every epoch, by free generation. `patience`: epochs without a better `metric` after which training
    stops. `save_best_only: false` keeps the last epoch's tensors beside the best one's. `max_samples`: images."""

    split: str
    metric: Literal["ciou", "miou", "box_giou", "p50"]
    patience: int
    save_best_only: bool
    max_samples: int | None
    max_new_tokens: int
    tokens_per_batch: int

    def __post_init__(self) -> None:
        path = "presets.<preset>.train.validation"
        names = ("patience", "max_new_tokens", "tokens_per_batch", "max_samples")
        _check_ranges(self, path, **dict.fromkeys(names, (1, INFINITY)))

    @property
    def questions(self) -> Questions:
        """What is asked: every expression of the split."""
        return Questions((self.split,), (), self.max_samples, None)


@dataclass(frozen=True)
class PresetTrain:
    precision: Literal["float32", "bf16"]
    four_bit: tuple[Part, ...]
    referring: tuple[str, ...]
    max_train_samples: int | None
    epochs: int | None
    validation: Validation | None
    loops: bool
    groups: tuple[Group, ...]
    batch: int
    accumulation: int
    lr: float
    lr_sam2_scale: float
    optimizer: Literal["adamw", "paged_adamw"]
    schedule: Literal["constant", "cosine", "linear"]
    warmup: float
    weight_decay: float
    clip: float
    lora: Lora
    objects_per_image: int
    objects_per_conversation: int
    mask_points: int
    max_tiles: int
    caption_len: int
    checkpoint_activations: bool

    def __post_init__(self) -> None:
        path = "presets.<preset>.train"
        _require(len(self.referring) >= 1, f"{path}.referring", "names no source whose expressions are learnt")
        _require(len(self.trained) >= 1, f"{path}.groups", "names no group: nothing would be trained")
        _require(len(set(self.groups)) == len(self.groups), f"{path}.groups", "names a group twice")
        names = ("batch", "accumulation", "max_train_samples", "epochs", "objects_per_image", "objects_per_conversation")
        _check_ranges(self, path, **dict.fromkeys((*names, "max_tiles", "caption_len"), (1, INFINITY)), mask_points=(0, INFINITY))
        _check_ranges(self, path, lr=(TINY, INFINITY), lr_sam2_scale=(0, INFINITY), clip=(TINY, INFINITY), warmup=(0, 1))
        _check_ranges(self, path, weight_decay=(0, INFINITY))
        _require(
            self.validation is None or self.epochs is not None,
            f"{path}.validation",
            "looks after epochs: set presets.<preset>.train.epochs too",
        )
        both = {"seg_row", "embed_head"} <= set(self.groups)
        _require(not both, f"{path}.groups", "names seg_row and embed_head, which is the whole of it; choose one")

    @property
    def trained(self) -> tuple[Group, ...]:
        """The groups that are trained."""
        return tuple(group for group in self.groups if group != "lora" or self.lora.enabled)

    def effective_batch(self, processes: int) -> int:
        """Images per optimizer step over all processes."""
        return self.batch * self.accumulation * processes

    def epoch_steps(self, samples: int, processes: int) -> int:
        """Optimizer steps of a pass over `samples` images with expressions."""
        return -(-samples // self.effective_batch(processes))


@dataclass(frozen=True)
class PresetEvaluate:
    precision: Literal["float32", "bf16"]
    four_bit: tuple[Part, ...]
    tokens_per_batch: int
    max_new_tokens: int
    splits: tuple[str, ...]
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        path = "presets.<preset>.evaluate"
        _check_ranges(self, path, **dict.fromkeys(("tokens_per_batch", "max_new_tokens"), (1, INFINITY)))
        _require(len(self.splits) >= 1, f"{path}.splits", "names no split")
        for name in ("splits", "captions"):
            _require(len(set(getattr(self, name))) == len(getattr(self, name)), f"{path}.{name}", "names a split twice")


@dataclass(frozen=True)
class Preset:
    weights: PresetWeights
    train: PresetTrain
    evaluate: PresetEvaluate


@dataclass(frozen=True)
class Config:
    preset: str
    paths: Paths
    launch: Launch
    sources: dict[str, Source]
    own: dict[str, Own]
    variants: dict[str, tuple[Group, ...]]
    world: World
    index: Index
    subset_sa1b: SubsetSa1b
    train: Train
    convert: Convert
    evaluate: Evaluate
    report: Report
    presets: dict[str, Preset]

    def __post_init__(self) -> None:
        for name, reason in UNSUPPORTED.items():
            if self.preset.lower() == name.lower() and self.preset not in self.presets:
                raise ConfigError(f"preset: {name} is not supported yet ({reason}); Sa2VA-1B and Sa2VA-4B are")
        if self.preset not in self.presets:
            raise ConfigError(f"preset: no preset named {self.preset!r}; there are {', '.join(sorted(self.presets))}")
        counted = self.chosen.train.epochs is None or not self.loop1
        _require(counted, f"presets.{self.preset}.train.epochs", "counts passes without loop 1 between; with it set train.steps")
        _require(self.variants.get("base") == (), "variants.base", "must be there and be [] (the untouched base)")
        for name, groups in self.variants.items():
            _require(name == "base" or bool(groups), f"variants.{name}", "names no group; the untouched base is `base`")
        for section in ("sources", "own", "variants"):
            for name in getattr(self, section):
                _require(bool(NAME.fullmatch(name)), f"{section}.{name}", "a name consists of letters, digits, _ and -")
        twice = set(self.own) & {*self.sources, SUBSET}
        _require(not twice, f"own.{min(twice, default='')}", "the name of a published set; choose another")
        self._check_names()

    def _check_names(self) -> None:
        """Every source that is named is an index that will be made."""
        indexes = {*self.sources, *self.own, *([SUBSET] if "sa1b" in self.sources else [])} - {"sa1b"}
        train, evaluate = self.chosen.train, self.chosen.evaluate
        path = f"presets.{self.preset}"
        named = [(f"{path}.train.referring", name) for name in train.referring]
        named += [(f"{path}.train.validation.split", train.validation.split.rpartition("_")[0])] if train.validation else []
        named += [(f"{path}.evaluate.splits", split.rpartition("_")[0]) for split in evaluate.splits]
        named += [(f"{path}.evaluate.captions", split.rpartition("_")[0]) for split in evaluate.captions]
        named += [("train.loop1.sources", name) for name in (self.loop1.sources if self.loop1 else ())]
        named += [("train.loop2.source", self.loop2.source)] if self.loop2 else []
        for key, name in named:
            known = f"there are {', '.join(sorted(indexes))}; a split is <index>_<part>, e.g. refcoco_val"
            _require(name in indexes, key, f"no index named {name!r}; {known}")

    @property
    def chosen(self) -> Preset:
        """The preset that `preset` names."""
        return self.presets[self.preset]

    def source(self, name: str) -> Source | Own | None:
        """Where the set lies from which the index of that name is made."""
        return self.sources.get(name) or self.own.get(name)

    @property
    def questions(self) -> Questions:
        """What is evaluated."""
        preset, caps = self.chosen.evaluate, self.evaluate
        return Questions(preset.splits, preset.captions, caps.max_samples, caps.max_texts_per_image)

    @property
    def loop1(self) -> Loop1 | None:
        """Loop 1, where it is on: a preset whose model describes no regions has no loops."""
        return self.train.loop1 if self.train.loop1.enabled and self.chosen.train.loops else None

    @property
    def loop2(self) -> Loop2 | None:
        """Loop 2, where it is on; see `loop1`."""
        return self.train.loop2 if self.train.loop2.enabled and self.chosen.train.loops else None

    def of_steps(self, steps: int) -> "Config":
        """The same with so many steps: a preset may count epochs, whose length is the data's."""
        return dataclasses.replace(self, train=dataclasses.replace(self.train, steps=steps))

    def variant(self, name: str) -> tuple[Group, ...]:
        """Of the groups that a variant names those that there are: what the preset trains, or a foreign checkpoint holds."""
        there = self.convert.groups or self.chosen.train.trained
        return tuple(group for group in self.variants[name] if group in there)

    def training_indexes(self) -> tuple[str, ...]:
        """The indexes that training reads: of the expressions, of the loops that are on, and of the validation."""
        names = [*self.chosen.train.referring, *(self.loop1.sources if self.loop1 else ())]
        if validation := self.chosen.train.validation:
            names.append(validation.split.rpartition("_")[0])
        return tuple(dict.fromkeys([*names, *([self.loop2.source] if self.loop2 else ())]))

    def evaluation_indexes(self) -> tuple[str, ...]:
        """The indexes that evaluation reads: a split is `<index>_<part>`."""
        return tuple(dict.fromkeys(split.rpartition("_")[0] for split in (*self.questions.splits, *self.questions.captions)))

    def evaluated_alone(self) -> tuple[str, ...]:
        """The indexes that are evaluated and not learnt from: training does not look for their images among its own."""
        return tuple(name for name in self.evaluation_indexes() if name not in self.chosen.train.referring)


def load(path: str | Path = "params.yaml") -> Config:
    """Read and check the whole file. Raises `ConfigError` naming the first offending key."""
    with open(path, encoding="utf-8") as file:
        try:
            values = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not YAML: {error}") from error
    return parse(Config, values)


def parse(kind: type[T], values: Any, path: str = "") -> T:
    """Build the dataclass `kind` from plain YAML values. `path` is the dotted prefix for messages. Raises `ConfigError`."""
    return _parse(kind, values, path)


def _require(condition: bool, path: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"{path}: {message}")


def _check_ranges(section: Any, path: str, **ranges: tuple[float, float]) -> None:
    """Raise `ConfigError` where a number of `section` is not within its range, (lowest, highest) allowed; None is let pass."""
    for name, (low, high) in ranges.items():
        value = getattr(section, name)
        if value is None or low <= value <= high:  # false for NaN
            continue
        limits = f"at least {low:g}" if high == INFINITY else f"in [{low:g}, {high:g}]"
        raise ConfigError(f"{path}.{name}: must be {limits}, is {value}")


def _parse(kind: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    where = path or "params.yaml"
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a section, found {value!r}")
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        for key in value:
            if key not in names:
                raise ConfigError(f"{_join(path, key)}: unknown key; known here are {', '.join(names)}")
        for name in names:
            if name not in value:
                raise ConfigError(f"{_join(path, name)}: missing")
        return kind(**{name: _parse(hints[name], value[name], _join(path, name)) for name in names})
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        return tuple(_parse(typing.get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a section, found {value!r}")
        return {str(key): _parse(typing.get_args(kind)[1], item, _join(path, key)) for key, item in value.items()}
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{where}: expected one of {', '.join(typing.get_args(kind))}, found {value!r}")
        return value
    if origin is UnionType:
        if value is None:
            return None
        return _parse(next(arg for arg in typing.get_args(kind) if arg is not NoneType), value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if kind is float and isinstance(value, str) else ""
        raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r}{hint}")
    return value


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
