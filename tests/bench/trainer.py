"""The trainer's own step on micro-batches of random content."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import yaml

from ans.config import Config
from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from ans.processes import connect
from ans.training import setup
from ans.training.ema import Teacher
from ans.training.hooks.examples import Examples
from ans.training.mixture import MicroBatch
from ans.training.step import Stepper, count
from tests.bench import sizes


def preset(name: str, **changes: Any) -> Config:
    """`params.yaml` with another preset and other settings of `train`."""
    values = yaml.safe_load((sizes.REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    values["preset"] = name
    for name, change in changes.items():
        values["train"][name] = values["train"][name] | change if isinstance(change, dict) else change
    return Config(values)


class Trainer:
    """A model and the trainer's own step; the tasks are there without data."""

    def __init__(self, model: Segmenter, config: Config) -> None:
        self.model, self.config = model, config
        self.accelerator = connect(config.train.precision)
        self.device = self.accelerator.device
        trained = setup.make_trainable(model, config.train)
        model.to(self.device).train()
        self.tasks = sizes.tasks_of(self.model, config)
        self.teacher = Teacher(trained, config.train.ema.decay, config.train.ema.warmup)
        self.optimizer = setup.new_optimizer(model, trained, config.train)
        self.stepper = Stepper(
            self.model, self.tasks, config.train, 1, list(trained.values()), setup.slices_of_groups(self.model, trained),
            self.optimizer,
            lambda images: self.model.encode_pixels(images.pixels, images.sam, images.sizes), partial(self.teacher.of, self.model),
            self.accelerator,
        )  # fmt: skip

    @classmethod
    def of_size(cls, size: ModelConfig, config: Config) -> "Trainer":
        """With random weights, drawn where the steps run."""
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        return cls(sizes.random_model(size, connect(config.train.precision).device, dtype), config)

    def step(self, batches: MicroBatch) -> dict[str, float]:
        """One optimizer step on the micro-batches of one task or of two; its values for the curves."""
        self.stepper.tasks = {name: self.tasks[name] for name, _ in batches}
        counts, _ = count([batches], self.stepper.tasks, self.accelerator, False)
        values = self.stepper.update(self.stepper.gradients([batches], counts, 0, Examples(0, 1, first_process=False)), 0)
        self.teacher.update(0)
        return values

    @contextmanager
    def without_checkpointing(self) -> Iterator[None]:
        language = self.model.vlm.language_model
        language.gradient_checkpointing_disable()
        try:
            yield
        finally:
            if self.config.train.checkpoint_activations:
                language.activation_checkpointing_enable({"use_reentrant": False})
