"""One step of the dual loop against its parts: `python -m tests.bench.step [--quick]`.

Tiny weights, tiny preset (batch 16, captions of at most 12 tokens, k 512) on a small synthetic world, on the CPU, all in one run.
The step is what `train` does with its batches; no data is loaded in it.

dual_over_parts: its time over the sum of its parts, each done once and with what it needs at hand: both loops' image features,
the teacher's captions, loop 1's two forwards joined by the Gumbel bridge, their backward, loop 2's two forwards, their backward,
surgery, AdamW, EMA. Prompts are made and cut into tokens before. Median over rounds that time one after the
other, in CPU seconds of one thread: what else runs on the machine hardly counts.
surgery_ema_share: share of the step that surgery (with its curves per group) and the EMA's update take.
peak_dual_over_allowed: peak of its memory over 1.15 x that of the larger loop alone plus one flat gradient. What was there before
(weights, teacher, optimizer state) counts on neither side.
teacher_extra_over_trained: what a teacher adds to the peak of captioning by the student, over the size of the trained tensors.
gumbel_k512_over_k8: peak of the bridge, forward and backward, at k 512 over that at k 8, for 16 tokens in
Sa2VA-1B's vocabulary and width.
gumbel_k512_over_k8_seconds: the same of its time.
"""

import argparse
import dataclasses
import gc
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ans.model.segmenter import Conversations, Features, Forward
from ans.objectives.batches import Targets
from ans.objectives.gumbel import straight_through
from ans.objectives.losses import mask_terms
from ans.planning.released import VOCABULARY
from ans.tasks.base import Now
from ans.tasks.loop2 import region_shares
from ans.training.ema import Teacher
from ans.training.gradients import add_gradient, assign, clip
from ans.training.hooks.examples import Examples
from ans.training.loop import Run
from ans.training.step import Gradients, count
from ans.training.surgery import combine, conflict
from ans.workspace import Workspace
from tests import pipeline
from tests.bench import add_scales
from tests.bench.sizes import peak_bytes

T = TypeVar("T")


class Bench:
    """One tiny model, its teacher and optimizer, and one pair of micro-batches: loop 1's and loop 2's."""

    def __init__(self, folder: Path) -> None:
        work = pipeline.prepare(folder)
        self.settings = pipeline.small_config(folder / "world", train__batch=16).train
        self.run = run = Run(pipeline.small_config(folder / "world", train__batch=16), Workspace(work))
        self.model, self.trained, self.teacher, self.tasks = run.model, run.trained, run.teacher, run.tasks
        for name, parameter in self.trained.items():
            if ".lora_B." in name:  # as after some steps: from zero, nothing reaches A
                nn.init.normal_(parameter, std=0.02)
        self.model.train()
        self.encode, self.parameters = run.stepper.encode, run.stepper.parameters
        # A learning rate of zero: every step does all its work, and the next one starts where it did.
        run.stepper.rates = [0.0] * len(run.stepper.rates)
        for group in run.optimizer.param_groups:
            group["lr"] = 0.0
        step = next(step for step in range(run.steps) if run.mixture.turn(step)[0] == "loop1")
        self.pair = run.mixture[step]
        (_, self.first), (_, self.second) = self.pair
        self.counts, _ = count([self.pair], self.tasks, run.accelerator, False)
        self.read, self.segment, self.find, self.tell = self._conversations()

    # ------------------------------------------------------------------------------------------------ the whole step

    def dual(self) -> None:
        self.run.stepper.update(self.gradients(), 0)
        self.teacher.update(0)

    def gradients(self) -> Gradients:
        return self.run.stepper.gradients([self.pair], self.counts, 0, Examples(0, 1, first_process=False))

    def surgery(self, first: Tensor, second: Tensor) -> Tensor:
        conflict(first, second, self.run.stepper.groups)
        return combine(first, second, self.settings.surgery, self.settings.beta)

    def optimize(self, gradient: Tensor) -> None:
        gradient, _ = clip(gradient, self.settings.clip)
        assign(gradient, self.parameters)
        self.run.optimizer.step()

    # ------------------------------------------------------------------------------------------------ one loop alone

    def alone(self, name: str) -> None:
        """A step with one loop's batch alone."""
        batch = {"loop1": self.first, "loop2": self.second}[name]
        now = Now(0, self.run.steps, partial(self.teacher.of, self.model))
        losses = self.tasks[name].losses(self.model, self.encode(batch.images), batch, self.counts[name], now)
        gradient = self.zeros()
        add_gradient(losses.total, self.parameters, gradient)
        self.optimize(gradient)
        self.teacher.update(0)

    def zeros(self) -> Tensor:
        return torch.zeros(sum(p.numel() for p in self.parameters))

    # --------------------------------------------------------------------------------------------------- its parts

    def _conversations(self) -> list[Conversations]:
        """The step's four teacher-forced forwards, as the model is given them."""
        found: list[Conversations] = []
        hook = self.model.register_forward_pre_hook(lambda model, arguments: found.append(arguments[1]))
        self.gradients()
        hook.remove()
        return found

    def parts(self) -> dict[str, float]:
        """Seconds of each part of a step, with the least that it can be made of."""
        times: dict[str, float] = {}

        def timed(name: str, work: Callable[[], T]) -> T:
            kept: list[T] = []
            times[name] = seconds(lambda: kept.append(work()))
            return kept[0]

        first = timed("loop 1: image features", lambda: self.encode(self.first.images))
        timed("teacher's captions", lambda: self.captions(first))
        loss = timed("loop 1: forwards", lambda: self.loss1(first))
        one, two = self.zeros(), self.zeros()
        timed("loop 1: backward", lambda: add_gradient(loss, self.parameters, one))
        second = timed("loop 2: image features", lambda: self.encode(self.second.images))
        loss = timed("loop 2: forwards", lambda: self.loss2(second))
        timed("loop 2: backward", lambda: add_gradient(loss, self.parameters, two))
        gradient = timed("surgery", lambda: self.surgery(one, two))
        timed("clip and AdamW", lambda: self.optimize(gradient))
        timed("EMA", lambda: self.teacher.update(0))
        return times

    def captions(self, features: Features) -> None:
        with self.teacher.of(self.model):
            self.caption(features)

    def caption(self, features: Features) -> None:
        batch = self.first
        length = batch.noise.shape[1]
        self.model.caption_ids(features, batch.describe_index, batch.cells, batch.describe_questions, length)

    def loss1(self, features: Features) -> Tensor:
        out = self.model(features, self.read)
        noise = self.first.noise.flatten(0, 1)[: len(out.logits), : out.logits.shape[-1]]
        table = self.model.vlm.language_model.get_input_embeddings().weight
        embeds, _, _ = straight_through(out.logits, table, noise, 0.7)
        told = self.model(features, dataclasses.replace(self.segment, embeds=embeds))
        return self.mask_loss(features, told, self.first.targets) + self.language(told, "loop1")

    def loss2(self, features: Features) -> Tensor:
        found = self.model(features, self.find)
        logits = self.model.masks(features, found.seg_image, found.seg_embeds).low_res
        region_shares(logits, [one.grid.region for one in features.visual])
        told = self.model(features, self.tell)
        return self.language(found, "loop2") + self.language(told, "loop2")

    def mask_loss(self, features: Features, out: Forward, targets: Targets) -> Tensor:
        logits = self.model.masks(features, out.seg_image, out.seg_embeds).low_res
        return mask_terms(logits, targets, self.settings.loss, self.settings.mask_points, self.counts["loop1"]["objects"])[0]

    def language(self, out: Forward, task: str) -> Tensor:
        return self.settings.loss.language * out.language_loss / self.counts[task]["tokens"]


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def teacher_extra(bench: Bench) -> int:
    """Bytes that captioning by a new teacher, and its update, need at their peak beyond captioning by the student."""
    features = bench.encode(bench.first.images)

    def by_student() -> None:
        with bench.model.evaluating():
            bench.caption(features)

    def by_teacher() -> None:
        teacher = Teacher(bench.trained, 0.999, warmup=False)
        with teacher.of(bench.model):
            bench.caption(features)
        teacher.update(0)

    return peak_bytes(by_teacher) - peak_bytes(by_student)


