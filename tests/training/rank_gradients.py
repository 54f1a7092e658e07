"""Started by `test_ranks.py` on one and on two processes: the gradients of steps on each task, as the training computes them."""

import sys
from pathlib import Path

import torch

from ans.config import load
from ans.training.loop import Run
from ans.training.step import count
from ans.training.surgery import combine
from ans.workspace import Workspace


def main(out: Path) -> None:
    config = load()
    run = Run(config, Workspace())
    generator = torch.Generator().manual_seed(1)
    for name, parameter in run.trained.items():
        if ".lora_B." in name:  # from zero, nothing would reach A
            parameter.data.normal_(0, 0.02, generator=generator)
    run.teacher.load_state_dict({name: parameter.detach() for name, parameter in run.trained.items()})
    found = {}
    run.model.train()
    for step in range(config.train.steps):
        micro_batches = [run.mixture[step * run.mixture.accumulation + micro] for micro in range(run.mixture.accumulation)]
        counts, _ = count(micro_batches, run.tasks, run.accelerator, stop=False)
        gradients = run.stepper.gradients(micro_batches, counts, step, run.examples)
        found[f"{step} {micro_batches[0][0][0]} primary"] = gradients.primary
        found[f"{step} loop2 auxiliary"] = gradients.auxiliary
        found[f"{step} combined"] = combine(gradients.primary, gradients.auxiliary, config.train.surgery, config.train.beta)
    if run.accelerator.is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
