"""What a run will do and need, computed before it starts; needs no GPU, and no data for most of it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers.initialization import no_init_weights

from ans.config import Config
from ans.config.tasks import TaskSettings
from ans.groups import shards_of
from ans.model.adapters import group_of_parameter
from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from ans.planning import memory, missing
from ans.planning.memory import Micro
from ans.planning.released import RELEASED
from ans.tasks import load as load_task
from ans.tasks.base import AnyTask
from ans.training import setup
from ans.workspace import Workspace

GPUS = 8
"""The number of GPUs that the real presets are made for."""

PEAK = 989e12
"""FLOP/s of an H100 in dense bf16, by its data sheet."""

IMAGE = (480, 640)
"""Height and width of an image of COCO, by which the tokens of a labelled image are counted."""

TURN, ANSWER = 40, 10
"""Tokens of a question with its answer, and of an answer; an expression of eight words."""


@dataclass
class Outlook:
    """`groups`: state, tensors and parameters of each part; None where the model's sizes are not known. `samples`: of each source, as
    far as it is indexed. `gigabytes`: memory of one process by item. `disk`: GB by item. `splits`: what is known of each. `missing`:
    what the run cannot do without, and how to come by it."""

    preset: str
    processes: int
    batch: int
    accumulation: int
    steps: int | None
    steps_said: str
    groups: dict[str, dict[str, Any]] | None = None
    samples: dict[str, int] = field(default_factory=dict)
    gigabytes: dict[str, float] = field(default_factory=dict)
    flop: float | None = None
    disk: dict[str, float] = field(default_factory=dict)
    free: float = 0.0
    splits: dict[str, str] = field(default_factory=dict)
    command: str = ""
    missing: list[str] = field(default_factory=list)

    @property
    def effective_batch(self) -> int:
        return self.processes * self.batch * self.accumulation


def look_ahead(config: Config, workspace: Workspace = Workspace()) -> Outlook:
    """Return the outlook on a run with these settings. What is wrong with them, or not there, is listed, not raised."""
    train, settings, wrong = config.train, *missing.tasks_of(config)
    processes = config.launch.processes * config.launch.machines
    found = Outlook(config.preset, processes, train.batch, train.accumulation, *_steps(config))
    found.missing += wrong + missing.trust(config) + missing.packages(config) + missing.data_sets(config, workspace)
    for split in dict.fromkeys(
        [*config.evaluate.splits, *config.evaluate.captions, *config.evaluate.grounded, *missing.validated(config)]
    ):
        known, problem = missing.look_up(split, config, workspace)
        found.splits[split] = known
        found.missing += [problem] if problem else []
    if settings and (model := _model(config)) is not None:
        _add_needs(found, config, workspace, model, settings)
    found.command = missing.command(config, workspace)
    return found


def _add_needs(
    found: Outlook, config: Config, workspace: Workspace, model: Segmenter, settings: Mapping[str, TaskSettings]
) -> None:
    """Add what follows from the model's sizes: parameters, samples, memory, time and disk."""
    train = config.train
    try:
        with no_init_weights():  # LoRA's layers are drawn in memory before they go to the model's device
            trained = setup.make_trainable(model, train)
    except ValueError as error:  # a group or a layer that this model does not have
        found.missing.append(str(error))
        return
    found.groups = _groups(model)
    _count_samples(found, config, workspace, model)
    kinds = {name: load_task(name) for name in settings}
    teacher, loops = any(kind.teacher for kind in kinds.values()), any(kind.role == "auxiliary" for kind in kinds.values())
    micro = {name: micro_of(model.config, config, of) for name, of in settings.items()}
    shares = found.processes if config.launch.shard_frozen else 1
    found.gigabytes = memory.estimate(model, train, max(micro.values(), key=lambda one: one.tokens), teacher, loops, shares)
    if found.steps is not None and train.precision == "bf16":  # the peak is that of bf16
        primary = min((micro[name].tokens for name, kind in kinds.items() if kind.role == "primary"), default=0)
        tokens = primary + sum(micro[name].tokens for name, kind in kinds.items() if kind.role == "auxiliary")
        found.flop = found.steps * train.accumulation * found.processes * flop(model, tokens, train.checkpoint_activations)
    found.disk = _disk(config, model, sum(p.numel() for p in trained.values()), found.steps, teacher)
    found.free = shutil.disk_usage(workspace.root).free / 1e9
    if found.free < (needed := sum(found.disk.values())):
        found.missing.append(f"disk: the run needs {needed:.0f} GB here, {found.free:.0f} GB are free")


