"""One optimizer step: the gradients of its micro-batches, over all processes, and what is made of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ans.config.training import TrainSettings
from ans.model.host import sent
from ans.model.segmenter import Features, Segmenter
from ans.objectives.batches import Images
from ans.tasks.base import AnyTask, Now
from ans.training.gradients import add_gradient, assign, clip
from ans.training.hooks.examples import Examples
from ans.training.mixture import MicroBatch
from ans.training.schedule import lr_factor
from ans.training.surgery import combine, conflict

Counts = dict[str, dict[str, int]]
"""Task -> its counts over a whole step."""


@dataclass(frozen=True)
class Gradients:
    """One step's flat gradients (P,), summed over micro-batches and processes. `auxiliary` is None without such a task. `values`: of the
    tasks, on the device."""

    primary: Tensor
    auxiliary: Tensor | None
    values: dict[str, Tensor]


def count(
    micro_batches: Sequence[MicroBatch], tasks: Mapping[str, AnyTask], accelerator: Accelerator, stop: bool
) -> tuple[Counts, bool]:
    """Return counts over micro-batches and processes, and whether any process was asked to stop: then all stop, at the same step."""
    keys = [(name, counted) for name, task in tasks.items() for counted in task.counted]
    local = dict.fromkeys(keys, 0)
    for batches in micro_batches:
        for name, batch in batches:
            for counted, number in batch.counts.items():
                local[name, counted] += number
    total = torch.tensor([*local.values(), int(stop)], dtype=torch.float64)
    if accelerator.num_processes > 1:  # one alone need not ask its device
        total = accelerator.reduce(total.to(accelerator.device), "sum")
    *numbers, stopping = map(int, total.tolist())
    counts: Counts = {name: {} for name in tasks}
    for (name, counted), number in zip(keys, numbers, strict=True):
        counts[name][counted] = number
    return counts, stopping > 0


def _together(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """Return values, which lie on the device or not, as one tensor (n,) there. The latter are sent together."""
    on_device = [torch.is_tensor(value) and value.device == device for value in values]
    host = sent(torch.tensor([0.0 if on else float(value) for on, value in zip(on_device, values, strict=True)]), device)
    return torch.stack(
        [torch.as_tensor(value).float() if on else host[n] for n, (on, value) in enumerate(zip(on_device, values, strict=True))]
    )


class Stepper:
    """Computes and takes optimizer steps. `encode`: images -> the frozen encoders' features. `teacher`: within it, the model is the
    teacher. `groups`: where each trained group lies in the flat vector."""

    def __init__(
        self,
        model: Segmenter,
        tasks: Mapping[str, AnyTask],
        settings: TrainSettings,
        steps: int,
        parameters: Sequence[nn.Parameter],
        groups: Mapping[str, list[slice]],
        optimizer: torch.optim.Optimizer,
        encode: Callable[[Images], Features],
        teacher: Callable[[], AbstractContextManager[None]],
        accelerator: Accelerator,
    ) -> None:
        self.model, self.tasks, self.settings, self.steps = model, tasks, settings, steps
        self.parameters, self.groups, self.optimizer = parameters, groups, optimizer
        self.encode, self.teacher, self.accelerator = encode, teacher, accelerator
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def gradients(self, micro_batches: Sequence[MicroBatch], counts: Counts, step: int, examples: Examples) -> Gradients:
        """Return the step's gradients. The graph of one task is gone before the next task's begins. `examples` keeps what it wants."""
        size = sum(parameter.numel() for parameter in self.parameters)
        roles = ["primary", *(["auxiliary"] if any(task.role == "auxiliary" for task in self.tasks.values()) else [])]
        totals = {role: torch.zeros(size, device=self.accelerator.device) for role in roles}
        sums: dict[str, Tensor] = {}
        for batches in micro_batches:
            for name, batch in batches:
                task = self.tasks[name]
                now = Now(step, self.steps, self.teacher, examples.wanted(name))
                with self.accelerator.autocast():
                    losses = task.losses(self.model, self.encode(batch.images), batch, counts[name], now)
                self.model.meet()
                add_gradient(losses.total, self.parameters, totals[task.role])
                values = losses.values if task.role == "auxiliary" else losses.values | {"loss": losses.total.detach()}
                for key, value in values.items():
                    sums[key] = sums.get(key, 0.0) + value
                if losses.example is not None and examples.wanted(name):
                    examples.keep(name, losses.example)
                del losses
        reduced = {role: self.accelerator.reduce(total, "sum") for role, total in totals.items()}
        stacked = _together(list(sums.values()), self.accelerator.device)
        values = dict(zip(sums, self.accelerator.reduce(stacked, "sum"), strict=True))
        return Gradients(reduced["primary"], reduced.get("auxiliary"), values)

    def update(self, gradients: Gradients, step: int) -> dict[str, float]:
        """Combine, clip, and take the optimizer's step; the step's values. They are fetched from the device at once, when all of the
        step's work has been handed to it.

        Raises `FloatingPointError` naming the values that are NaN, or for a gradient that is not finite; the tensors are spoilt then.
        """
        settings, values, gradient = self.settings, dict(gradients.values), gradients.primary
        if gradients.auxiliary is not None:
            values |= conflict(gradient, gradients.auxiliary, self.groups)
            gradient = combine(gradient, gradients.auxiliary, settings.surgery, settings.beta)
        gradient, values["grad_norm"] = clip(gradient, settings.clip)
        factor = lr_factor(step, self.steps, settings.warmup, settings.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        assign(gradient, self.parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()
        found = dict(zip(values, torch.stack([value.double() for value in values.values()]).tolist(), strict=True))
        if wrong := [name for name in gradients.values if found[name] != found[name]]:
            raise FloatingPointError(f"step {step + 1}: NaN in {', '.join(wrong)}; lower train.lr, or look at the batch")
        if not math.isfinite(found["grad_norm"]):
            raise FloatingPointError("the gradient holds NaN or infinity; lower train.lr, or look at the batch")
        for task in self.tasks.values():
            found = task.finish(found)
        return found | {"lr": settings.lr * factor}
