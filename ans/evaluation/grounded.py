"""Grounded conversation as GLaMM measures it (`eval/gcg/evaluate.py` of mbzuai-oryx/groundingLMM): masks of an answer's phrases against
those of the data, whatever the words, and the words by a caption's metrics.

`gcg_miou`: of each image, predicted and true masks are paired one to one, the best pair first, pairs without overlap left out; the mean
IoU of the pairs (0 without a pair), averaged over images. `gcg_ap50`: COCO's average precision at IoU 0.5, every mask with the same
score. `gcg_recall`: share of the true phrases that have a predicted one with IoU and similarity of the words of at least 0.5 each.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ans.config import Config
from ans.data import masks
from ans.data.arrow import Index, read_index
from ans.data.matching import record_image
from ans.data.readers import check_listing
from ans.data.records import ImageRecord
from ans.evaluation.kept import Kept
from ans.evaluation.metrics import mean_interval
from ans.evaluation.plan import Plan, Planned
from ans.evaluation.predict import row_tokens
from ans.evaluation.protocol import protocol_fingerprint, weights_checksum
from ans.files import replacing, write_json
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from ans.processes import connect
from ans.progress import Progress
from ans.provenance import digest
from ans.workspace import Workspace

THRESHOLD = 0.5
"""Of IoU, and of the similarity of two phrases."""
RESAMPLES, SEED = 2000, 0
"""Of the intervals over images."""

Similarity = Callable[[str, str], float]


@dataclass(frozen=True)
class Conversation:
    """What was said of an image and what is true. `counts` and `true_counts`: masks as compressed run lengths, the true ones in the
    order of `true_phrases`."""

    image: str
    height: int
    width: int
    caption: str
    phrases: list[str]
    counts: list[str]
    true_caption: str
    true_phrases: list[str]
    true_counts: list[str]

    @property
    def masks(self) -> np.ndarray:
        """(n, height, width) bool, decoded: masks of all images at once would not fit into memory."""
        return self._decoded(self.counts)

    @property
    def truth(self) -> np.ndarray:
        return self._decoded(self.true_counts)

    def _decoded(self, counts: list[str]) -> np.ndarray:
        drawn = np.zeros((len(counts), self.height, self.width), bool)
        for mask, one in zip(drawn, counts, strict=True):
            mask[:] = masks.decode(one, self.height, self.width)
        return drawn


def rows_of_part(index: Index, part: str, limit: int | None = None) -> list[tuple[int, ImageRecord]]:
    """Return (row, image) of every image of an index of reader `grand_f` whose phrases are of split `part`; the first `limit`.

    Raises `ValueError` where there is none, or where the regions of an image have no caption in common.
    """
    if part not in index.splits():
        raise ValueError(
            f"{index.path}: no region of split {part!r}; its splits are {', '.join(sorted(index.splits())) or 'none'}"
        )
    found = []
    for row, record in enumerate(index.records()):
        regions = [region for region in record.regions if region.split == part]
        if not regions or len(found) == limit:
            continue
        if len({region.expressions[0].raw for region in regions if region.expressions}) != 1:
            raise ValueError(f"{index.path}: {record.path} has no caption with phrases; this is no index of reader grand_f")
        found.append((row, record))
    return found


def converse(
    model: Segmenter, root: Path, records: Sequence[ImageRecord], part: str, max_new_tokens: int
) -> Iterator[Conversation]:
    """Ask about some images at once."""
    images = [record_image(root, record) for record in records]
    answers = model.ask(images, [[prompts.GROUNDED_PROMPT]] * len(images), max_new_tokens)
    for record, (answer,) in zip(records, answers, strict=True):
        regions = [region for region in record.regions if region.split == part]
        caption, phrases = prompts.grounded_parts(answer.answer.removesuffix(model.template.suffix))
        yield Conversation(
            record.path, record.height, record.width, caption, phrases, [masks.from_array(mask) for mask in answer.masks],
            regions[0].expressions[0].raw, [region.expressions[0].sent for region in regions],
            [region.counts for region in regions],
        )  # fmt: skip


def evaluate_grounded(config: Config, variant: str, workspace: Workspace = Workspace()) -> None:
    """Write metrics, answers and the protocol of a variant for every split of `evaluate.grounded`; nothing where there is none.

    `reports/eval/<variant>/<split>_grounded.json`, and `data/eval/<variant>/<split>_grounded.jsonl` with a row per image. Batches are
    planned from the data alone and each is kept when it is done, so that any number of processes gives the same numbers and a run
    that was killed goes on. Raises what `rows_of_part`, `check_listing` and `record_image` raise.
    """
    settings, root = config.evaluate, Path(config.paths.root)
    if not settings.grounded:
        return
    accelerator = connect(settings.precision)
    folder, results, predictions = workspace.variant(variant), workspace.results(variant), workspace.predictions(variant)
    model_config = ModelConfig.from_folder(folder)
    indexes, asked, batches = {}, {}, []
    for number, split in enumerate(settings.grounded):
        source, _, part = split.rpartition("_")
        indexes[split] = index = read_index(workspace.indexes / f"{source}.arrow")
        check_listing(index, root)
        rows = rows_of_part(index, part, settings.max_samples)
        asked[split] = hashlib.sha256(repr([record for _, record in rows]).encode()).hexdigest()
        images = tuple(Planned((record.height, record.width), [(number, row)], 1) for row, record in rows)
        batches += Plan((), images, {}).batches(
            lambda *size: row_tokens(model_config, *size) + settings.max_new_tokens, settings.tokens_per_batch
        )
    protocol = {
        "variant": variant,
        "prompt": prompts.GROUNDED_PROMPT,
        "weights_sha256": weights_checksum(folder),
        "code_sha256": digest("ans.evaluation.grounded"),
        "precision": settings.precision,
        "four_bit": list(settings.four_bit),
        "device": accelerator.device.type,
        "max_new_tokens": settings.max_new_tokens,
        "tokens_per_batch": settings.tokens_per_batch,
        "splits": asked,
    }
    kept = Kept(workspace.runs / f"evaluate-grounded-{variant}-{protocol_fingerprint(protocol)}")
    if accelerator.is_main_process:
        kept.lock()
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    if todo := [number for number in mine if not kept.has(number)]:
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        model = Segmenter.from_pretrained(folder, accelerator.device, dtype, settings.four_bit, model_config)
        images = sum(len(batches[number]) for number in todo)
        with Progress(images, f"converse {variant}", "image", quiet=not accelerator.is_main_process) as progress:
            for number in todo:
                split = settings.grounded[batches[number][0].places[0][0]]
                records = [indexes[split].record(image.places[0][1]) for image in batches[number]]
                with accelerator.autocast():
                    said = converse(model, root, records, split.rpartition("_")[2], settings.max_new_tokens)
                    kept.write(number, [{"split": split} | asdict(one) for one in said])
                progress.update(len(records))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    predictions.mkdir(parents=True, exist_ok=True)
    for split in settings.grounded:
        rows = [row for number in range(len(batches)) for row in kept.read(number) if row["split"] == split]
        said = [Conversation(**{key: value for key, value in row.items() if key != "split"}) for row in rows]
        ious = [paired_iou(one.masks, one.truth) for one in said]
        with replacing(predictions / f"{split}_grounded.jsonl") as path:
            lines = (json.dumps(asdict(one) | {"miou": own}) + "\n" for one, own in zip(said, ious, strict=True))
            path.write_text("".join(lines), encoding="utf-8")
        low, high = mean_interval(np.array(ious), RESAMPLES, SEED)
        write_json(results / f"{split}_grounded.json", metrics(said) | {"gcg_miou_low": low, "gcg_miou_high": high})
    write_json(predictions / "protocol_grounded.json", protocol)
    kept.remove()


def metrics(conversations: Sequence[Conversation], similar: Similarity | None = None) -> dict[str, float]:
    """See the module. `gcg_recall` only with `similar`; `seg_per_image`: masks in an answer. Raises `ValueError` if there are none."""
    if not conversations:
        raise ValueError("grounded conversation: no image, so there is nothing to measure")
    found: dict[str, float] = {
        "gcg_miou": float(np.mean([paired_iou(one.masks, one.truth) for one in conversations])),
        "gcg_ap50": average_precision(conversations),
        "seg_per_image": float(np.mean([len(one.counts) for one in conversations])),
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
        images.append({"id": number, "height": one.height, "width": one.width})
        for counts in one.true_counts:
            true.append(_annotation(len(true) + 1, number, one, counts))
        predicted += [_annotation(0, number, one, counts) | {"score": 1.0} for counts in one.counts]
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


def _annotation(number: int, image: int, of: Conversation, counts: str) -> dict[str, Any]:
    rle = {"size": [of.height, of.width], "counts": counts}
    bbox = [float(value) for value in coco.toBbox(rle)]
    return {
        "id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": rle, "area": int(coco.area(rle)), "bbox": bbox,
    }  # fmt: skip