def gumbel_ratios(rounds: int) -> tuple[float, float]:
    """(peak, seconds) of the bridge at k 512 over k 8, in the width of Sa2VA-1B."""
    tokens, width = 16, 896
    table, gradient = torch.rand(VOCABULARY, width), torch.rand(tokens, width)
    logits = torch.randn(tokens, VOCABULARY, requires_grad=True)

    def bridge(noise: Tensor) -> None:
        embeds, _, _ = straight_through(logits, table, noise, 0.7)
        torch.autograd.grad(embeds, logits, gradient)

    few, many = (torch.rand(tokens, k) for k in (8, 512))
    peaks = peak_bytes(partial(bridge, many)) / peak_bytes(partial(bridge, few))
    times = [(seconds(partial(bridge, many)), seconds(partial(bridge, few))) for _ in range(rounds)]
    return peaks, median(large / small for large, small in times)


def measure(rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
    bench.dual()
    bench.parts()
    steps, parts = [], []
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        steps.append(seconds(bench.dual))
        parts.append(bench.parts())
    sums = [sum(times.values()) for times in parts]
    gc.collect()
    dual, *alone = (peak_bytes(work) for work in (bench.dual, partial(bench.alone, "loop1"), partial(bench.alone, "loop2")))
    flat = bench.zeros().nbytes
    extra = teacher_extra(bench) / sum(p.nbytes for p in bench.parameters)
    gumbel, gumbel_seconds = gumbel_ratios(max(1, rounds // 3))

    print(f"medians of {rounds} rounds, CPU time of one thread, {flat // 4:,} trained parameters; milliseconds")
    table = {name: [times[name] for times in parts] for name in parts[0]} | {"sum of parts": sums, "dual step": steps}
    for name, values in table.items():
        print(f"{name:<28}{1000 * median(values):>9.1f}")
    print("peaks above what was there before; MB")
    for name, value in (("dual step", dual), ("loop 1 alone", alone[0]), ("loop 2 alone", alone[1]), ("one flat gradient", flat)):
        print(f"{name:<28}{value / 1e6:>9.1f}")
    return {
        "dual_over_parts": median(step / whole for step, whole in zip(steps, sums, strict=True)),
        "surgery_ema_share": (median(table["surgery"]) + median(table["EMA"])) / median(steps),
        "peak_dual_over_allowed": dual / (1.15 * max(alone) + flat),
        "teacher_extra_over_trained": extra,
        "gumbel_k512_over_k8": gumbel,
        "gumbel_k512_over_k8_seconds": gumbel_seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, quick="fewer rounds: under 50 s on 2 cores")
    print(json.dumps(measure({"full": 30, "quick": 12, "smoke": 1}[parser.parse_args().scale])))
