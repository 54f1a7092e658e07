"""Evaluation of a split while training goes on: the best tensors are kept, and training stops after `patience`
evaluations without a better one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import nn

from ans.config.training import ValidationSettings
from ans.data.matching import record_image
from ans.evaluation.metrics import summarise
from ans.evaluation.plan import Row, make_plan
from ans.evaluation.predict import predict, row_tokens
from ans.model.segmenter import Segmenter
from ans.progress import Progress
from ans.training.hooks import Hook
from ans.training.hooks.curves import Curves
from ans.training.hooks.pictures import answer_picture
from ans.training.hooks.sinks import Sinks

SHOWN = ("ciou", "miou", "box_giou", "p50", "seg_rate")
"""The metrics that are kept of every evaluation."""
PICTURES = 4
"""Images of which the first answer is shown, the same ones every time."""


class Validation(Hook):
    """`history`: one row for every `every` steps. `best`: the row of the best one and its trained tensors (float32, by name),
    None before the first. Its metrics are curves too, as `val_<name>`, and a few of its answers are shown by `sinks`."""

    shown: ClassVar[tuple[str, ...]] = SHOWN

    def __init__(
        self,
        settings: ValidationSettings,
        indexes: Path,
        root: Path,
        model: Segmenter,
        trained: Mapping[str, nn.Parameter],
        every: int,
        curves: Curves,
        sinks: Sinks,
        progress: Progress,
        accelerator: Accelerator,
    ) -> None:
        self.settings, self.root, self.model, self.trained, self.every = settings, root, model, trained, every
        self.curves, self.sinks, self.progress, self.accelerator = curves, sinks, progress, accelerator
        self.prepare(indexes)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self.rows: list[Row] = []  # of the last evaluation

    def prepare(self, indexes: Path) -> None:
        """Say what is asked."""
        settings = self.settings
        self.plan = make_plan(settings.scope, indexes, self.root)
        self.batches: Sequence[Any] = self.plan.batches(
            lambda *size: row_tokens(self.model.config, *size) + settings.max_new_tokens, settings.tokens_per_batch
        )

    @property
    def over(self) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        return self.best is not None and len(self.history) - self.best["row"]["number"] >= self.settings.patience

    def after(self, step: int, values: dict[str, float]) -> None:
        if step % self.every:
            return
        metrics = self.evaluate()
        loss = sum(value for _, value in self.curves.rows["loss"][-self.every :]) / self.every
        row = {"number": len(self.history) + 1, "step": step, "loss": loss} | metrics
        self.history.append(row)
        metric = f"val_{self.settings.metric}"
        if self.best is None or row[metric] > self.best["row"][metric]:
            self.best = {"row": row, "trained": {name: p.detach().clone() for name, p in self.trained.items()}}
        self.curves.after(step, metrics)
        values.update(metrics)
        if self.sinks.names:
            self.sinks.show(step, "answers", self.pictures())
        text = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self.progress.write(f"validation {row['number']}, step {step}: {text}")

    def evaluate(self) -> dict[str, float]:
        """Return metrics of the model as it is, as `val_<name>`. Processes share the batches."""
        mine = range(self.accelerator.process_index, len(self.batches), self.accelerator.num_processes)
        rows = []
        with self.model.evaluating(), self.accelerator.autocast():
            for number in mine:
                rows += self.ask(number)
            self.model.meet()
        if self.accelerator.num_processes > 1:
            rows = gather_object(rows)
        self.rows = rows
        summary = self.summary(rows)
        return {f"val_{name}": float(summary[name]) for name in self.shown}

    def ask(self, number: int) -> list[Row]:
        """Return the answers of batch `number`."""
        items = [self.plan.item(image) for image in self.batches[number]]
        return predict(self.model, self.root, items, self.settings.max_new_tokens)

    def summary(self, rows: list[Row]) -> Mapping[str, float]:
        """Return metrics over all answers."""
        return summarise(rows)

    def pictures(self) -> list[Image.Image]:
        """Return the first answer about each of the first images, of the last evaluation."""
        found = []
        for planned in self.plan.images[:PICTURES]:
            record = self.plan.item(planned).record
            row = next(row for row in self.rows if row["image_path"] == record.path)
            found.append(answer_picture(record_image(self.root, record), row))
        return found

    def finish(self) -> None:
        """Let the metrics be those of the best evaluation."""
        if self.best is not None:
            self.curves.best = {name: value for name, value in self.best["row"].items() if name.startswith("val_")}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.best = state["history"], state["best"]
