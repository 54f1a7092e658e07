"""Grounded conversation as GLaMM measures it (`eval/gcg/evaluate.py` of mbzuai-oryx/groundingLMM): masks of an answer's phrases against
those of the data, whatever the words, and the words by a caption's metrics.

`gcg_miou`: of each image, predicted and true masks are paired one to one, the best pair first, pairs without overlap left out; the mean
IoU of the pairs (0 without a pair), averaged over images. `gcg_ap50`: COCO's average precision at IoU 0.5, every mask with the same
score. `gcg_recall`: share of the true phrases that have a predicted one with IoU and similarity of the words of at least 0.5 each.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ans.data import masks
from ans.data.arrow import Index
from ans.data.matching import record_image
from ans.data.records import ImageRecord
from ans.model import prompts
from ans.model.segmenter import Segmenter

THRESHOLD = 0.5
"""Of IoU, and of the similarity of two phrases."""

Similarity = Callable[[str, str], float]


@dataclass(frozen=True)
class Conversation:
    """What was said of an image and what is true. Masks are (n, height, width) bool, `true_phrases` and `truth` in the same order."""

    image: str
    caption: str
    phrases: list[str]
    masks: np.ndarray
    true_caption: str
    true_phrases: list[str]
    truth: np.ndarray


def converse(
    model: Segmenter, root: Path, index: Index, part: str, max_new_tokens: int, limit: int | None = None
) -> Iterator[Conversation]:
    """Ask about every image of an index of reader `grand_f` whose phrases are of split `part`, one after the other; the first `limit`.

    Raises `ValueError` where there is none.
    """
    if part not in index.splits():
        raise ValueError(
            f"{index.path}: no region of split {part!r}; its splits are {', '.join(sorted(index.splits())) or 'none'}"
        )
    asked = 0
    for record in index.records():
        regions = [region for region in record.regions if region.split == part]
        if not regions or asked == limit:
            continue
        asked += 1
        ((answer,),) = model.ask([record_image(root, record)], [[prompts.GROUNDED_PROMPT]], max_new_tokens)
        caption, phrases = prompts.grounded_parts(answer.answer.removesuffix(model.template.suffix))
        yield Conversation(
            record.path, caption, phrases, answer.masks, regions[0].expressions[0].raw,
            [region.expressions[0].sent for region in regions], _truth(record, [region.counts for region in regions]),
        )  # fmt: skip


def metrics(conversations: Sequence[Conversation], similar: Similarity | None = None) -> dict[str, float]:
    """See the module. `gcg_recall` only with `similar`; `seg_per_image`: masks in an answer. Raises `ValueError` if there are none."""
    if not conversations:
        raise ValueError("grounded conversation: no image, so there is nothing to measure")
    found: dict[str, float] = {
        "gcg_miou": float(np.mean([paired_iou(one.masks, one.truth) for one in conversations])),
        "gcg_ap50": average_precision(conversations),
        "seg_per_image": float(np.mean([len(one.masks) for one in conversations])),
        "n": len(conversations),
    }
    if similar is not None:
        right = sum(matched(one, similar) for one in conversations)
        found["gcg_recall"] = right / sum(len(one.true_phrases) for one in conversations)
    return found


def ious(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return (n, m) IoU of masks (n, h, w) with masks (m, h, w); 0 where both are empty."""
    first, second = (part.reshape(len(part), part.shape[1] * part.shape[2]).astype(np.float64) for part in (predicted, truth))
    shared = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def paired_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean IoU of the pairs of an image."""
    left, pairs = ious(predicted, truth), []
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        pairs.append(left[row, column])
        left = np.delete(np.delete(left, row, 0), column, 1)
    return float(np.mean(pairs)) if pairs else 0.0


def matched(one: Conversation, similar: Similarity) -> int:
    """Return the true phrases of an image that are found: pairs by falling IoU, until the best that is left falls short in IoU or in
    words, as published. A mask without a phrase ends it with 0, since there the published code gives the image up."""
    left, count = ious(one.truth, one.masks), 0
    while left.size:
        row, column = np.unravel_index(left.argmax(), left.shape)
        if left[row, column] < THRESHOLD:
            break
        if column >= len(one.phrases):
            return 0
        if similar(one.true_phrases[row], one.phrases[column]) < THRESHOLD:
            break
        count += 1
        left[row], left[:, column] = 0, 0
    return count


def average_precision(conversations: Sequence[Conversation]) -> float:
    """Return COCO's AP at IoU 0.5 of one class, over all images; 0 if no mask is predicted."""
    images, true, predicted = [], [], []
    for number, one in enumerate(conversations, 1):
        images.append({"id": number, "height": one.truth.shape[1], "width": one.truth.shape[2]})
        for mask in one.truth:
            true.append(_annotation(len(true) + 1, number, mask))
        predicted += [_annotation(0, number, mask) | {"score": 1.0} for mask in one.masks]
    if not predicted:
        return 0.0
    with contextlib.redirect_stdout(sys.stderr):
        known = COCO()
        known.dataset = {"info": {}, "images": images, "annotations": true, "categories": [{"id": 1, "name": "object"}]}
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(predicted), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def bert(folder: str) -> Similarity:
    """Return the similarity of the published recall: cosine of the means of BERT's last states. `folder`: of bert-base-uncased, or its
    name on the hub. Raises what transformers raises where it is missing."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    def similar(first: str, second: str) -> float:
        with torch.no_grad():
            one, other = (
                model(**tokenizer(text, return_tensors="pt", max_length=512, truncation=True)).last_hidden_state[0].mean(0)
                for text in (first, second)
            )
        return float(torch.cosine_similarity(one, other, dim=0))

    return similar


def _truth(record: ImageRecord, counts: Sequence[str]) -> np.ndarray:
    return np.stack([masks.decode(one, record.height, record.width).astype(bool) for one in counts])


def _annotation(number: int, image: int, mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    bbox = [float(value) for value in coco.toBbox(rle)]
    return {
        "id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": rle, "area": int(coco.area(rle)), "bbox": bbox,
    }  # fmt: skip
