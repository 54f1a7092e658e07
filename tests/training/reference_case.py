"""The one way by which the independent step and the golden curves reach a training: its entry, its settings, its samples, and
what it leaves. Where a module, a key of `params.yaml`, a file or a curve gets another name, it is mended here.
"""

import copy
import dataclasses
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState
from torch import Tensor

from ans.checkpoints.layout import model_to_pth_name
from ans.checkpoints.pth import read_pth
from ans.checkpoints.shards import shard
from ans.config import Config, parse
from ans.data.dataset import Referring, Regions, Sampling, TrainingData, training_rows
from ans.data.index import Index, read_index
from ans.model.adapters import add_lora, add_seg_row
from ans.model.segmenter import Segmenter
from ans.training.loop import Run, train
from tests import pipeline
from tests.training.plain import Micro, Settings, State, select

TRAIN, PRESET, LOOP1, LOOP2 = "train", "presets.{preset}.train", "train.loop1", "train.loop2"
KEYS = {
    **{name: f"{TRAIN}.{name}" for name in ("seed", "steps", "beta", "surgery", "min_seg_rate", "gallery")},
    **{name: f"{TRAIN}.loss.{name}" for name in ("mask", "dice", "language", "iou", "lisa_dice")},
    "ema_decay": f"{TRAIN}.ema.decay",
    "ema_warmup": f"{TRAIN}.ema.warmup",
    "loop1": f"{LOOP1}.enabled",
    "loop1_sources": f"{LOOP1}.sources",
    "masks_per_image": f"{LOOP1}.objects_per_image",
    **{name: f"{LOOP1}.{name}" for name in ("bridge", "rescored", "tau", "tau_end", "top_k", "mask_ratio", "noise")},
    **{name: f"{LOOP1}.{name}" for name in ("description_prompts", "denoising", "confidence", "distillation")},
    **{name: f"{LOOP1}.{name}" for name in ("reward", "reward_by")},
    "loop2": f"{LOOP2}.enabled",
    "loop2_source": f"{LOOP2}.source",
    "loop2_max_samples": f"{LOOP2}.max_samples",
    **{name: f"{LOOP2}.{name}" for name in ("soft_region", "mask_supervision")},
    **{name: f"{PRESET}.{name}" for name in ("precision", "referring", "max_train_samples", "epochs", "loops", "groups")},
    **{name: f"{PRESET}.{name}" for name in ("batch", "accumulation", "lr", "lr_sam2_scale", "schedule", "warmup")},
    **{name: f"{PRESET}.{name}" for name in ("weight_decay", "clip", "objects_per_image", "objects_per_conversation")},
    **{name: f"{PRESET}.{name}" for name in ("mask_points", "max_tiles", "caption_len", "checkpoint_activations")},
    **{name: f"{PRESET}.{name}" for name in ("validation",)},
    "lora": f"{PRESET}.lora.enabled",
    "lora_rank": f"{PRESET}.lora.rank",
    "lora_alpha": f"{PRESET}.lora.alpha",
    "lora_targets": f"{PRESET}.lora.targets",
    "dropout": f"{PRESET}.lora.dropout",
}
"""The names that the tests use for settings -> their keys in `params.yaml`."""

