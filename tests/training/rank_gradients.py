"""Run under `accelerate launch` by `test_ranks.py`: the gradients of a step on each objective, as the training computes them."""

import sys
from functools import partial
from pathlib import Path

import torch
from ans.objectives.surgery import combine

from ans.config import load
from ans.processes import connect
from ans.training import loop
from ans.training.ema import Teacher


def main(out: Path) -> None:
    config = load()
    accelerator = connect("float32")
    run = loop.Run()
    model, trained = loop.load_model(config, run, accelerator)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trained.items():
        if ".lora_B." in name:  # from zero, nothing would reach A
            parameter.data.normal_(0, 0.02, generator=generator)
    data, _ = loop.load_data(config, run, model, accelerator)
    encode = loop.image_encoder(config, model, accelerator)
    teacher = Teacher(trained, 0.99, warmup=False)
    found, parameters = {}, list(trained.values())
    model.train()
    for step in range(config.train.steps):
        pairs = [data[step * data.accumulation + micro] for micro in range(data.accumulation)]
        totals = loop.count(pairs, accelerator, stop=False)
        speaking = partial(teacher.speaking, model)
        gradients = loop.step_gradients(model, encode, speaking, parameters, pairs, config, step, totals, accelerator)
        found[f"{step} {type(pairs[0][0]).__name__} first"] = gradients.first
        found[f"{step} CaptionBatch second"] = gradients.second
        found[f"{step} combined"] = combine(gradients.first, gradients.second, config.train.surgery, config.train.beta)
    if accelerator.is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
