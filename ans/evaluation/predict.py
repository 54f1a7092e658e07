"""Predictions for a batch of images by free greedy generation, each image read once for all that is asked about it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from ans import captions
from ans.data import masks
from ans.data.matching import record_image, region_mask
from ans.data.records import Expression, ImageRecord, Region
from ans.evaluation.metrics import box_giou, intersection_union, iou
from ans.evaluation.plan import Item, Question, Row
from ans.model.config import ModelConfig
from ans.model.segmenter import Features, Read, Segmentation, Segmenter

GIVEN_ANSWER = "Sure, [SEG]."
"""The teacher-forced answer of `ciou_forced`: one of those that training uses."""

TEXT_TOKENS = 32
"""What a question takes beside the image, for the token budget."""


def row_tokens(model: ModelConfig, height: int, width: int) -> int:
    """Return about how many tokens a question about an image of this size has."""
    return model.family.grid(height, width).tokens + TEXT_TOKENS


def predict(
    model: Segmenter,
    root: Path,
    items: Sequence[Item],
    max_new_tokens: int,
    encode: Callable[[Sequence[Any]], Features] | None = None,
) -> list[Row]:
    """Return one row per question of a batch of images; `result` in it says where it belongs. `encode`: see `Segmenter.read`."""
    read = model.read([record_image(root, item.record) for item in items], encode)
    asked = [[(question, question.expression) for question in item.questions if question.expression] for item in items]
    texts = [[expression.sent for _, expression in questions] for questions in asked]
    free = model.segment(read, texts, max_new_tokens)
    given = _given(model, read, texts, free)
    rows = []
    for item, questions, answers, forced in zip(items, asked, free, given, strict=True):
        true = _truths(item.record)
        for (question, expression), answer, other in zip(questions, answers, forced, strict=True):
            rows.append(_expression_row(item.record, question, expression, answer, other, true(question.region)))
    described = [[question for question in item.questions if not question.expression] for item in items]
    if not any(described):
        return rows
    truths: list[Any] = [
        [region_mask(item.record, question.region).astype(bool) for question in questions]
        for item, questions in zip(items, described, strict=True)
    ]
    said = model.describe(read, truths, max_new_tokens)
    found = model.segment(read, said, max_new_tokens)
    for item, questions, *answers in zip(items, described, said, found, truths, strict=True):
        for question, caption, back, truth in zip(questions, *answers, strict=True):
            rows.append(_caption_row(item, question, caption, back, truth))
    return rows


def _given(
    model: Segmenter, read: Read, texts: Sequence[Sequence[str]], free: Sequence[Sequence[Segmentation]]
) -> list[list[Segmentation]]:
    """Segment with `GIVEN_ANSWER` given. Where the model said it by itself, its mask is that one: the masks are not made again."""
    said = [[len(one.masks) == 1 and one.answer.startswith(GIVEN_ANSWER) for one in answers] for answers in free]
    others = [[text for text, same in zip(*row, strict=True) if not same] for row in zip(texts, said, strict=True)]
    given = [iter(answers) for answers in model.segment_given(read, others, GIVEN_ANSWER)]
    return [
        [one if same else next(made) for one, same in zip(answers, sames, strict=True)]
        for answers, sames, made in zip(free, said, given, strict=True)
    ]


def _truths(record: ImageRecord) -> Callable[[Region], np.ndarray]:
    """Return what gives the true mask (h, w) bool of a region of an image: each is asked for by several expressions, and decoded once."""
    found: dict[str, np.ndarray] = {}

    def truth(region: Region) -> np.ndarray:
        if region.counts not in found:
            found[region.counts] = region_mask(record, region).astype(bool)
        return found[region.counts]

    return truth


def _expression_row(
    record: ImageRecord,
    question: Question,
    expression: Expression,
    answer: Segmentation,
    given: Segmentation,
    truth: np.ndarray,
) -> Row:
    ignore = _ignored(record, question)
    intersection, union = intersection_union(answer.mask, truth, ignore)
    forced_intersection, forced_union = intersection_union(given.mask, truth, ignore)
    return _about(record, question, answer.mask) | {
        "sent_id": expression.sent_id,
        "sent": expression.sent,
        "iou": iou(intersection, union),
        "intersection": intersection,
        "union": union,
        "forced_intersection": forced_intersection,
        "forced_union": forced_union,
        "has_seg": len(answer.masks) > 0,
        "no_target": not truth.any(),
        "said_nothing": intersection_union(answer.mask, answer.mask, ignore) == (0, 0),
        "box_giou": box_giou(answer.mask, truth, ignore),
        "answer": answer.answer,
    }


def _caption_row(item: Item, question: Question, caption: str, back: Segmentation, truth: np.ndarray) -> Row:
    record, facts = item.record, item.facts
    references = [expression.sent for expression in question.region.expressions]
    intersection, union = intersection_union(back.mask, truth, _ignored(record, question))
    true_caption = facts.true_caption(record.path, truth) if facts else None
    verdict = facts.judge(record.path, true_caption, caption) if facts and true_caption else None
    return _about(record, question, back.mask) | {
        "caption": caption,
        "references": references,
        "exact": captions.exact(caption, references),
        "facts_right": verdict and verdict.right,
        "facts": verdict and verdict.facts,
        "wrong_object": verdict and verdict.other,
        "iou": iou(intersection, union),
        "intersection": intersection,
        "union": union,
        "has_seg": len(back.masks) > 0,
    }


def _ignored(record: ImageRecord, question: Question) -> np.ndarray | None:
    """Return (height, width) bool of the pixels that count neither way."""
    counts = question.region.ignore_counts
    return masks.decode(counts, record.height, record.width).astype(bool) if counts else None


def _about(record: ImageRecord, question: Question, mask: np.ndarray) -> Row:
    counts = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    return {
        "result": question.result,
        "image_path": record.path,
        "image_id": record.image_id,
        "region_id": question.region.region_id,
        "category": question.region.category,
        "counts": counts,
        "gt_counts": question.region.counts,
        "ignore_counts": question.region.ignore_counts,
        "height": record.height,
        "width": record.width,
    }
