"""Evaluate one variant on sets of videos: J&F of every expression, and the archives that the benchmarks' servers take."""

import json
import logging
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ans.config import Config
from ans.config.schema import VideoSet
from ans.data import masks
from ans.data.clips import Clip, ClipFrames, checksum, read
from ans.data.records import left_out
from ans.data.video_sources.ref_davis import ANNOTATORS as TEXTS
from ans.evaluation.kept import Kept
from ans.evaluation.protocol import protocol_fingerprint, weights_checksum
from ans.evaluation.video_metrics import (
    REVOS_KINDS,
    MergedScorer,
    Scorer,
    VideoScore,
    interval,
    summarise,
    summarise_revos,
)
from ans.files import replacing, write_json
from ans.model import prompts
from ans.model.inference import Segmentation
from ans.model.segmenter import Segmenter
from ans.processes import connect
from ans.progress import Progress
from ans.provenance import digest
from ans.workspace import Workspace

log = logging.getLogger(__name__)

RESAMPLES, SEED = 2000, 0
"""Of the intervals over clips."""
ARCHIVES = {"mevis": "", "ref_youtube_vos": "Annotations/"}
"""Reader -> the folder in the archive that its server takes: `<video>/<expression>/<frame>.png` in it."""
ANNOTATORS = len(TEXTS)
"""Of Ref-DAVIS17: two people, each from the first frame and from the whole video."""
Row = dict[str, Any]


def evaluate_videos(config: Config, variant: str, workspace: Workspace = Workspace()) -> None:
    """Write metrics, predictions and the protocol of a variant for every set of `evaluate.videos`; nothing where there is none.

    `reports/eval/<variant>/<name>_video.json`, `data/eval/<variant>/<name>_video.jsonl` (a row per expression, with its masks), and
    `<name>_video.zip` where the true masks are not published. Clips are handed out whole, and each is kept when it is done, so that any
    number of processes gives the same numbers and a run that was killed goes on. Raises what the readers and `segment_video` raise.
    """
    settings, root = config.evaluate, Path(config.paths.root)
    if not settings.videos:
        return
    accelerator = connect(settings.precision)
    folder, results, predictions = workspace.variant(variant), workspace.results(variant), workspace.predictions(variant)
    found = {name: list(read(of.reader, root, of.folder, of.split)) for name, of in settings.videos.items()}
    clips = [(name, clip) for name, several in found.items() for clip in several if isinstance(clip, Clip)]
    skipped = {name: left_out(several) for name, several in found.items()}
    protocol = {
        "variant": variant,
        "prompts": [prompts.VIDEO_PROMPT, prompts.VIDEO_QUESTION_PROMPT],
        "masks": "of an answer's first [SEG]; an answer without one is empty in every frame",
        "weights_sha256": weights_checksum(folder),
        "code_sha256": digest("ans.evaluation.videos"),
        "precision": settings.precision,
        "four_bit": list(settings.four_bit),
        "device": accelerator.device.type,
        "max_new_tokens": settings.max_new_tokens,
        "sets": {name: of.model_dump() | {"sha256": checksum(found[name])} for name, of in settings.videos.items()},
    }
    kept = Kept(workspace.runs / f"evaluate-videos-{variant}-{protocol_fingerprint(protocol)}")
    if accelerator.is_main_process:
        kept.lock()
    todo = [i for i in range(accelerator.process_index, len(clips), accelerator.num_processes) if not kept.has(i)]
    if todo:
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        model = Segmenter.from_pretrained(folder, accelerator.device, dtype, settings.four_bit)
        with Progress(len(todo), f"evaluate {variant}", "clip", quiet=not accelerator.is_main_process) as progress:
            for i in todo:
                name, clip = clips[i]
                with accelerator.autocast():
                    kept.write(i, rows_of(model, root, clip, settings.videos[name], settings.max_new_tokens))
                progress.update(1)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    for name, of in settings.videos.items():
        for one in skipped[name]:
            log.warning(f"{name}: {one.key} is left out: {one.reason}")
        rows = [row for i, (own, _) in enumerate(clips) if own == name for row in kept.read(i)]
        if not rows:
            raise ValueError(
                f"evaluate.videos.{name}: no clip of split {of.split!r} could be used ({len(skipped[name])} left out)"
            )
        predictions.mkdir(parents=True, exist_ok=True)
        with replacing(predictions / f"{name}_video.jsonl") as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if any(row["j"] is None for row in rows):
            write_archive(predictions / f"{name}_video.zip", rows, ARCHIVES.get(of.reader, ""))
        write_json(results / f"{name}_video.json", summary(rows) | {"skipped": len(skipped[name])})
    write_json(predictions / "protocol_videos.json", protocol)
    kept.remove()


