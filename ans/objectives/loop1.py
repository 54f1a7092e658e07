"""Loop 1: mask -> caption -> mask. The teacher describes an object, the student reads that caption again, and from what it reads
must come the object's mask. No text is given.

With the Gumbel bridge the gradient of the mask runs through the caption's tokens into the student's reading of the first image.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ans.captions import likeness
from ans.config import Loop1, LossWeights
from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Forward, Segmenter
from ans.objectives.batches import MaskBatch, pad_right
from ans.objectives.gumbel import straight_through
from ans.objectives.losses import Chain, Counts, Losses, hard_iou, mask_terms, seg_rate


@dataclass(frozen=True)
class Expression:
    """Captions as the segmentation prompt takes them. `ids`: per object (n,) tokens; `embeds`: their embeddings, all in one
    (N, D), or None for the table's own. `extra`: further loss, `values`: for the curves. For a reward: `greedy`, what would have
    been said without noise, and the log-probability (R,) of what was."""

    ids: list[list[int]]
    embeds: Tensor | None
    extra: Tensor | float
    values: dict[str, Tensor]
    greedy: list[list[int]] | None = None
    log_probability: Tensor | None = None


def loop1(
    model: Segmenter,
    teacher: Callable[[], AbstractContextManager[None]],
    features: Features,
    batch: MaskBatch,
    settings: Loop1,
    weights: LossWeights,
    mask_points: int,
    tau: float,
    counts: Counts,
) -> tuple[Losses, Chain]:
    """One micro-batch's share of the loss. Within `teacher()`, `model` is the teacher. `features`: of the batch's images, which
    teacher and both passes share. `tau`: this step's Gumbel temperature."""
    with teacher():
        said, ended, confidence = _describe(model, features, batch)
        reference = None
        if settings.distillation or (settings.reward and settings.reward_by == "iou"):
            _, reference = _segment(model, features, batch, said, None)
    heard = _bridge(model, features, batch, said, settings, tau, counts)
    out, logits = _segment(model, features, batch, heard.ids, heard.embeds)
    sure = torch.tensor(confidence, device=logits.device)
    loss, values = mask_terms(logits, batch.targets, weights, mask_points, counts, sure if settings.confidence else None)
    language = out.language_loss / counts.tokens
    loss = loss + weights.language * language + heard.extra
    if settings.distillation:
        distance = F.binary_cross_entropy_with_logits(logits.float(), reference.float().sigmoid(), reduction="none")
        distance = distance.flatten(1).mean(1).sum() / counts.objects
        loss, values["distillation"] = loss + settings.distillation * distance, distance.detach()
    if settings.reward:  # self-critical (arXiv 1612.00563): what a greedy caption would have earned is the baseline
        if settings.reward_by == "iou":
            soft = batch.targets.soft.to(logits.device)
            advantage = hard_iou(logits, soft) - hard_iou(reference, soft)
        else:
            advantage = _likeness(model, heard.ids, said) - _likeness(model, heard.greedy, said)
        reward = (advantage * heard.log_probability).sum() / counts.objects
        loss, values["advantage"] = loss - settings.reward * reward, advantage.sum() / counts.objects
    values |= heard.values | {"language": language.detach(), "seg_rate": seg_rate(model, out, counts)}
    values["teacher_confidence"] = sure.sum() / counts.objects
    values |= _teacher_values(said, ended, counts, logits.device)
    chain = Chain(*([model.tokenizer.decode(ids) for ids in captions] for captions in (said, heard.ids)), logits.detach())
    return Losses(loss, {f"loop1_{name}": value for name, value in values.items()}), chain


def corrupt(ids: list[int], ratio: float, uniform: Tensor, ordinary: Tensor) -> list[int]:
    """`ids` with round(ratio * n) of its tokens replaced by tokens of `ordinary` (ids that are not special).

    `uniform` (T, 2) in [0, 1): the tokens with the lowest first number are replaced, the second number says by what.
    """
    count = round(ratio * len(ids))
    result = list(ids)
    for place in uniform[: len(ids), 0].argsort()[:count].tolist():
        result[place] = int(ordinary[int(uniform[place, 1] * len(ordinary))])
    return result


