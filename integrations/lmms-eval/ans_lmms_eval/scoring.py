"""What a task of `ans_lmms_eval.task` shows a model, and how it scores what comes back. Uses nothing of lmms-eval."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from ans.data import masks
from ans.evaluation.metrics import intersection_union, iou

Document = Mapping[str, Any]


def visual(document: Document) -> list[Image.Image]:
    return [Image.open(BytesIO(document["image"])).convert("RGB")]


def text(document: Document) -> str:
    return f"Please segment {document['sent']} in this image."


def target(document: Document) -> str:
    return document["counts"]


def process(document: Document, results: Sequence[str]) -> dict[str, Any]:
    """Pixels of the intersection and the union, and whether there was a mask. Raises `ValueError` for an answer that is no JSON object with
    `counts`."""
    height, width = document["height"], document["width"]
    try:
        counts = json.loads(results[0])["counts"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f'an answer is {{"counts": run lengths or null, ...}}, found {results[0]!r:.80}') from error
    truth = masks.decode(document["counts"], height, width).astype(bool)
    predicted = masks.decode(counts, height, width).astype(bool) if counts is not None else truth & False
    ignore = masks.decode(document["ignore_counts"], height, width).astype(bool) if document["ignore_counts"] else None
    pixels = intersection_union(predicted, truth, ignore)
    return {"ciou": pixels, "miou": iou(*pixels), "seg_rate": float(counts is not None)}


def ciou(pixels: Sequence[tuple[int, int]]) -> float:
    """Sum of intersections over sum of unions."""
    return iou(sum(one for one, _ in pixels), sum(other for _, other in pixels))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