OBSERVED = {"save_every": f"{TRAIN}.save_every", "save_state_seconds": "launch.save_state_seconds", "workers": "launch.workers"}
"""What makes a run leave the state after each step, in this very process."""

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run left. `states`: after each of its steps; the logged values are those of the curves, to six digits."""

    states: list[State]
    manifest: dict[str, Any]
    files: dict[str, bytes]


TILED = "tiny-tiled"
"""The tiny model, but for its config.json: it cuts an image into several tiles, as the large ones do."""


@dataclass(frozen=True)
class World:
    """A small world with its indexes, and the bases: of the presets `tiny` and `lisa-tiny`, and `TILED`."""

    work: Path

    @classmethod
    def prepare(cls, folder: Path) -> "World":
        world = cls(pipeline.prepare(folder))
        shard(pipeline.REPOSITORY / "weights" / "lisa-tiny", world.base("lisa-tiny"))
        shutil.copytree(world.base("tiny"), world.base(TILED))
        config = world.base(TILED) / "config.json"
        values = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(values | {"dynamic_image_size": True, "max_dynamic_patch": 6}), encoding="utf-8")
        return world

    def base(self, base: str) -> Path:
        return self.work / "models" / ("base" if base == "tiny" else base)

    def values(self, base: str, changes: Changes) -> dict[str, Any]:
        """`params.yaml` with a data root of this world, the preset of `base`, and `changes` (names of `KEYS`)."""
        values = copy.deepcopy(_small_values(self.work.parent / "world"))
        values["preset"] = base.removesuffix("-tiled")
        observed = {"save_every": 1, "save_state_seconds": 0.0, "workers": 0}
        for name, value in {**observed, **changes}.items():
            section, last = _section(values, name)
            assert last in section, f"params.yaml has no {name} any more"
            section[last] = value
        return values

    def run(self, base: str, changes: Changes, folder: Path, stop_after: int | None = None) -> Outcome:
        """Train, and read what is left in `folder`. With `stop_after` the run is asked to stop (SIGTERM) once that step is done,
        and started again."""
        config = parse(Config, self.values(base, changes))
        run = Run(self.base(base), self.work / "data" / "index", folder / "out", folder / "reports")
        teachers: dict[int, dict[str, Tensor]] = {}
        names: dict[str, str] = {}  # of the trained tensors: as in a checkpoint -> as in the model
        stopped = 0

        def saved(content: Mapping[str, Any]) -> None:
            if "teacher" in content:
                names.update({model_to_pth_name(name): name for name in content["trained"]})
                teachers[content["step"]] = {name: tensor.clone() for name, tensor in content["teacher"].items()}
                if content["step"] == stop_after and not stopped:
                    signal.raise_signal(signal.SIGTERM)

        AcceleratorState._reset_state()  # a process has one precision otherwise
        with _environment("ANS_RUNS", str(folder / "runs")), _own_sigterm(), _observed_saves(saved):
            try:
                train(config, run)
            except SystemExit as end:
                stopped = end.code
            if stop_after is not None:
                assert stopped == 128 + signal.SIGTERM, "the run did not stop when it was asked to"
                gc.collect()  # the exception's frames hold the run's lock
                train(config, run)
        return _read_outcome(run, teachers, names)

    def run_by_command(self, base: str, changes: Changes, processes: int) -> Outcome:
        """As `run`, by the command that the pipeline has and as several processes; there is no teacher to be seen."""
        values = self.values(base, changes)
        values["launch"] |= {"processes": processes, "main_port": 29613}
        # in the file's own order: that of loop 1's sources decides which sample comes when
        (self.work / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        pipeline.run(self.work, "train")
        run = Run(out=self.work / "models" / "checkpoint", reports=self.work / "reports" / "train")
        model = self.model(base, changes)
        names = {model_to_pth_name(name): name for name in select(model, self.settings(base, changes))}
        return _read_outcome(run, {}, names)

    def model(self, base: str, changes: Changes) -> Segmenter:
        """The base with what is added to it for training."""
        values = self.values(base, changes)
        dtype = torch.bfloat16 if setting(values, "precision") == "bf16" else torch.float32
        model = Segmenter.from_pretrained(self.base(base), "cpu", dtype)
        if setting(values, "lora") and "lora" in setting(values, "groups"):
            rank, alpha, dropout, seed, targets = (
                setting(values, name) for name in ("lora_rank", "lora_alpha", "dropout", "seed", "lora_targets")
            )
            add_lora(model, rank, alpha, dropout, seed, targets)
        if "seg_row" in setting(values, "groups"):
            add_seg_row(model)
        return model

    def settings(self, base: str, changes: Changes) -> Settings:
        """The settings as the reference takes them."""
        values = self.values(base, changes)
        found = {field.name: setting(values, field.name) for field in dataclasses.fields(Settings)}
        found["loop1"] = found["loop1"] and setting(values, "loops")
        return Settings(**found)

    def samples(self, base: str, changes: Changes, model: Segmenter) -> list[list[Micro]]:
        """Of every step the micro-batches that the data gives."""
        values = self.values(base, changes)

        def of(name: str) -> Any:
            return setting(values, name)

        def index(name: str) -> Index:
            return read_index(self.work / "data" / "index" / f"{name}.arrow")

        referring = [index(name) for name in of("referring")]
        rows = training_rows(referring)[0][: of("max_train_samples")]
        steps = of("steps")
        if of("epochs") is not None:
            steps = of("epochs") * -(-len(rows) // (of("batch") * of("accumulation")))
        masks, repeats, captions = [], [], None
        if of("loop1") and of("loops"):
            masks = [Regions(name, index(name), source["max_samples"]) for name, source in of("loop1_sources").items()]
            repeats = [source["repeats"] for source in of("loop1_sources").values()]
        if of("loop2") and of("loops"):
            captions = Regions(of("loop2_source"), index(of("loop2_source")), of("loop2_max_samples"), described=True)
        sampling = Sampling(**{field.name: of(field.name) for field in dataclasses.fields(Sampling)})
        each = of("accumulation")
        data = TrainingData(
            Referring(referring, rows), masks, repeats, captions, Path(values["paths"]["root"]), model.config, model.tokenizer,
            sampling, items=steps * each, accumulation=each,
        )  # fmt: skip
        items = map(data.__getitem__, range(len(data)))
        micros = [Micro(hasattr(first, "describe_index"), first, second) for first, second in items]
        return [micros[start : start + each] for start in range(0, len(micros), each)]

    def seed_step(self, base: str, changes: Changes) -> Callable[[int], object]:
        """Seeds what dropout draws from, as the first process of a run does."""
        seed = setting(self.values(base, changes), "seed")
        return lambda step: torch.manual_seed(hash((seed, step, 0)))


_small_values = cache(pipeline.small_values)  # reading YAML takes as long as a step


def key_of(name: str, preset: str) -> str:
    """The key of a setting in `params.yaml`, dotted."""
    return (KEYS | OBSERVED)[name].format(preset=preset)


def training_keys(preset: str) -> set[str]:
    """All keys of `params.yaml` below those of a training, dotted."""

    def below(section: dict[str, Any], path: str) -> Iterator[str]:
        for name, value in section.items():
            if isinstance(value, dict):
                yield from below(value, f"{path}.{name}")
            else:
                yield f"{path}.{name}"

    values = _small_values(Path())
    section = values["presets"][preset]["train"]
    return {*below(values["train"], TRAIN), *below(section, PRESET.format(preset=preset))}


def setting(values: dict[str, Any], name: str) -> Any:
    """The value of a setting (of `KEYS`) in a whole `params.yaml`."""
    section, last = _section(values, name)
    return section[last]


def _section(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The section that holds a setting, and its last key."""
    *parents, last = key_of(name, values["preset"]).split(".")
    section = values
    for parent in parents:
        section = section[parent]
    return section, last