def _describe(model: Segmenter, features: Features, batch: MaskBatch) -> tuple[list[list[int]], list[bool], list[float]]:
    length = batch.noise.shape[1]
    return model.caption_ids(features, batch.describe_index, batch.cells, batch.describe_questions, length)


def _bridge(
    model: Segmenter, features: Features, batch: MaskBatch, said: list[list[int]], settings: Loop1, tau: float, counts: Counts
) -> Expression:
    """What of the teacher's caption reaches the segmentation prompt, by `settings.bridge`. The denoising loss belongs to all."""
    heard = Expression(said, None, 0.0, {})
    if settings.denoising or settings.bridge in ("gumbel", "detached"):
        heard = _reread(model, features, batch, said, settings, tau, counts)
    if settings.bridge == "gumbel":
        return heard
    if settings.bridge == "detached":
        return replace(heard, embeds=None)
    values = {name: value for name, value in heard.values.items() if name == "denoising"}  # nothing else was passed on
    if settings.bridge == "discrete":
        with model.evaluating():
            said = _describe(model, features, batch)[0]
    return Expression(said, None, heard.extra, values)


def _reread(
    model: Segmenter, features: Features, batch: MaskBatch, said: list[list[int]], settings: Loop1, tau: float, counts: Counts
) -> Expression:
    """The student reads image, region and the corrupted caption; its own choice at every position becomes the expression."""
    shown = [corrupt(ids, settings.mask_ratio, u, model.text_tokens) for ids, u in zip(said, batch.corruption, strict=True)]
    encoded = []
    for place, cells, question, ids, true in zip(
        batch.describe_index, batch.cells, batch.describe_questions, shown, said, strict=True
    ):
        text = prompts.image_string(_image_tokens(features, place)) + model.region_question(cells[None], question)
        prompt = prompts.encode_prompt(model.tokenizer, model.template, text)
        encoded.append((prompt + ids, [prompts.IGNORE] * len(prompt) + true))
    ids, labels, attention = (x.to(model.device) for x in pad_right(encoded))
    out = model(features, Conversations(ids, labels, attention, batch.describe_index, [cells[None] for cells in batch.cells]))
    logits = out.logits.index_fill(1, _no_text(model, out.logits), float("-inf"))  # an expression is text, without special tokens
    noise = torch.cat([row[: len(ids)] for row, ids in zip(batch.noise, said, strict=True)]).to(model.device)
    noise = settings.noise * noise[:, : logits.shape[-1]]
    table = model.vlm.language_model.get_input_embeddings().weight
    embeds, chosen, kept = straight_through(logits, table, noise, tau)
    lengths = [len(ids) for ids in said]
    different = [a != b for one, two in zip(shown, said, strict=True) for a, b in zip(one, two, strict=True)]
    corrupted = torch.tensor(different, dtype=torch.bool, device=model.device)
    if settings.rescored == "corrupted":
        embeds = torch.where(corrupted[:, None], embeds, F.embedding(out.labels, table))
        chosen = torch.where(corrupted, chosen, out.labels)
    gradient = embeds.new_zeros(())
    if embeds.requires_grad:
        embeds.register_hook(partial(_add_square, gradient))
    values = {
        "kept_mass": _mean_per_object(kept, said, counts),
        "changed_tokens": _mean_per_object((chosen != out.labels).float(), said, counts),
        "caption_gradient2": gradient,
    }
    extra: Tensor | float = 0.0
    if settings.denoising:
        entropy = F.cross_entropy(out.logits[corrupted].float(), out.labels[corrupted], reduction="none")
        places = torch.stack([part.sum() for part in corrupted.split(lengths)])  # of each object, whose mean is taken
        denoising = (entropy / places.repeat_interleave(places)).sum() / counts.objects
        extra, values["denoising"] = settings.denoising * denoising, denoising.detach()
    words = [part.tolist() for part in chosen.split(lengths)]
    if not settings.reward:
        return Expression(words, embeds, extra, values)
    free = corrupted if settings.rescored == "corrupted" else torch.ones_like(corrupted)  # the other tokens are no choice
    picked = logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0].where(free, 0.0)
    log_probability = torch.stack([part.sum() for part in picked.split(lengths)])
    greedy = torch.where(free, logits.argmax(-1), out.labels)
    return Expression(words, embeds, extra, values, [part.tolist() for part in greedy.split(lengths)], log_probability)