def _steps(config: Config) -> tuple[int | None, str]:
    train = config.train
    if train.epochs is None:
        return train.steps, f"{train.steps:,}"
    return None, f"passes over the labelled images: {train.epochs}; how many steps they are is known when the images are indexed"


def _model(config: Config) -> Segmenter | None:
    """Return the model without memory, or None where nothing is known of its sizes before it is fetched."""
    weights = config.weights
    folder = Path(weights.location)
    if weights.source in ("embedded", "path") and (folder / "config.json").is_file():
        return memory.empty_model(ModelConfig.from_folder(folder))
    if weights.source == "hub" and (values := RELEASED.get(weights.location)):
        return memory.empty_model(ModelConfig.from_dict(values))
    return None


def _groups(model: Segmenter) -> dict[str, dict[str, Any]]:
    """Return part of the model -> trained or frozen, tensors and parameters."""
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        trained = group_of_parameter(model, name) if parameter.requires_grad else None
        key, state = (f"{trained} (trained)", "trained") if trained else (memory.shard_of(model, name), "frozen")
        entry = groups.setdefault(key, {"state": state, "tensors": 0, "parameters": 0})
        entry["tensors"] += 1
        entry["parameters"] += parameter.numel()
    return groups


def _count_samples(found: Outlook, config: Config, workspace: Workspace, model: Segmenter) -> None:
    """Count the samples of each source and, where epochs count, the steps; both only when all that the training reads is indexed."""
    if any(missing.not_indexed(name, config, workspace) is not None for name in config.training_indexes()):
        return
    try:
        tasks: dict[str, AnyTask] = setup.load_tasks(config, workspace, model, first_process=False)
        found.steps, _ = setup.steps_of(config.train, tasks, found.processes)
    except (ValueError, FileNotFoundError) as error:
        found.missing.append(str(error))
        return
    found.samples = {source: count for task in tasks.values() for source, count in task.sizes().items()}
    epochs = config.train.epochs
    found.steps_said = f"{found.steps:,}" + (f" (passes over the labelled images: {epochs})" if epochs is not None else "")


def micro_of(model: ModelConfig, config: Config, task: TaskSettings) -> Micro:
    """Return what a micro-batch of a task puts through the language model. Labelled images come with all their objects; a loop reads
    its one tile twice, once with the caption as an answer and once as an expression."""
    train = config.train
    if task.clips():
        objects = getattr(task, "expressions", 1)
        tokens = getattr(task, "frames", 1) * model.family.grid(*IMAGE, max_tiles=1).tokens + objects * TURN
        return Micro(train.batch * tokens, train.batch * objects * ANSWER)
    if task.labelled():
        objects = getattr(task, "objects_per_image", 1)
        tokens = model.family.grid(*IMAGE, max_tiles=train.max_tiles).tokens + objects * TURN
        return Micro(train.batch * tokens, train.batch * objects * ANSWER)
    one = model.family.grid(*IMAGE, max_tiles=1).tokens + train.caption_len
    return Micro(train.batch * 2 * one, train.batch * (train.caption_len + ANSWER))


