"""What `segment` does with a video: frames go through the model one by one, and from there to the files."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ans.data import masks
from ans.data.videos import FrameFolder, Video, VideoWriter, open_video
from ans.files import replacing, write_json
from ans.painting import COLOURS

if TYPE_CHECKING:
    from ans.model.inference import Segmentation
    from ans.model.segmenter import Segmenter

Paint = Callable[[Image.Image, Sequence[np.ndarray], Sequence[str]], Image.Image]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only a video has."""
    group = parser.add_argument_group("videos", "where IMAGE is a video (.mp4, .mov, .mkv, .webm, .avi) or a folder of frames")
    group.add_argument(
        "--propagation", help="original_decoder, official, none or images (default: the first that the model can do)"
    )
    group.add_argument("--choice", help="which frames are read: first or uniform (default: first with official, else uniform)")
    group.add_argument("--frames-read", type=int, default=5, help="how many of them (default: %(default)s)")
    group.add_argument("--original-decoder", type=Path, help="the mask decoder before fine-tuning, e.g. sam2_hiera_large.pt")


def check(output: Path, found: Path | None) -> None:
    """Raise `ValueError` where the names of the results do not determine what to write."""
    if output.suffix.lower() != ".mp4":
        raise ValueError(f"{output}: the result of a video is one; name it .mp4")
    if found is not None and found.suffix and found.suffix.lower() != ".json":
        raise ValueError(f"--masks {found}: name a .json, for run lengths, or a folder, for a palette PNG per frame")


def segment(segmenter: "Segmenter", chosen: argparse.Namespace, paint: Paint) -> None:
    """Write the video with its masks, and the masks by themselves where they are asked for; print a line per expression."""
    video = open_video(chosen.image)
    if chosen.original_decoder is not None:
        segmenter.load_original_decoder(chosen.original_decoder)
    stream = segmenter.segment_video(
        video,
        chosen.expressions,
        choice=chosen.choice,
        propagation=chosen.propagation,
        frames_read=chosen.frames_read,
        max_new_tokens=chosen.max_new_tokens,
    )
    results = [Result(expression) for expression in chosen.expressions]
    listed = chosen.masks is not None and chosen.masks.suffix != ""
    with replacing(chosen.output) as temporary, VideoWriter(temporary) as writer:
        for number, answers in enumerate(stream):
            writer.add(paint(video[number], [answer.mask for answer in answers], chosen.expressions), video.times[number])
            for result, answer in zip(results, answers, strict=True):
                result.add(answer, listed)
            if chosen.masks is not None and not listed:
                chosen.masks.mkdir(parents=True, exist_ok=True)
                palette([answer.mask for answer in answers]).save(chosen.masks / f"{_name(video, number)}.png")
    if listed:
        write_json(chosen.masks, {"frames": len(video), "expressions": [result.as_json() for result in results]})
    for result in results:
        print(result.line(len(video)))
    print(f"wrote {chosen.output}")


class Result:
    """What was found of one expression, frame after frame; of the masks, as run lengths, only if `listed`."""

    def __init__(self, expression: str) -> None:
        self.expression, self.answer, self.seg = expression, "", False
        self.seen, self.share = 0, 0.0
        self.rles: list[dict[str, Any]] = []

    def add(self, found: "Segmentation", listed: bool) -> None:
        mask = found.mask
        self.answer, self.seg = found.answer, len(found.masks) > 0
        self.seen += bool(mask.any())
        self.share += float(mask.mean())
        if listed:
            self.rles.append({"size": list(mask.shape), "counts": masks.from_array(mask)})

    def line(self, frames: int) -> str:
        found = f"in {self.seen} of {frames} frames, {self.share / frames:.1%} of the picture on average"
        return f"{self.expression}: {found if self.seg else 'no mask: the answer has no [SEG]'} ({self.answer})"

    def as_json(self) -> dict[str, Any]:
        """Return the masks. `masks`: the run lengths of each frame, as pycocotools decodes them."""
        return {"expression": self.expression, "answer": self.answer, "masks": self.rles}


def palette(found: Sequence[np.ndarray]) -> Image.Image:
    """Return masks (h, w) of one frame as one picture: the number of the expression, from 1; where two overlap, that of the first; else
    0."""
    values = np.zeros(found[0].shape, np.uint8)
    for number in range(len(found), 0, -1):
        values[found[number - 1]] = number
    picture = Image.fromarray(values, "P")
    picture.putpalette([0, 0, 0, *(part for number in range(255) for part in COLOURS[number % len(COLOURS)])])
    return picture


def _name(video: Video, number: int) -> str:
    return Path(video.names[number]).stem if isinstance(video, FrameFolder) else f"{number:05d}"
