"""A reward of captions by which their object is found again: REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740).

The student says K random captions of an object. A listener segments by each; what it earns, less what the object's other captions earn,
makes it likelier or less likely. No gradient runs through the caption, and the estimate has no bias but that of LoRA's dropout, without
which captions are drawn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ans.model.generate import Chance
from ans.model.host import sent
from ans.model.segmenter import Features, Segmenter
from ans.objectives.losses import hard_iou
from ans.objectives.passes import Batch, say


@dataclass(frozen=True)
class Drawn:
    """The different captions among those drawn. `rows`: the objects that they are of, one for each. `said`: all their tokens, the end's
    too; `texts`: those of the text alone. `which` (R, K): of each of an object's draws, the caption's number. `chance`: what it was
    drawn from."""

    rows: Batch
    said: list[list[int]]
    texts: list[list[int]]
    which: Tensor
    chance: Chance


def draw(model: Segmenter, features: Features, batch: Batch, noise: Tensor) -> Drawn:
    """Let the model say captions of the objects by `noise` (R, K, T, k)."""
    count, each = noise.shape[:2]
    end = torch.tensor(model.tokenizer.encode(model.template.suffix, add_special_tokens=False))
    among = sent(torch.cat([model.text_tokens, end]).unique(), model.device)
    chance = Chance(among, sent(noise.flatten(0, 1), model.device)[..., : len(among)])
    owners = [n for n in range(count) for _ in range(each)]
    several = batch.rows(owners)
    said, texts = model.random_captions(features, several.describe_index, several.cells, several.describe_questions, chance)
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault((owner, *ids), len(numbers)) for owner, ids in zip(owners, said, strict=True)]
    first = [which.index(number) for number in range(len(numbers))]
    return Drawn(
        batch.rows([owners[n] for n in first]), [said[n] for n in first], [texts[n] for n in first],
        torch.tensor(which).view(count, each), chance,
    )  # fmt: skip


def log_probability(model: Segmenter, features: Features, drawn: Drawn) -> Tensor:
    """Return (n,): of each caption, as the model would draw it."""
    out = say(model, features, drawn.rows, drawn.said, drawn.said)
    place = torch.searchsorted(drawn.chance.among, out.labels)
    values = drawn.chance.best(out.logits)[0]
    each = out.logits[:, drawn.chance.among].float().gather(1, place[:, None])[:, 0] - values.logsumexp(-1)
    return torch.stack([part.sum() for part in each.split([len(ids) for ids in drawn.said])])


def earned(logits: Tensor, rows: Batch) -> Tensor:
    """Return (n,): the IoU of each caption's mask, of `logits` (N, S/4, S/4), with its object's, less the best IoU with another object of
    the image; with several frames the mean over them."""
    soft = sent(rows.targets.soft, logits.device)
    own = torch.stack([part.mean() for part in hard_iou(logits, soft).split([len(shown) for shown in rows.shown])])
    place = 0
    for n, (others, shown) in enumerate(zip(rows.others, rows.shown, strict=True)):
        if len(others):  # images with others have one frame
            own[n] -= hard_iou(logits[place].expand_as(others), sent(others, logits.device)).max()
        place += len(shown)
    return own


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return (R, K): how much more each of an object's K captions earns than the mean of the K - 1 others."""
    each = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * each / (each - 1)


def objective(log_probability: Tensor, rewards: Tensor, which: Tensor) -> Tensor:
    """Return (R,) what is to be maximized, of n different captions' log-probabilities and rewards: its gradient is, in the mean over
    draws, that of the expected reward."""
    advantage = leave_one_out(rewards.detach()[which])
    return (advantage * log_probability[which]).mean(1)