def rows_of(model: Segmenter, root: Path, clip: Clip, settings: VideoSet, max_new_tokens: int) -> list[Row]:
    """Return a row per expression of a clip; `j`, `f`, `a` and `r` are None where the data set does not publish its masks. Of Ref-DAVIS17
    `j_merged` and `f_merged` too, those of the expression's object where its annotator's objects are predicted together."""
    stream = model.segment_video(
        ClipFrames(root, clip),
        [one.text for one in clip.expressions],
        choice=None if settings.choice == "auto" else settings.choice,
        propagation=None if settings.propagation == "auto" else settings.propagation,
        frames_read=settings.frames_read,
        max_new_tokens=max_new_tokens,
    )
    scorers = [None if one.objects is None else Scorer() for one in clip.expressions]
    rows: list[Row] = [
        {"clip": clip.name, "id": one.id, "text": one.text, "kind": one.kind, "height": clip.height, "width": clip.width}
        | {"names": list(clip.names), "paths": list(clip.frames), "counts": [], "true": []}
        for one in clip.expressions
    ]
    annotators = [list(places) for places in annotated(clip)] if settings.reader == "ref_davis" else []
    together = [MergedScorer(len(places)) for places in annotators]
    for frame, answers in enumerate(stream):
        foreground = clip.all_objects(frame) if any(scorers) else None
        for row, answer, scorer, one in zip(rows, answers, scorers, clip.expressions, strict=True):
            pred = answer.masks[0] if len(answer.masks) else np.zeros((clip.height, clip.width), bool)
            row["answer"], row["has_seg"] = answer.answer, len(answer.masks) > 0
            row["counts"].append(masks.from_array(pred))
            if scorer is not None:
                target = clip.target(one, frame)
                row["true"].append(masks.from_array(target))
                scorer.add(pred, target, foreground)
        for places, merger in zip(annotators, together, strict=True):
            scores = [_probabilities(answers[place], clip) for place in places]
            merger.add(np.stack(scores), [clip.target(clip.expressions[place], frame) for place in places])
    for places, merger in zip(annotators, together, strict=True):
        for place, one in zip(places, merger.score(), strict=True):
            rows[place] |= {"j_merged": one.j, "f_merged": one.f}
    for row, scorer in zip(rows, scorers, strict=True):
        row |= dict.fromkeys("jfar") if scorer is None else asdict(scorer.score())
    return rows


def annotated(clip: Clip) -> list[list[int]]:
    """Return the places of each annotator's expressions of a clip of Ref-DAVIS17, in order of the objects."""
    order = sorted(range(len(clip.expressions)), key=lambda place: int(clip.expressions[place].id))
    return [order[annotator::ANNOTATORS] for annotator in range(ANNOTATORS)]


def _probabilities(answer: Segmentation, clip: Clip) -> np.ndarray:
    """Return (h, w): how probable each pixel is by an answer's first `[SEG]`; 0 without one, and 0 or 1 where only the mask is known."""
    if not len(answer.masks):
        return np.zeros((clip.height, clip.width), np.float32)
    if answer.logits is None:
        return answer.masks[0].astype(np.float32)
    return answer.logits[0].float().sigmoid().cpu().numpy()


def summary(rows: Sequence[Row]) -> dict[str, float | int]:
    """Return metrics of a set, x 100: `j`, `f`, `jf` with its interval over clips (`jf_low`, `jf_high`), of ReVOS those of each kind
    and `a` and `r` too; `seg_rate`, `n`, `clips`. A set whose masks are not published has only the last three. ReVOS's expressions
    of absent objects count in none of them."""
    asked = [row for row in rows if row["kind"] != "absent"]
    found: dict[str, float | int] = {}
    if asked and all(row["j"] is not None for row in asked):
        scores = [VideoScore(*(row[key] for key in "jfar")) for row in asked]
        low, high = interval([row["clip"] for row in asked], scores, RESAMPLES, SEED)
        kinds = {kind: number for number, kind in REVOS_KINDS.items()}
        if {row["kind"] for row in asked} == set(kinds):
            found = summarise_revos([(kinds[row["kind"]], one) for row, one in zip(asked, scores, strict=True)])
        else:
            found = summarise(scores)
        found |= {"jf_low": 100 * low, "jf_high": 100 * high}
        if all("j_merged" in row for row in asked):  # annotators describe the same objects, so their mean is that of all rows
            merged = summarise([VideoScore(row["j_merged"], row["f_merged"]) for row in asked])
            found |= {f"{key}_merged": merged[key] for key in ("j", "f", "jf")}
    seg_rate = sum(row["has_seg"] for row in asked) / max(1, len(asked))
    return found | {"seg_rate": seg_rate, "n": len(asked), "clips": len({row["clip"] for row in asked})}


def write_archive(path: Path, rows: Iterable[Row], folder: str) -> None:
    """Write the predictions as a server takes them: `<folder><video>/<expression>/<frame>.png`, grey, 0 or 255, one for every frame."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for row in rows:
            for name, counts in zip(row["names"], row["counts"], strict=True):
                content = BytesIO()
                Image.fromarray(255 * masks.decode(counts, row["height"], row["width"])).save(content, "PNG")
                member = zipfile.ZipInfo(
                    f"{folder}{row['clip']}/{row['id']}/{name}.png"
                )  # with the same date whenever it is made
                archive.writestr(member, content.getvalue())
