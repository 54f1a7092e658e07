"""The manifest of a run: what is trained and what is frozen, the effective batch, the data, and the settings."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ans.config import Config
from ans.groups import SHARDS
from ans.model.adapters import group_of_parameter
from ans.model.four_bit import numbers
from ans.model.segmenter import Segmenter
from ans.shown import Panel
from ans.tasks.base import AnyTask
from ans.training.hooks.validation import SHOWN
from ans.training.hooks.video_validation import SHOWN as VIDEO


def describe(
    config: Config,
    model: Segmenter,
    trained: Mapping[str, nn.Parameter],
    tasks: Mapping[str, AnyTask],
    steps: int,
    base: str,
    processes: int,
) -> dict[str, Any]:
    """Return the manifest as it is stored beside the trained tensors. `steps`: of the optimizer. `base`: checksum of the base.
    `seg_token`: the row that group `seg_row` is. `panels`: the curves that the report shows."""
    train, keys = config.train, model.config.keys
    settings = train.model_dump()
    # the export must not depend on what a later version of the family takes for its recipe
    settings["lora"]["targets"] = train.lora.targets or model.config.family.lora_targets
    groups: dict[str, dict[str, Any]] = {name: {"state": "frozen", "tensors": 0, "parameters": 0} for name in SHARDS}
    for name, parameter in model.named_parameters():
        if name in trained:
            key = f"{group_of_parameter(model, name)} (trained)"
            entry = groups.setdefault(key, {"state": "trained", "tensors": 0, "parameters": 0})
        else:
            entry = groups[keys.shard_of(keys.to_hf_name(name.replace(".base_layer.", "."), "model"))]
        entry["tensors"] += 1
        entry["parameters"] += numbers(parameter)
    read = {source: checksum for task in tasks.values() for source, checksum in task.checksums().items()}
    return {
        "preset": config.preset,
        "groups": {name: entry for name, entry in groups.items() if entry["tensors"]},
        "processes": processes,
        "batch": train.batch,
        "accumulation": train.accumulation,
        "effective_batch": train.effective_batch(processes),
        "samples": {source: count for task in tasks.values() for source, count in task.sizes().items()},
        "left_out_evaluated_images": sum(task.left_out for task in tasks.values()),
        "trained": list(train.trained),
        "seg_token": model.seg_token,
        "train": settings,
        "steps": steps,
        "tasks": {
            name: {"title": task.title, "role": task.role, "examples": task.examples, "settings": task.settings.model_dump()}
            for name, task in tasks.items()
        },
        "panels": panels(tasks, SHOWN if config.validation_videos() is None else VIDEO),
        "base_sha256": base,
        **({"read_sha256": read} if read else {}),
        "versions": {"torch": str(torch.__version__), "python": sys.version.split()[0]},
    }


def text(manifest: Mapping[str, Any]) -> str:
    """Return the manifest's first part as a small table."""
    lines = [
        f"{name:<24}{entry['state']:<9}{entry['tensors']:>5} tensors {entry['parameters']:>12,} parameters"
        for name, entry in manifest["groups"].items()
    ]
    lines.append(
        f"effective batch {manifest['effective_batch']} = {manifest['processes']} process(es) x {manifest['batch']} images "
        f"x {manifest['accumulation']} accumulated"
    )
    lines += [f"{count:>9,} samples of {name}" for name, count in manifest["samples"].items()]
    lines.append(f"{manifest['left_out_evaluated_images']:>9,} images left out, because they are in an evaluated split")
    return "\n".join(lines)


def panels(tasks: Mapping[str, AnyTask], shown: Sequence[str] = SHOWN) -> list[dict[str, Any]]:
    """Return what the report draws of a run: what all tasks have side by side, what each adds, and the trainer's own curves. Panels of
    one title are one. `shown`: the metrics of the validation."""

    def of_each(part: str) -> dict[str, str]:
        return {f"{task.prefix}_{part}": task.title for task in tasks.values()}

    own = [panel for task in tasks.values() for panel in task.panels]
    wanted = [
        Panel("loss of the primary tasks, all parts", {"loss": "loss"}),
        Panel("mask cross-entropy", of_each("mask")),
        Panel("Dice loss", of_each("dice")),
        Panel("language loss on the answer", of_each("language")),
        *own,
        Panel("training IoU", of_each("train_iou"), share=True),
        Panel("share of answers with [SEG]", of_each("seg_rate"), share=True),
        Panel("gradient norm", {"grad_norm": "step, before clipping"}, log=True),
        Panel("learning rate", {"lr": "rate"}),
        Panel("validation split", {f"val_{name}": name for name in shown}),
    ]
    merged: dict[str, dict[str, Any]] = {}
    for panel in wanted:
        entry = merged.setdefault(panel.title, {"title": panel.title, "curves": {}, "share": panel.share, "log": panel.log})
        entry["curves"] |= panel.curves
    return list(merged.values())
