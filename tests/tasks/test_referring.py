"""Expressions of nothing in supervised referring: off by default, else an answer of their own and an empty mask."""

import math

import pytest
import torch

from ans.data.samples import is_taught
from ans.model import prompts
from ans.model.segmenter import Conversations
from ans.tasks.referring import Batch
from tests.task_case import TaskCase


def made(case: TaskCase, no_target: bool, count: int = 4) -> Batch:
    return case.task("referring", sources=("grefcoco",), no_target=no_target, objects_per_image=3).batch(range(count))


def answers(case: TaskCase, batch: Batch) -> list[str]:
    """The answer to each expression, in the order of the masks."""
    decode = case.model.tokenizer.decode
    rows = [decode(labels[labels != prompts.IGNORE]) for labels in batch.labels]
    return [answer for row in rows for answer in row.split("<|im_end|>") if answer.strip()]


def test_by_default_no_expression_of_nothing_is_learnt(case: TaskCase) -> None:
    batch = made(case, no_target=False)
    assert len(batch.targets.soft) == 8 and batch.targets.soft.flatten(1).sum(1).min() > 0
    assert all("No target" not in answer for answer in answers(case, batch))


@pytest.mark.second
def test_an_expression_of_nothing_has_its_answer_and_an_empty_mask(case: TaskCase) -> None:
    batch = made(case, no_target=True)
    said, empty = answers(case, batch), [not mask.any() for mask in batch.targets.soft]
    wanted = case.model.tokenizer.decode(case.model.tokenizer.encode(prompts.REJECTION, add_special_tokens=False))
    assert len(said) == len(empty) == batch.counts["objects"] == 12 and sum(empty) == 4
    assert [answer.strip() == wanted.strip() for answer in said] == empty
    regions = [region for row in range(4) for region in case.indexes("grefcoco").record(row).regions]
    assert {region.area > 0 for region in regions if is_taught(region, True)} == {True, False}


def test_the_loss_by_hand(case: TaskCase) -> None:
    """Cross-entropy and Dice of each object from their definitions, an empty mask among them."""
    case.model.eval()
    task = case.task("referring", sources=("grefcoco",), no_target=True, objects_per_image=3)
    batch = task.batch(range(2))
    losses = case.losses(task, batch)
    features = case.features(batch)
    with torch.no_grad():
        shown = Conversations(batch.ids, batch.labels, batch.mask, batch.image_index, [None] * len(batch.ids))
        out = case.model(features, shown)
        logits = case.model.masks(features, out.seg_image, out.seg_embeds).low_res.double()
    entropy = dice = 0.0
    for logit, target in zip(logits.flatten(1).tolist(), batch.targets.soft.flatten(1).tolist(), strict=True):
        p = [1 / (1 + math.exp(-x)) for x in logit]
        entropy -= sum(math.log(q if t else 1 - q) if t in (0, 1) else t * math.log(q) + (1 - t) * math.log(1 - q)
                       for q, t in zip(p, target, strict=True)) / len(p)  # fmt: skip
        dice += 1 - (2 * sum(q * t for q, t in zip(p, target, strict=True)) + 1) / (sum(p) + sum(target) + 1)
    assert float(losses.values["ref_mask"]) == pytest.approx(entropy / len(logits), rel=1e-4)
    assert float(losses.values["ref_dice"]) == pytest.approx(dice / len(logits), rel=1e-4)
