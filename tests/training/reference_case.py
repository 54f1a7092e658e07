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

from ans.checkpoints.base import shard
from ans.config import Config
from ans.config.sections import all_fields
from ans.data.arrow import read_index
from ans.data.samples import Evaluated
from ans.formats.pth import read_pth
from ans.launch import environments
from ans.model.adapters import add_lora, add_seg_row
from ans.model.config import ModelConfig
from ans.model.keys import Keys
from ans.model.segmenter import Segmenter
from ans.tasks import load as load_task
from ans.tasks.base import AnyTask, Setting
from ans.training.loop import train
from ans.workspace import Workspace
from tests import forked, pipeline
from tests.training import plain
from tests.training.plain import Micro, Settings, State

REFERRING, LOOP1, LOOP2 = "train.referring", "train.loop1", "train.loop2"
KEYS = {
    **{name: f"train.{name}" for name in ("seed", "steps", "epochs", "precision", "groups", "batch", "accumulation", "lr")},
    **{name: f"train.{name}" for name in ("lr_sam2_scale", "schedule", "warmup", "weight_decay", "clip", "mask_points")},
    **{name: f"train.{name}" for name in ("max_tiles", "caption_len", "checkpoint_activations", "beta", "surgery")},
    **{name: f"train.{name}" for name in ("validation", "min_seg_rate", "gallery")},
    **{name: f"train.loss.{name}" for name in ("mask", "dice", "language", "iou", "lisa_dice")},
    "ema_decay": "train.ema.decay",
    "ema_warmup": "train.ema.warmup",
    "lora": "train.lora.enabled",
    "lora_rank": "train.lora.rank",
    "lora_alpha": "train.lora.alpha",
    "lora_targets": "train.lora.targets",
    "dropout": "train.lora.dropout",
    "referring": f"{REFERRING}.enabled",
    "referring_sources": f"{REFERRING}.sources",
    "max_train_samples": f"{REFERRING}.max_images",
    **{name: f"{REFERRING}.{name}" for name in ("objects_per_image", "objects_per_conversation")},
    "captioning": "train.captioning.enabled",
    "loop1": f"{LOOP1}.enabled",
    "loop1_sources": f"{LOOP1}.sources",
    "masks_per_image": f"{LOOP1}.objects_per_image",
    **{name: f"{LOOP1}.{name}" for name in ("bridge", "rescored", "tau", "tau_end", "top_k", "mask_ratio", "noise")},
    **{name: f"{LOOP1}.{name}" for name in ("description_prompts", "denoising", "confidence", "distillation")},
    **{name: f"{LOOP1}.{name}" for name in ("views", "imitation", "agreement")},
    **{name: f"{LOOP1}.{name}" for name in ("reward", "draws", "contrast", "leash")},
    "loop2": f"{LOOP2}.enabled",
    "loop2_source": f"{LOOP2}.source",
    "loop2_max_samples": f"{LOOP2}.max_samples",
    "loop2_prompts": f"{LOOP2}.description_prompts",
    **{name: f"{LOOP2}.{name}" for name in ("soft_region", "mask_supervision")},
}
"""The names that the tests use for settings -> their keys in `params.yaml`."""

OBSERVED = {"save_every": "train.save_every", "save_state_seconds": "launch.save_state_seconds", "workers": "launch.workers"}
"""What makes a run leave the state after each step, in this very process."""

Changes = Mapping[str, Any]


TILED = "tiny-tiled"
"""The tiny model, but for its config.json: it cuts an image into several tiles, as the large ones do."""


