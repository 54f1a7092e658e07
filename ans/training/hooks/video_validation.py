"""Validation on clips: J&F of a set of videos while training goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ans.config.schema import VideoSet
from ans.data.clips import Clip, ClipFrames, read
from ans.evaluation.plan import Row
from ans.evaluation.videos import rows_of, summary
from ans.training.hooks.pictures import answer_picture
from ans.training.hooks.validation import PICTURES, Validation

SHOWN = ("jf", "j", "f", "seg_rate")
"""The metrics that are kept of every evaluation, as shares."""


class VideoValidation(Validation):
    """Of the first clips of a set, one of which is a batch."""

    shown: ClassVar[tuple[str, ...]] = SHOWN

    def __init__(self, videos: VideoSet, *arguments: Any) -> None:
        self.videos = videos
        super().__init__(*arguments)

    def prepare(self, indexes: Path) -> None:
        of = self.videos
        found = [clip for clip in read(of.reader, self.root, of.folder, of.split) if isinstance(clip, Clip)]
        self.clips = [clip for clip in found if any(one.objects is not None for one in clip.expressions)]
        self.clips = self.clips[: self.settings.max_samples]
        if not self.clips:
            raise ValueError(f"train.validation.split: {self.settings.split} has no clip whose masks are known")
        self.batches = range(len(self.clips))

    def ask(self, number: int) -> list[Row]:
        return rows_of(self.model, self.root, self.clips[number], self.videos, self.settings.max_new_tokens)

    def summary(self, rows: list[Row]) -> Mapping[str, float]:
        found = summary(rows)
        return {name: found[name] / (1 if name == "seg_rate" else 100) for name in SHOWN}

    def pictures(self) -> list[Image.Image]:
        """Return the middle frame of each of the first clips, with the answer to its first expression."""
        pictures = []
        for clip in self.clips[:PICTURES]:
            row, place = next(row for row in self.rows if row["clip"] == clip.name), len(clip.frames) // 2
            one = {"sent": row["text"], "iou": row["j"], "has_seg": row["has_seg"], "height": clip.height, "width": clip.width}
            masks = {"counts": row["counts"][place], "gt_counts": row["true"][place]}
            pictures.append(answer_picture(ClipFrames(self.root, clip)[place], one | masks))
        return pictures
