"""The last stage of the tiny base: SAM2's memory learns to follow objects through films, as SAM2's own did before Sa2VA took it.

All other tensors stay as they are, so that the model's answers about images do. The films are those of `ans.toy.world_videos`: two objects
that look alike and cross.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ans.model import prompts
from ans.model.adapters import select_trained
from ans.model.decoders.sam2 import Network
from ans.model.inference import Query
from ans.model.memory import INSIDE, OUTSIDE, OfficialTracker
from ans.model.segmenter import Segmenter
from ans.toy.recipe import mask_loss
from ans.toy.world_videos import HEIGHT, WIDTH, film

FILMS = 100
LENGTHS = (10, 14, 20, 9)
STARTS = (0, 3, 5, 7)
"""Frames at which an object may be named; those before it moves, so that the side that names it is its own."""
RUN, STRIDE = 4, 2
"""Frames of a sample, and the most from one to the next."""
FILMS_AT_ONCE = 8
LR = 2e-3
GIVEN = 0.5
"""Share of the steps in which the true masks are remembered; afterwards those that were predicted, as in use."""
LAYER_SCALE = 0.1
"""Of the memory encoder's last layers at first; by SAM2's 1e-6 they would say nothing for most of these few steps."""


@dataclass(frozen=True)
class TrainingFilm:
    """One film in memory. `levels`: the image encoder's maps of its T frames, (T, ...) fp16. `vectors`: by frame number, what the two
    expressions about it, (2, D), prompt the mask decoder with. `targets` (T, 2, S/4, S/4)."""

    levels: list[Tensor]
    vectors: dict[int, Tensor]
    targets: Tensor


@torch.no_grad()
def load_films(model: Segmenter, seed: int) -> list[TrainingFilm]:
    found = []
    for number in range(FILMS):
        made = film(seed, number, LENGTHS[number // 2 % len(LENGTHS)])
        frames = [Image.fromarray(pixels) for pixels in made.frames]
        levels = model.sam.encode(torch.stack([model.config.decoder.pixels(image) for image in frames]))
        asked = [Query(0, model.template.video_question(prompts.quoted(text))) for text, _ in made.at_first]
        vectors = {}
        for start in STARTS:
            if start + RUN > len(frames):
                continue
            answers = model.answer(model.read_video(frames, [start]).read, asked, 16)
            if all(len(answer.seg_states) == 1 for answer in answers):
                vectors[start] = model.seg_embed(torch.cat([answer.seg_states for answer in answers]))
        if vectors:
            targets = [
                model.config.decoder.soft_target(torch.from_numpy(mask)) for mask in made.masks[:, :2].reshape(-1, HEIGHT, WIDTH)
            ]
            found.append(TrainingFilm([level.half() for level in levels], vectors, torch.stack(targets).unflatten(0, (-1, 2))))
    return found


@torch.no_grad()
def prepare(model: Segmenter, films: list[TrainingFilm]) -> list[nn.Parameter]:
    """Give the memory first values of the right scale, leave nothing else to be trained, and return its parameters."""
    assert isinstance(model.sam, Network)
    sam = model.sam.model
    for layer in sam.memory_encoder.fuser.layers:
        layer.gamma.fill_(LAYER_SCALE)
    # what the decoder reads is the output of this layer; it knows maps of another scale
    known = torch.cat([one.levels[2][:1].float() for one in films]) + sam.no_mem_embed.view(1, -1, 1, 1)
    sam.memory_attention.norm.weight.fill_(float(known.std(1).mean()))
    sam.memory_attention.norm.bias.fill_(float(known.mean()))
    return list(select_trained(model, ("memory",)).values())


def memory_loss(model: Segmenter, films: list[TrainingFilm], rng: np.random.Generator, given: bool) -> Tensor:
    """Return the mean loss over the frames that follow, each film's at equal distances. `given`: the true masks are remembered."""
    assert isinstance(model.sam, Network)
    rows = []
    for number in rng.integers(len(films), size=FILMS_AT_ONCE):
        one = films[number]
        start = list(one.vectors)[rng.integers(len(one.vectors))]
        stride = 1 + int(rng.integers(min(STRIDE, (len(one.targets) - 1 - start) // (RUN - 1))))
        rows.append((one, one.vectors[start], range(start, start + stride * RUN, stride)))
    vectors = torch.cat([own for _, own, _ in rows])
    tracker, losses = OfficialTracker(model.sam), []
    for frame in range(RUN):
        maps = [torch.stack([one.levels[k][at[frame]] for one, _, at in rows]) for k in range(3)]
        levels = tuple(level.float().repeat_interleave(2, dim=0) for level in maps)
        targets = torch.cat([one.targets[at[frame]] for one, _, at in rows])
        coarse = tracker.memory.read(frame, levels[2]) if frame else tracker._without_memory(levels)
        chosen = tracker.choose(tracker.decoder, levels, coarse, None if frame else vectors, len(targets))
        if frame:
            losses.append(mask_loss(chosen.low_res, targets))
        written = targets * (INSIDE - OUTSIDE) + OUTSIDE if given else chosen.low_res
        tracker.memory.write(frame, levels[2], written, tracker.pointer(chosen.token, chosen.score > 0), not frame)
    return torch.stack(losses).mean()
