"""Evaluate one variant on all its splits by free greedy generation, each image encoded once for all its expressions."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from pycocotools import mask as coco
from tqdm import tqdm

from ans.checkpoints.shards import files
from ans.config import Config
from ans.data.dataset import region_mask
from ans.data.images import open_image
from ans.data.index import check_listing, read_index
from ans.data.records import Expression, ImageRecord, Region
from ans.evaluation.metrics import box_giou, intersection_union, iou, summarise
from ans.model import prompts
from ans.model.segmenter import Segmenter
from ans.processes import connect
from ans.report.results import replacing


@dataclass(frozen=True)
class Question:
    """One expression of one region of one image, as a split asks it."""

    region: Region
    expression: Expression


@dataclass(frozen=True)
class Item:
    """One image with all that a split asks about it."""

    record: ImageRecord
    questions: tuple[Question, ...]


def split_items(index_folder: Path, root: Path, split: str, max_samples: int | None, max_texts: int | None) -> list[Item]:
    """The images of an evaluated split, such as `refcoco_testA`, in the index's order.

    Raises `ValueError` naming a split that the index does not hold.
    """
    source, _, part = split.rpartition("_")
    path = index_folder / f"{source}.parquet"
    if not path.is_file():
        raise ValueError(f"evaluate.splits: {split}: there is no index {path}; a split is <source>_<part>, e.g. refcoco_val")
    index = read_index(path)
    check_listing(index, root)
    items = []
    for record in index.records():
        questions = tuple(Question(r, e) for r in record.regions if r.split == part for e in r.expressions)[:max_texts]
        if questions:
            items.append(Item(record, questions))
    if not items:
        raise ValueError(f"evaluate.splits: {split}: {path} has no region of split {part!r}")
    return items[:max_samples]


def evaluate(config: Config, variant: str, folder: Path, index_folder: Path, reports: Path, data: Path) -> None:
    """Write `reports/<split>.json` and `data/<split>.parquet` for every split, and `data/protocol.json`.

    Batches are planned from the data alone and handed out whole, so any number of processes gives the same numbers.
    """
    settings, preset, root = config.evaluate, config.chosen.evaluate, Path(config.paths.root)
    accelerator = connect(preset.precision)
    torch.manual_seed(settings.seed)
    dtype = torch.bfloat16 if preset.precision == "bf16" else torch.float32
    model = Segmenter.from_pretrained(folder, accelerator.device, dtype)
    protocol = {
        "variant": variant,
        "prompt": prompts.SEGMENT_PROMPT,
        "generation": "greedy, free; an answer without [SEG] is an empty mask; several masks are united",
        "precision": preset.precision,
        "weights_sha256": weights_checksum(folder),
        **{name: getattr(settings, name) for name in ("max_samples", "max_texts_per_image", "max_new_tokens")},
        "splits": {},
    }
    for split in settings.splits:
        items = split_items(index_folder, root, split, settings.max_samples, settings.max_texts_per_image)
        protocol["splits"][split] = split_checksum(items)
        batches = list(enumerate(plan(items, preset.images_per_batch)))
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        quiet = None if accelerator.is_main_process else True
        rows = []
        for number, batch in tqdm(mine, desc=f"{variant} {split}", disable=quiet, mininterval=1):
            with accelerator.autocast():
                rows += [(number, row) for row in predict(model, root, batch, settings.max_new_tokens)]
        rows = [row for _, row in sorted(gather_object(rows), key=lambda numbered: numbered[0])]
        if accelerator.is_main_process:
            _write(rows, reports / f"{split}.json", data / f"{split}.parquet")
    if accelerator.is_main_process:
        with replacing(data / "protocol.json") as path:
            path.write_text(json.dumps(protocol, indent=2) + "\n", encoding="utf-8")


def plan(items: list[Item], images_per_batch: int) -> Iterator[list[Item]]:
    """Consecutive images in batches: a pure function of the data, not of the number of processes."""
    for start in range(0, len(items), images_per_batch):
        yield items[start : start + images_per_batch]


def predict(model: Segmenter, root: Path, items: list[Item], max_new_tokens: int) -> list[dict[str, object]]:
    """One row per expression of a batch of images."""
    images = [open_image(root, item.record.path) for item in items]
    texts = [[question.expression.sent for question in item.questions] for item in items]
    answers = model.segment(images, texts, max_new_tokens)
    rows = []
    for item, found in zip(items, answers, strict=True):
        for question, answer in zip(item.questions, found, strict=True):
            rows.append(_row(item.record, question, answer.answer, answer.mask, len(answer.masks) > 0))
    return rows


def _row(record: ImageRecord, question: Question, answer: str, mask: np.ndarray, has_seg: bool) -> dict[str, object]:
    truth = region_mask(record, question.region).astype(bool)
    intersection, union = intersection_union(mask, truth)
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return {
        "image_path": record.path,
        "image_id": record.image_id,
        "region_id": question.region.region_id,
        "sent_id": question.expression.sent_id,
        "sent": question.expression.sent,
        "iou": iou(intersection, union),
        "intersection": intersection,
        "union": union,
        "has_seg": has_seg,
        "box_giou": box_giou(mask, truth),
        "counts": rle.decode(),
        "height": record.height,
        "width": record.width,
        "answer": answer,
        "gt_counts": question.region.counts,
    }


def _write(rows: list[dict[str, object]], metrics_path: Path, table_path: Path) -> None:
    metrics = summarise(rows) | {"images": len({row["image_path"] for row in rows})}
    with replacing(table_path) as path:
        pd.DataFrame(rows).to_parquet(path, index=False)
    with replacing(metrics_path) as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def weights_checksum(folder: Path) -> str:
    """sha256 over the shards' names and contents."""
    digest = hashlib.sha256()
    for path in files(folder):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def split_checksum(items: list[Item]) -> str:
    """sha256 over what a split asks: images, regions, sentences and true masks."""
    digest = hashlib.sha256()
    for item in items:
        for question in item.questions:
            key = (item.record.path, question.region.region_id, question.expression.sent, question.region.counts)
            digest.update(repr(key).encode())
    return digest.hexdigest()
