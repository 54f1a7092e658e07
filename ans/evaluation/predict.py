"""Evaluate one variant on all its splits by free greedy generation, each image read once for all that is asked about it."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from tqdm import tqdm

from ans import captions
from ans.config import Config
from ans.data import masks
from ans.data.dataset import region_mask
from ans.data.images import open_image
from ans.data.records import ImageRecord
from ans.evaluation.kept import Kept, Row
from ans.evaluation.metrics import box_giou, intersection_union, iou
from ans.evaluation.plan import Item, Question, make_plan
from ans.evaluation.protocol import GIVEN_ANSWER, fingerprint, make_protocol, protocol_text
from ans.evaluation.tables import CaptionTable, ExpressionTable, write_json
from ans.model.config import ModelConfig
from ans.model.feature_cache import FeatureCache
from ans.model.segmenter import Features, Segmentation, Segmenter
from ans.processes import connect

TEXT_TOKENS = 32
"""What a question takes beside the image, for the token budget."""


def evaluate(config: Config, variant: str, folder: Path, index_folder: Path, reports: Path, data: Path) -> None:
    """Write `reports/<result>.json` and `data/<result>.parquet` for every split and captioning, and `data/protocol.json`.

    Batches are planned from the data alone and handed out whole, so any number of processes gives the same numbers. Each is kept
    when it is done; a run that was killed, started again, does the others. Raises what `make_plan` and `open_image` raise.
    """
    preset, root = config.chosen.evaluate, Path(config.paths.root)
    accelerator = connect(preset.precision)
    torch.manual_seed(config.evaluate.seed)
    plan = make_plan(config.questions, index_folder, root)
    sizes = ModelConfig.from_folder(folder)
    batches = plan.batches(lambda *size: row_tokens(sizes, *size) + preset.max_new_tokens, preset.tokens_per_batch)
    protocol = make_protocol(config, variant, folder, accelerator.device.type, plan)
    kept = Kept(variant, fingerprint(protocol))
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    todo = [number for number in mine if not kept.has(number)]
    if accelerator.is_main_process:
        print(protocol_text(protocol), flush=True)
        if done := sum(map(kept.has, range(len(batches)))):
            print(f"continuing {kept.folder}: {done} of {len(batches)} batches are done", flush=True)
    if todo:
        dtype = torch.bfloat16 if preset.precision == "bf16" else torch.float32
        model = Segmenter.from_pretrained(folder, accelerator.device, dtype, preset.four_bit)
        encode = None
        if cache := config.launch.feature_cache_gb:
            encode = FeatureCache(model, preset.precision, 1e9 * cache, accelerator.num_processes).encode
        quiet = None if accelerator.is_main_process else True
        for number in tqdm(todo, desc=f"evaluate {variant}", unit="batch", disable=quiet, mininterval=1):
            items = [plan.item(image) for image in batches[number]]
            with accelerator.autocast():
                kept.write(number, predict(model, root, items, preset.max_new_tokens, encode))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with ExitStack() as stack:
            tables = {name: ExpressionTable(data / f"{name}.parquet", protocol) for name in config.questions.split_results()}
            tables |= {name: CaptionTable(data / f"{name}.parquet", protocol) for name in config.questions.caption_results()}
            for table in tables.values():
                stack.enter_context(table)
            for number in range(len(batches)):
                for row in kept.read(number):
                    tables[row.pop("result")].add(row)
        for name, table in tables.items():
            write_json(
                reports / f"{name}.json",
                table.summary() | {"images": plan.counts[name]["images"], "capped": int(config.questions.capped)},
            )
        write_json(data / "protocol.json", protocol)
        kept.remove()


def row_tokens(sizes: ModelConfig, height: int, width: int) -> int:
    """About how many tokens a question about an image of this size has."""
    return sizes.tile_count(height, width) * sizes.tokens_per_tile + TEXT_TOKENS


def predict(
    model: Segmenter,
    root: Path,
    items: Sequence[Item],
    max_new_tokens: int,
    encode: Callable[[Sequence[Image.Image]], Features] | None = None,
) -> list[Row]:
    """One row per question of a batch of images; `result` in it says where it belongs. `encode`: see `Segmenter.read`."""
    read = model.read([open_image(root, item.record.path) for item in items], encode)
    asked = [[question for question in item.questions if question.expression] for item in items]
    texts = [[question.expression.sent for question in questions] for questions in asked]
    free = model.segment(read, texts, max_new_tokens)
    given = model.segment_given(read, texts, GIVEN_ANSWER)
    rows = []
    for item, questions, answers, forced in zip(items, asked, free, given, strict=True):
        for question, answer, other in zip(questions, answers, forced, strict=True):
            rows.append(_expression_row(item.record, question, answer, other))
    described = [[question for question in item.questions if not question.expression] for item in items]
    if not any(described):
        return rows
    truths = [
        [region_mask(item.record, question.region).astype(bool) for question in questions]
        for item, questions in zip(items, described, strict=True)
    ]
    said = model.describe(read, truths, max_new_tokens)
    found = model.segment(read, said, max_new_tokens)
    for item, questions, *answers in zip(items, described, said, found, truths, strict=True):
        for question, caption, back, truth in zip(questions, *answers, strict=True):
            rows.append(_caption_row(item.record, question, caption, back, truth))
    return rows


def _expression_row(record: ImageRecord, question: Question, answer: Segmentation, given: Segmentation) -> Row:
    truth, ignore = region_mask(record, question.region).astype(bool), _ignored(record, question)
    intersection, union = intersection_union(answer.mask, truth, ignore)
    forced_intersection, forced_union = intersection_union(given.mask, truth, ignore)
    return _about(record, question, answer.mask) | {
        "sent_id": question.expression.sent_id,
        "sent": question.expression.sent,
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


def _caption_row(record: ImageRecord, question: Question, caption: str, back: Segmentation, truth: np.ndarray) -> Row:
    references = [expression.sent for expression in question.region.expressions]
    intersection, union = intersection_union(back.mask, truth, _ignored(record, question))
    right, total = captions.token_accuracy(caption, references)
    return _about(record, question, back.mask) | {
        "caption": caption,
        "references": references,
        "exact": captions.exact(caption, references),
        "words_right": right,
        "words": total,
        "iou": iou(intersection, union),
        "intersection": intersection,
        "union": union,
        "has_seg": len(back.masks) > 0,
    }


def _ignored(record: ImageRecord, question: Question) -> np.ndarray | None:
    """(height, width) bool of the pixels that count neither way."""
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
