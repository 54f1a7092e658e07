"""Answers about videos: the language model reads a few frames, a mask decoder with a memory carries each mask through all of them.

Frames come one by one and go when their masks are out, so that a video of any length takes the same memory. What all expressions about a
video share is computed once: the chosen frames' features, the language model's keys and values up to the last frame's end, and the mask
decoder's features of every frame.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ans.model import prompts
from ans.model.decoder import Levels, Propagation
from ans.model.family import Inputs, Visual
from ans.model.generate import pad_left, prefill
from ans.model.inference import Query, Read, Segmentation, SegmenterInference
from ans.model.preprocess import ImageLike, as_image

Choice = Literal["first", "uniform"]
"""Which frames the language model reads: the first ones, or some at equal distances from the first to the last."""

Alone = Literal["none", "images"]
"""Ways through a video without a memory: every frame is prompted by the one answer about the chosen frames, or is read and answered by
itself as an image."""

FRAMES_READ = 5
"""How many, by default: those of the official inference and of the published evaluation of Sa2VA-i."""
OBJECTS_AT_ONCE = 16
"""Objects that share a batch of the mask decoder, whose memory is up to (frames read + 6) x 4096 tokens each."""


@dataclass(frozen=True)
class ReadVideo:
    """A video that was read. `chosen`: numbers of the frames that the language model saw, `levels`: the mask decoder's features of
    each, `read`: what the language model keeps of all of them, as of one image. `size`: (height, width) of every frame."""

    frames: Sequence[ImageLike]
    chosen: list[int]
    levels: list[Levels]
    read: Read
    size: tuple[int, int]


def choose_frames(count: int, choice: Choice, most: int) -> list[int]:
    """Return numbers, ascending, of the frames that are read of a video of `count` frames: at most `most`, fewer where it is shorter.

    `first` is the official inference's choice, `uniform` that of Sa2VA-i (`numpy.linspace`, truncated to integers).
    """
    if choice == "first":
        return list(range(min(most, count)))
    return sorted(set(np.linspace(0, count - 1, most).astype(int).tolist()))


class SegmenterVideo(SegmenterInference):
    """`frames` below are the frames of one video in their order: a list of images, an array (n, h, w, 3), or anything else with a length
    from which frame number i is taken by `[i]`; `ans.open_video` makes such of a file or a folder. No method has a gradient."""

    def segment_video(
        self,
        frames: Sequence[ImageLike],
        expressions: Sequence[str],
        *,
        choice: Choice | None = None,
        propagation: Propagation | Alone | None = None,
        frames_read: int = FRAMES_READ,
        max_new_tokens: int = 512,
    ) -> Iterator[list[Segmentation]]:
        """Segment every expression in every frame: an iterator over the frames that gives a `Segmentation` per expression.

        An answer holds for the whole video, and so do its `[SEG]`s: one object each. The chosen frames are read and answered at once,
        the others as the iterator goes on.

        `propagation`: `original_decoder` (Sa2VA-i), `official` (Sa2VA), `none`: every frame is prompted by itself, or `images`: every frame
        is an image of its own, to which nothing below applies. By default the first of these that the model can do. `choice`: by default
        as the propagation was published, `first` with `official`, else `uniform`. `frames_read`: how many frames are chosen at most.

        Raises `ValueError` for a family that reads no videos, a propagation that the mask decoder cannot do, and frames of different
        sizes (as the iterator comes to them).
        """
        able = (*self.sam.propagations, *get_args(Alone))
        propagation = propagation or able[0]
        if propagation not in able:
            raise ValueError(f"propagation: {self._why_not(propagation)}; this model can do {', '.join(able)}")
        choice = choice or ("first" if propagation == "official" else "uniform")
        if choice not in get_args(Choice):
            raise ValueError(f"choice: must be one of {', '.join(get_args(Choice))}, is {choice!r}")
        if frames_read < 1:
            raise ValueError(f"frames_read: must be at least 1, is {frames_read}")
        if not len(frames):
            raise ValueError("frames: there is none")
        if propagation == "images":
            return self._as_images(frames, expressions, max_new_tokens)
        video = self.read_video(frames, choose_frames(len(frames), choice, frames_read))
        asked = [Query(0, self.template.video_question(prompts.quoted(text))) for text in expressions]
        answers = self.answer(video.read, asked, max_new_tokens)
        states = torch.cat([answer.seg_states for answer in answers]) if answers else torch.empty(0, 0)
        counts = [len(answer.seg_states) for answer in answers]
        texts = [self._decode(answer.ids) for answer in answers]
        vectors = self._vectors(states)
        return self._segmentations(video, texts, counts, self.propagate(video, vectors, propagation))

    @torch.no_grad()
    def read_video(self, frames: Sequence[ImageLike], chosen: Sequence[int]) -> ReadVideo:
        """Read the frames of these numbers, one tile each. Raises `ValueError` for a family that reads no videos, or for frames of
        different sizes."""
        if not self.config.family.videos:
            raise ValueError(f"segment_video: {self.config.family.name} reads one image in a question, not the frames of a video")
        features = self.encode_images([frames[number] for number in chosen], max_tiles=1)
        size = features.sizes[0]
        for number, other in zip(chosen, features.sizes, strict=True):
            _same_size(number, other, chosen[0], size)
        visual = self.image_tokens(features)
        levels = [tuple(level[i : i + 1] for level in features.levels) for i in range(len(chosen))]
        read = Read(visual, (), features.sizes, prefill(self.vlm, self._beginning(visual)))
        return ReadVideo(frames, list(chosen), levels, read, size)

    @torch.no_grad()
    def propagate(self, video: ReadVideo, vectors: Tensor, propagation: Propagation | Literal["none"]) -> Iterator[Tensor]:
        """Yield logits (N, S/4, S/4) of the objects that `vectors` (N, W) name, for each frame of the video in its order."""
        chosen = dict(zip(video.chosen, video.levels, strict=True))
        parts = vectors.split(OBJECTS_AT_ONCE)
        if propagation == "none":
            for number in range(len(video.frames)):
                levels = chosen.get(number) or self._levels(video, number)
                yield torch.cat([self._prompted(levels, part) for part in parts])
            return
        trackers = [self.sam.tracker(propagation) for _ in parts]
        prompted = {
            number: torch.cat(
                [tracker.prompt(number, levels, part, video.size) for tracker, part in zip(trackers, parts, strict=True)]
            )
            for number, levels in chosen.items()
        }
        for number in range(len(video.frames)):
            if number in prompted:
                yield prompted[number]
            else:
                levels = self._levels(video, number)
                yield torch.cat([tracker.follow(number, levels) for tracker in trackers])

    # ------------------------------------------------------------------------------------------------------------ inside

    def _as_images(
        self, frames: Sequence[ImageLike], expressions: Sequence[str], max_new_tokens: int
    ) -> Iterator[list[Segmentation]]:
        first: tuple[int, int] | None = None
        for number in range(len(frames)):
            image = as_image(frames[number])
            size = image.height, image.width
            first = first or size
            _same_size(number, size, 0, first)
            yield self.segment([image], [list(expressions)], max_new_tokens=max_new_tokens)[0]

    def _segmentations(
        self, video: ReadVideo, texts: Sequence[str], counts: Sequence[int], logits: Iterator[Tensor]
    ) -> Iterator[list[Segmentation]]:
        if not sum(counts):  # no frame has to be seen for that
            nothing = np.zeros((0, *video.size), bool)
            yield from (
                [Segmentation(text, nothing, torch.zeros(0, *video.size)) for text in texts] for _ in range(len(video.frames))
            )
            return
        for low_res in logits:
            upscaled = self.upscale(low_res, video.size)
            masks = np.split((upscaled > 0).cpu().numpy(), np.cumsum(counts)[:-1])
            yield [Segmentation(*one) for one in zip(texts, masks, upscaled.split(counts), strict=True)]

    @torch.no_grad()
    def _vectors(self, states: Tensor) -> Tensor:
        return self.seg_embed(states) if len(states) else states

    @torch.no_grad()
    def _prompted(self, levels: Levels, vectors: Tensor) -> Tensor:
        index = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
        return self.sam.decode(self.sam.project(levels), index, vectors).low_res

    @torch.no_grad()
    def _levels(self, video: ReadVideo, number: int) -> Levels:
        """Return the mask decoder's features of one frame that was not chosen."""
        image = as_image(video.frames[number])
        _same_size(number, (image.height, image.width), video.chosen[0], video.size)
        return self.sam.encode(self.config.decoder.pixels(image)[None].to(self.device, self.sam.dtype))

    def _beginning(self, visual: Sequence[Visual]) -> Inputs:
        """Return the prompt up to the last frame's end: frame after frame, without number or time."""
        ids = prompts.encode_prompt(self.tokenizer, self.template, self.template.image_string(1) * len(visual))
        last = max(place for place, token in enumerate(ids) if token == self.image_last)
        whole: list[int] = []
        grids = iter(one.grid for one in visual)
        for token in ids[: last + 1]:
            whole += [token] * next(grids).tokens if token == self.image_token else [token]
        padded, mask = pad_left([whole])
        positions = self.vlm.positions(padded, mask, [one.grid for one in visual])
        visual_rows = [[level.flatten(0, 1) for level in one.levels] for one in visual]
        return self.inputs(padded, mask, positions, visual_rows, padded=False)

    def _why_not(self, propagation: str) -> str:
        title = self.config.decoder.name
        if propagation not in get_args(Propagation):
            return f"there is no {propagation!r}"
        if not self.sam.propagations:
            return f"{title} has no memory of other frames that is supported"
        return f"the model has no {title} decoder as it was before fine-tuning (see `load_original_decoder`)"


def _same_size(number: int, size: tuple[int, int], first: int, expected: tuple[int, int]) -> None:
    if size != expected:
        raise ValueError(
            f"frames: number {number} is {size[1]} x {size[0]} pixels, number {first} is {expected[1]} x {expected[0]}; the frames of a "
            "video have one size"
        )
