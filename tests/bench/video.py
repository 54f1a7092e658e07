"""Segmenting in videos: `python -m tests.bench.video [--quick]`.

Tiny weights on a clip of a disc that moves in noise, made frame by frame, one run, the same threads. These weights never learnt to carry
a mask by memory, so that the masks mean little; what is computed is what a model of this size computes. Seconds are CPU seconds of one
thread.

frames_short, frames_long: of a short and of a long clip, whose frames are made when they are asked for. peak_short, peak_long: peak of
anonymous memory in bytes above the loaded model; peak_ratio: the latter over the former, or over `NOISE` where that
is more. seconds_long: of the long clip, 2 expressions.
seconds_shared, seconds_single: for all expressions in one call, and in a call for each; shared_over_single: their ratio. expressions: how
many.
fps_ours, fps_official: frames a second of one expression, by us and in the order of the official code: pixels of all frames, features of
all frames, then the masks. masks_differ: pixels in which the two differ.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ans.model import prompts
from ans.model.segmenter import Query, Segmenter
from tests.bench import add_scales
from tests.bench.evaluation import peak_anonymous

WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
NEW_TOKENS = 16
EXPRESSIONS = [
    "red circle",
    "blue square on the left",
    "green triangle",
    "small red square",
    "yellow circle",
    "blue triangle",
    "green square",
]

NOISE = 2**25
"""Bytes by which the allocator's peak differs from run to run."""


class Noise(Sequence[Image.Image]):
    """Frames that no memory holds: each is made from its number."""

    def __init__(self, count: int, size: tuple[int, int] = (160, 120)) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Any:
        rng = np.random.default_rng(number)
        pixels = np.full((self.size[1], self.size[0], 3), 128, np.uint8)
        rows, columns = np.mgrid[: self.size[1], : self.size[0]]
        pixels[(rows - 60) ** 2 + (columns - 20 - number % 120) ** 2 < 20**2] = (230, 20, 20)
        return Image.fromarray(np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8))


def seconds(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the quickest of several runs: one thread's, so that what others do on the machine is not in them."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def run(model: Segmenter, frames: Sequence[Any], texts: Sequence[str]) -> int:
    """Pixels in all masks, so that nothing is left out."""
    return sum(int(one.mask.sum()) for row in model.segment_video(frames, texts, max_new_tokens=NEW_TOKENS) for one in row)


@torch.no_grad()
def all_at_once(model: Segmenter, frames: Sequence[Any], text: str) -> list[np.ndarray]:
    """As the official code goes about it: pixels of all frames, features of all frames, then the masks."""
    images = [frames[number] for number in range(len(frames))]
    pixels = torch.stack([model.config.decoder.pixels(image) for image in images])
    levels = [model.sam.encode(one[None]) for one in pixels]
    video = model.read_video(images, list(range(min(5, len(images)))))
    (answer,) = model.answer(video.read, [Query(0, model.template.video_question(prompts.quoted(text)))], NEW_TOKENS)
    vectors = model.seg_embed(answer.seg_states)
    tracker = model.sam.tracker("official")
    logits = [
        tracker.prompt(number, one, vectors, video.size) if number < 5 else tracker.follow(number, one)
        for number, one in enumerate(levels)
    ]
    return [(model.upscale(one, video.size) > 0).any(0).numpy() for one in logits]


def measure(short: int, long: int, middle: int, repeats: int) -> dict[str, float | int]:
    model = Segmenter.from_pretrained(WEIGHTS)
    run(model, Noise(short), EXPRESSIONS[:1])  # what is allocated once
    peaks = {}
    for frames in (short, long):
        before = peak_anonymous(lambda: None)
        start = time.process_time()
        peaks[frames] = peak_anonymous(lambda frames=frames: run(model, Noise(frames), EXPRESSIONS[:2])) - before
        peaks[f"seconds_{frames}"] = time.process_time() - start
    clip = Noise(middle)
    shared = seconds(lambda: run(model, clip, EXPRESSIONS), repeats)
    single = seconds(lambda: [run(model, clip, [text]) for text in EXPRESSIONS], repeats)
    ours = seconds(lambda: run(model, clip, EXPRESSIONS[:1]), repeats)
    theirs = seconds(lambda: all_at_once(model, clip, EXPRESSIONS[0]), repeats)
    own = [row[0].mask for row in model.segment_video(clip, EXPRESSIONS[:1], max_new_tokens=NEW_TOKENS)]
    official = all_at_once(model, clip, EXPRESSIONS[0])
    return {
        "frames_short": short,
        "frames_long": long,
        "peak_short": peaks[short],
        "peak_long": peaks[long],
        "peak_ratio": peaks[long] / max(NOISE, peaks[short]),
        "seconds_long": peaks[f"seconds_{long}"],
        "expressions": len(EXPRESSIONS),
        "seconds_shared": shared,
        "seconds_single": single,
        "shared_over_single": shared / single,
        "fps_ours": middle / ours,
        "fps_official": middle / theirs,
        "masks_differ": sum(int((a != b).sum()) for a, b in zip(own, official, strict=True)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, quick="few frames, one repetition: under 20 s")
    scale = {"full": (10, 1000, 40, 3), "quick": (10, 60, 16, 1), "smoke": (6, 20, 8, 1)}[parser.parse_args().scale]
    torch.set_num_threads(1)
    print(json.dumps(measure(*scale)))