def flop(model: Segmenter, tokens: int, checkpointing: bool) -> float:
    """Return FLOPs of the language model's linear layers over this many tokens: forward, backward to the inputs and, with activation
    checkpointing, forward again. The frozen weights have no gradient of their own."""
    layers = model.vlm.language_model.model.modules()
    weights = sum(m.weight.numel() for m in layers if type(m) is nn.Linear and not m.weight.requires_grad)
    return 2.0 * weights * tokens * (3 if checkpointing else 2)


def _disk(config: Config, model: Segmenter, trained: int, steps: int | None, teacher: bool) -> dict[str, float]:
    """Return GB by item. Variants, and DVC's cache of what the stages made, are links where the file system has them."""
    train = config.train
    stored = 4 if config.weights.source in ("embedded", "path") else 2
    total = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    changed = shards_of(train.trained)
    rewritten = sum(
        p.numel() for name, p in model.named_parameters() if "lora_" not in name and memory.shard_of(model, name) in changed
    )
    kept = (steps or 0) // train.save_every if train.save_every else 0
    kept = min(kept, train.keep) if train.keep else kept
    return {
        f"base ({stored} bytes a parameter)": stored * total / 1e9,
        f"trained model, shards that change ({config.convert.precision})": (4 if config.convert.precision == "float32" else 2)
        * rewritten
        / 1e9,
        f"checkpoints, {kept + 1}": 4 * trained * (kept + 1) / 1e9,
        "state to resume from, the old one and the new": 2 * (4 + 8 + 4 * teacher) * trained / 1e9,
        **({"features of the frozen encoders": config.launch.feature_cache_gb} if config.launch.feature_cache_gb else {}),
    }


def text(found: Outlook) -> str:
    """Return the outlook as it is printed."""
    one = found.batch * found.accumulation
    lines = [
        f"preset {found.preset}",
        f"effective batch   {found.effective_batch:,} = {found.processes} process(es) x {found.batch} images x {found.accumulation} "
        f"accumulated" + ("" if found.processes == GPUS else f" ({GPUS * one:,} on {GPUS} GPUs: launch.processes={GPUS})"),
        f"steps             {found.steps_said}",
    ]
    if found.steps is not None:
        lines.append(f"samples           {found.steps * found.effective_batch:,} images of the primary tasks")
    lines += [f"{count:>17,} samples of {name}" for name, count in found.samples.items()]
    lines += ["", "parameters"]
    if found.groups is None:
        lines.append("  not known before the base is fetched (dvc repro weights); so memory, time and disk are not either")
    else:
        lines += [
            f"  {name:<24}{of['state']:<9}{of['tensors']:>5} tensors {of['parameters']:>14,} parameters"
            for name, of in found.groups.items()
        ]
        lines += [
            "",
            "memory of one process in GB, at least (by formula, ans/planning/memory.py; the mask decoder's is not counted)",
        ]
        lines += _amounts(found.gigabytes)
        lines += ["", *_time(found)]
        lines += [
            "",
            f"disk in GB, {found.free:,.0f} free here (by formula)",
            *_amounts(found.disk | {"sum": sum(found.disk.values())}),
        ]
    lines += ["", "splits", *(f"  {name:<24}{known}" for name, known in found.splits.items())]
    lines += ["", "start it by", f"  {found.command}", ""]
    lines += ["missing", *(f"  {one}" for one in found.missing)] if found.missing else ["nothing is missing"]
    return "\n".join(lines)


def _amounts(items: Mapping[str, float]) -> list[str]:
    return [f"  {name:<62}{value:>9.2f}" for name, value in items.items()]


def _time(found: Outlook) -> list[str]:
    lines = ["time: not known before the run, which says it after its first steps; python -m tests.bench.gpu measures a step"]
    if found.flop is not None:
        hours = found.flop / (found.processes * PEAK) / 3600
        lines.append(
            f"  at least {hours:,.2f} hours on {found.processes} H100 at their data sheet's {PEAK / 1e12:.0f} TFLOP/s: "
            f"{found.flop / 1e15:,.0f} PFLOP in the language model's linear layers (by formula; captions and encoders not counted)"
        )
    return lines