def _likeness(model: Segmenter, captions: list[list[int]], references: list[list[int]]) -> Tensor:
    """(R,) in [0, 1]: how much captions are like the teacher's, by CIDEr-D's measure."""
    pairs = zip(captions, references, strict=True)
    return torch.tensor([likeness(*map(model.tokenizer.decode, pair)) for pair in pairs], device=model.device)


def _segment(
    model: Segmenter, features: Features, batch: MaskBatch, captions: list[list[int]], embeds: Tensor | None
) -> tuple[Forward, Tensor]:
    """Teacher-forced answers about the second images, the captions (or their `embeds`) in the expression's place; mask logits."""
    encoded, marks = [], []
    for place, question, answer, caption in zip(batch.segment_index, batch.questions, batch.answers, captions, strict=True):
        text = prompts.image_string(_image_tokens(features, place)) + question
        before, after = prompts.encode_gap(model.tokenizer, model.template, text)
        said = model.tokenizer.encode(answer + model.template.suffix, add_special_tokens=False)
        encoded.append((before + caption + after + said, [prompts.IGNORE] * len(before + caption + after) + said))
        marks.append((len(before), len(caption)))
    ids, labels, attention = (x.to(model.device) for x in pad_right(encoded))
    at = None
    if embeds is not None:
        at = torch.zeros_like(ids, dtype=torch.bool)
        for row, (start, length) in zip(at, marks, strict=True):
            row[start : start + length] = True
    out = model(features, Conversations(ids, labels, attention, batch.segment_index, [None] * len(ids), embeds, at))
    return out, model.masks(features, out.seg_image, out.seg_embeds).low_res


def _no_text(model: Segmenter, logits: Tensor) -> Tensor:
    """Ids (n,) of all that is no text: special tokens, and rows that the tokenizer does not use."""
    text = torch.zeros(logits.shape[-1], dtype=torch.bool)
    text[model.text_tokens] = True
    return (~text).nonzero()[:, 0].to(logits.device)


def _image_tokens(features: Features, place: int) -> int:
    tiles = features.tiles[place]
    return tiles.shape[0] * tiles.shape[1]


def _add_square(total: Tensor, gradient: Tensor) -> None:
    total.add_(gradient.detach().float().square().sum())


def _mean_per_object(values: Tensor, captions: list[list[int]], counts: Counts) -> Tensor:
    """Sum over objects of the mean over their tokens, divided by the step's objects."""
    parts = values.detach().split([len(ids) for ids in captions])
    return torch.stack([part.mean() if len(part) else part.sum() for part in parts]).sum() / counts.objects


def _teacher_values(said: list[list[int]], ended: list[bool], counts: Counts, device: torch.device) -> dict[str, Tensor]:
    """Share of captions that came to an end, their mean length in tokens, the share of empty ones, and of those that no other
    object of the micro-batch has (an object by itself has such a one)."""
    times = Counter(map(tuple, said))
    sums = (sum(ended), sum(map(len, said)), sum(not ids for ids in said), sum(count == 1 for count in times.values()))
    names = ("teacher_ended", "teacher_length", "teacher_empty", "teacher_different")
    return {name: torch.tensor(float(value), device=device) / counts.objects for name, value in zip(names, sums, strict=True)}