def _read_outcome(run: Run, teachers: Mapping[int, dict[str, Tensor]], names: Mapping[str, str]) -> Outcome:
    curves: dict[str, dict[int, float]] = {}
    for path in sorted((run.reports / "plots").glob("*.tsv")):
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        curves[path.stem] = {int(step): float(value) for step, value in rows}
    states = []
    for path in sorted(run.out.glob("step_*.pth")):
        step = int(path.stem.removeprefix("step_"))
        values = {name: values[step] for name, values in curves.items() if step in values}
        trained = {names[name]: tensor for name, tensor in read_pth(path).state.items()}
        states.append(State(trained, teachers.get(step, {}), values))
    files = [*run.out.glob("*.json"), *run.reports.rglob("*.json"), *run.reports.rglob("*.tsv")]
    manifest = json.loads((run.out / "manifest.json").read_text(encoding="utf-8"))
    return Outcome(states, manifest, {path.name: path.read_bytes() for path in files})


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """A training puts a handler of its own, which must not outlive it here."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _observed_saves(look: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Within, `look` sees whatever is written to disk by `torch.save`: the resume state, with the teacher in it, is gone at the
    end of a run."""
    save = torch.save

    def observed(content: Any, *arguments: Any, **named: Any) -> None:
        save(content, *arguments, **named)
        if isinstance(content, Mapping):
            look(content)

    torch.save = observed
    try:
        yield
    finally:
        torch.save = save
