"""One tiny model ready to train, and the tasks of `params.yaml` on a small world."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ans.config.training import TrainSettings
from ans.data.samples import Evaluated
from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Features, Segmenter
from ans.tasks import load as load_task
from ans.tasks.base import AnyTask, Batch, Losses, Now, Setting
from ans.training.ema import Teacher
from ans.training.setup import Indexes
from ans.workspace import Workspace
from tests import pipeline


class TaskCase:
    """`model` in training mode with LoRA as after some steps, `trained` (name -> parameter), and `settings` as in `params.yaml`, on
    the whole mask. `work`: what `pipeline.prepare` made."""

    def __init__(self, work: Path) -> None:
        self.config = pipeline.small_config(
            work.parent / "world", train__mask_points=0, train__caption_len=12, train__max_tiles=1, train__loop1__top_k=16,
            train__loop1__objects_per_image=1, train__captioning__enabled=True,
        )  # fmt: skip
        self.root, self.indexes = work.parent / "world", Indexes(Workspace(work), None)
        self.model = Segmenter.from_pretrained(pipeline.REPOSITORY / "weights" / "tiny").train()
        add_lora(self.model, 4, 8.0, 0.0, generator_seed=0)
        self.trained = select_trained(self.model, ("lora", "proj", "fcs", "sam2_decoder"))
        torch.manual_seed(0)
        for name, parameter in self.trained.items():
            if ".lora_B." in name:  # from zero, nothing reaches A
                nn.init.normal_(parameter, std=0.02)

    def task(self, name: str, train: Mapping[str, Any] | None = None, **changes: Any) -> AnyTask:
        """The task with other settings of its own, and of the training."""
        settings = self.config.tasks[name].model_copy(update=changes)
        common: TrainSettings = self.config.train.model_copy(update=dict(train or {}))
        evaluated = Evaluated(map(self.indexes, self.config.training_indexes()), self.root)
        return load_task(name)(
            settings, Setting(common, self.model.config, self.model.tokenizer, self.root, self.indexes, evaluated)
        )

    def features(self, batch: Batch) -> Features:
        """The features of a batch's images."""
        return self.model.encode_pixels(batch.images.pixels, batch.images.sam, batch.images.sizes)

    def losses(self, task: AnyTask, batch: Batch, examples: bool = True, step: int = 0, steps: int = 2) -> Losses:
        """The losses of a batch that is a whole step, with the student as it stands for a teacher."""
        now = Now(step, steps, partial(Teacher(self.trained, 0.99, warmup=False).of, self.model), examples)
        return task.losses(self.model, self.features(batch), batch, batch.counts, now)

    def gradients(self, losses: Losses) -> dict[str, Tensor | None]:
        found = torch.autograd.grad(losses.total, list(self.trained.values()), allow_unused=True)
        return dict(zip(self.trained, found, strict=True))