@dataclass(frozen=True)
class World:
    """A small world with its indexes, and the bases: of the presets `tiny` and `lisa-tiny`, `TILED`, and what else was put there."""

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
        here = Workspace(self.work)
        return here.base if base == "tiny" else here.base.with_name(base)

    def workspace(self, base: str, folder: Path) -> Workspace:
        """A workspace of its own in `folder`, with the world's indexes and one of its bases."""
        here = Workspace(folder)
        for made, there in ((here.indexes, Workspace(self.work).indexes), (here.base, self.base(base))):
            if not made.is_symlink():
                made.parent.mkdir(parents=True, exist_ok=True)
                made.symlink_to(there)
        return here

    def values(self, base: str, changes: Changes) -> dict[str, Any]:
        """`params.yaml` with a data root of this world, the preset of `base`, and `changes` (names of `KEYS`)."""
        values = copy.deepcopy(_small_values(self.work.parent / "world"))
        values["preset"] = base if base == "lisa-tiny" else "tiny"
        observed = {"save_every": 1, "save_state_seconds": 0.0, "workers": 0}
        for name, value in {**observed, **changes}.items():
            *parents, last = key_of(name).split(".")
            section = values
            for parent in parents:
                section[parent] = section = section[parent] or {}
            section[last] = "none" if value is None else value
        return values

    def config(self, base: str, changes: Changes) -> Config:
        return Config(self.values(base, changes))

    def run(self, base: str, changes: Changes, folder: Path, on_disk: bool = False, stop_after: int | None = None) -> list[State]:
        """Train in `folder`, and give the state after each step; its values are those of the curves, to six digits.

        What is saved is caught on its way to the disk, which would take a third of the time of a run, but for a run `on_disk`, whose
        checkpoints are read. With `stop_after` such a run is asked to stop (SIGTERM) once that step is done, and started again.
        """
        config, workspace, keys = self.config(base, changes), self.workspace(base, folder), self.keys(base)
        trained: dict[int, dict[str, Tensor]] = {}
        teachers: dict[int, dict[str, Tensor]] = {}
        names: dict[str, str] = {}  # of the trained tensors: as in a checkpoint -> as in the model
        stopped = 0

        def saved(content: Mapping[str, Any]) -> bool:
            if "teacher" in content:
                names.update({keys.trained_name(name): name for name in content["trained"]})
                teachers[content["step"]] = plain.copies(content["teacher"])
                if content["step"] == stop_after and not stopped:
                    signal.raise_signal(signal.SIGTERM)
            else:
                trained[content["meta"]["step"]] = plain.copies(content["state_dict"])
            return on_disk

        AcceleratorState._reset_state()  # a process has one precision otherwise
        try:
            with _own_signals(), _observed_saves(saved):
                try:
                    train(config, workspace)
                except SystemExit as end:
                    stopped = end.code
                if stop_after is not None:
                    assert stopped == 128 + signal.SIGTERM, "the run did not stop when it was asked to"
                    gc.collect()  # the exception's frames hold the run's lock
                    train(config, workspace)
        finally:
            AcceleratorState._reset_state()
        return _read_states(workspace, _read_steps(workspace) if on_disk else trained, teachers, names)

    def run_together(self, base: str, changes: Changes, folder: Path, processes: int, shard_frozen: bool) -> list[State]:
        """As `run`, as several processes; there is no teacher to be seen."""
        values, workspace = self.values(base, changes), self.workspace(base, folder)
        values["launch"] |= {"processes": processes, "shard_frozen": shard_frozen}
        # in the file's own order: that of loop 1's sources decides which sample comes when
        workspace.params.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        here = os.environ | {"PYTHONPATH": str(pipeline.REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
        places = environments(Config(values).launch, 0)
        for done in forked.run_together("ans.training", cwd=folder, environments=[here | place for place in places]):
            assert done.returncode == 0, done.stderr
        trained = plain.select(self.model(base, changes), self.settings(base, changes))
        return _read_states(workspace, _read_steps(workspace), {}, {self.keys(base).trained_name(name): name for name in trained})

    def keys(self, base: str) -> Keys:
        """The names of a base's tensors."""
        return ModelConfig.from_folder(self.base(base)).keys

    def model(self, base: str, changes: Changes) -> Segmenter:
        """The base with what is added to it for training."""
        config = self.config(base, changes)
        dtype = torch.bfloat16 if setting(config, "precision") == "bf16" else torch.float32
        model = Segmenter.from_pretrained(self.base(base), "cpu", dtype)
        if setting(config, "lora") and "lora" in setting(config, "groups"):
            rank, alpha, dropout, seed, targets = (
                setting(config, name) for name in ("lora_rank", "lora_alpha", "dropout", "seed", "lora_targets")
            )
            add_lora(model, rank, alpha, dropout, seed, targets)
        if "seg_row" in setting(config, "groups"):
            add_seg_row(model)
        return model

    def settings(self, base: str, changes: Changes) -> Settings:
        """The settings as the reference takes them."""
        config = self.config(base, changes)
        return Settings(**{field.name: setting(config, field.name) for field in dataclasses.fields(Settings)})

    def samples(self, base: str, changes: Changes, model: Segmenter) -> list[list[Micro]]:
        """Of every step the micro-batches that the data gives."""
        config, workspace = self.config(base, changes), Workspace(self.work)
        root = Path(config.paths.root)
        indexes = {name: read_index(workspace.index(name)) for name in config.training_indexes()}
        evaluated = Evaluated(indexes.values(), root)
        given = Setting(config.train, model.config, model.tokenizer, root, indexes.__getitem__, evaluated)
        tasks = {name: load_task(name)(of, given) for name, of in config.tasks.items()}
        batch, each = (setting(config, name) for name in ("batch", "accumulation"))

        def take(task: AnyTask, number: int) -> Any:
            return task.batch(range(number * batch, (number + 1) * batch))

        sizes = [len(tasks[name]) if name in tasks else 0 for name in ("referring", "loop1")]
        steps = setting(config, "steps")
        if setting(config, "epochs") is not None:
            steps = setting(config, "epochs") * -(-sum(sizes) // (batch * each))
        found = []
        for step, (regions, before) in enumerate(plain.turns(*sizes, steps)):
            first = tasks["loop1" if regions else "referring"]
            micros = []
            for micro in range(each):
                second = take(tasks["loop2"], step * each + micro) if "loop2" in tasks else None
                micros.append(Micro(regions, take(first, before * each + micro), second))
            found.append(micros)
        return found

    def seed_step(self, base: str, changes: Changes) -> Callable[[int], object]:
        """Seeds what dropout draws from, as the first process of a run does."""
        seed = setting(self.config(base, changes), "seed")
        return lambda step: torch.manual_seed(hash((seed, step, 0)))


_small_values = cache(pipeline.small_values)  # reading YAML takes as long as a step


def key_of(name: str) -> str:
    """The key of a setting in `params.yaml`, dotted."""
    return (KEYS | OBSERVED)[name]


def training_keys() -> set[str]:
    """All keys of `params.yaml` that a training has, dotted; of those that lie within each other, the innermost."""
    keys = {key for key in all_fields() if key.startswith("train.")}
    return {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}


def setting(config: Config, name: str) -> Any:
    """The value of a setting (of `KEYS`)."""
    _, *parts = key_of(name).split(".")
    value: Any = config.train
    if parts[0] in ("referring", "loop1", "loop2"):
        value = config.task(parts.pop(0))
    for part in parts:
        value = getattr(value, part)
    return value


def _read_steps(workspace: Workspace) -> dict[int, dict[str, Tensor]]:
    """The tensors of all step checkpoints."""
    paths = workspace.checkpoint.glob("step_*.pth")
    return {int(path.stem.removeprefix("step_")): read_pth(path).state for path in paths}


def _read_states(
    workspace: Workspace,
    trained: Mapping[int, dict[str, Tensor]],
    teachers: Mapping[int, dict[str, Tensor]],
    names: Mapping[str, str],
) -> list[State]:
    curves: dict[str, dict[int, float]] = {}
    for path in sorted((workspace.training / "plots").glob("*.tsv")):
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        curves[path.stem] = {int(step): float(value) for step, value in rows}
    states = []
    for step, tensors in sorted(trained.items()):
        values = {name: values[step] for name, values in curves.items() if step in values}
        states.append(State({names[name]: of for name, of in tensors.items()}, teachers.get(step, {}), values))
    return states


@contextmanager
def _own_signals() -> Iterator[None]:
    """A training puts handlers of its own, which must not outlive it here."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _observed_saves(look: Callable[[Mapping[str, Any]], bool]) -> Iterator[None]:
    """Within, `look` sees whatever is about to be written by `torch.save`, the resume state with the teacher among it, and says
    whether it shall be."""
    save = torch.save

    def observed(content: Any, *arguments: Any, **named: Any) -> None:
        if look(content):
            save(content, *arguments, **named)

    torch.save = observed
    try:
        yield
    finally:
        torch.save = save
