"""Looking at a split after each epoch: the best tensors are kept, and training stops where none better come."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ans.config import Validation as Settings
from ans.evaluation.metrics import summarise
from ans.evaluation.plan import make_plan
from ans.evaluation.predict import predict, row_tokens
from ans.model.segmenter import Segmenter

SHOWN = ("ciou", "miou", "box_giou", "p50", "seg_rate")
"""The metrics that are kept of every epoch."""


class Validation:
    """`history`: one row per epoch. `best`: the row of the best one and its trained tensors (float32, by name), None before."""

    def __init__(self, chosen: Settings, indexes: Path, root: Path, model: Segmenter, accelerator: Accelerator) -> None:
        self.chosen, self.root, self.accelerator = chosen, root, accelerator
        self.plan = make_plan(chosen.questions, indexes, root)
        self.batches = self.plan.batches(
            lambda *size: row_tokens(model.config, *size) + chosen.max_new_tokens, chosen.tokens_per_batch
        )
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        return self.best is not None and len(self.history) - self.best["row"]["epoch"] >= self.chosen.patience

    def look(self, step: int, loss: float, model: Segmenter, trained: Mapping[str, nn.Parameter]) -> dict[str, float]:
        """Measure the model after `step` steps, the epoch's mean training loss being `loss`; its metrics, as `val_<name>`."""
        mine = range(self.accelerator.process_index, len(self.batches), self.accelerator.num_processes)
        rows = []
        with model.evaluating(), self.accelerator.autocast():
            for number in mine:
                items = [self.plan.item(image) for image in self.batches[number]]
                rows += predict(model, self.root, items, self.chosen.max_new_tokens)
        if self.accelerator.num_processes > 1:
            rows = gather_object(rows)
        summary = summarise(rows)
        values = {f"val_{name}": float(summary[name]) for name in SHOWN}
        row = {"epoch": len(self.history) + 1, "step": step, "loss": loss} | values
        self.history.append(row)
        if self.best is None or row[self._metric] > self.best["row"][self._metric]:
            self.best = {"row": row, "trained": {name: p.detach().clone() for name, p in trained.items()}}
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.best = state["history"], state["best"]

    @property
    def _metric(self) -> str:
        return f"val_{self.chosen.metric}"
