"""Supervised referring segmentation in videos (Sa2VA's recipe): a few frames and expressions -> masks in these frames.

The language model reads the frames and answers each expression by one `[SEG]`, whose vector prompts the mask decoder in every one of them.
With further frames, `followed`, SAM2's memory carries the masks to those, as in the official inference; group `memory` trains it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ans.config.fields import Count, Name, Number
from ans.config.schema import LearntVideos, VideoFolder
from ans.config.tasks import TaskSettings
from ans.data.clips import Clip, ClipExpression, checksum, draw_frames, draw_run, open_frames
from ans.data.mixing import Pool
from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.model.video import choose_frames
from ans.objectives.batches import Images, ImagesOf, Targets, labels_of, pad_right
from ans.objectives.losses import mask_terms, seg_rate
from ans.tasks import base
from ans.tasks.base import Losses, Now, Setting

KEPT_AS_WRITTEN = ("ref_sav",)
"""Readers of sets whose texts are whole descriptions: they keep their capitals and full stops."""


class Settings(TaskSettings):
    """Expressions and their masks in several frames of a video."""

    enabled: bool = Field(False, description="true: train this task")
    sources: dict[Name, LearntVideos] = Field(
        {}, description="sets of videos, by a name: {mevis: {reader: mevis, folder: mevis, split: train, repeats: 4}}"
    )
    frames: Count = Field(5, description="frames of a clip in one sample that the language model reads and [SEG] prompts")
    followed: Number = Field(0, description="further frames of it, to which the memory carries the masks; 0: no memory")
    expressions: Count = Field(5, description="expressions of a clip in one sample, one after the other in one conversation")

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if self.enabled and not any(of.repeats for of in self.sources.values()):
            raise ValueError("sources: names no set of videos; name one, or set train.clips.enabled=false")
        return self

    def indexes(self) -> tuple[str, ...]:
        return ()

    @property
    def follows(self) -> bool:
        return self.followed > 0

    def clips(self) -> Mapping[str, VideoFolder]:
        return self.sources


@dataclass(frozen=True)
class Batch:
    """A conversation about each of R clips. `ids`, `labels`, `mask`: (R, L), padded on the right. `frames`: of each clip the images of its
    frames in order, where a frame that was drawn twice is one image; of these the ones at `read`, the same places in every clip, are in
    the conversation. `targets`: clip by clip, expression by expression, frame by frame."""

    images: Images
    ids: Tensor
    labels: Tensor
    mask: Tensor
    frames: list[list[int]]
    read: list[int]
    targets: Targets

    @property
    def shown(self) -> list[list[int]]:
        """Of each clip the images that the conversation shows."""
        return [[frames[place] for place in self.read] for frames in self.frames]

    @property
    def counts(self) -> dict[str, int]:
        masks = len(self.targets.soft)
        return {"masks": masks, "objects": masks // len(self.frames[0]), "tokens": labels_of(self.labels)}


class Task(base.Task[Settings, Batch]):
    role = "primary"
    stream = 5
    counted = ("masks", "objects", "tokens")
    title, prefix = "clips", "clips"

    def __init__(self, settings: Settings, setting: Setting) -> None:
        super().__init__(settings, setting)
        if not setting.model.family.videos:
            name = setting.model.family.name
            raise ValueError(f"train.clips: {name} reads one image in a question; set train.clips.enabled=false")
        if settings.followed and not setting.model.decoder.follows:
            raise ValueError(f"train.clips.followed: {setting.model.decoder.name} has no memory that is supported; set it to 0")
        self.clips: list[list[Clip]] = []
        for name, of in settings.sources.items():
            found, held = setting.clips(f"train.clips.sources.{name}", of, lambda clip: bool(taught(clip)))
            self.left_out += held
            self.clips.append(found)
        self.readers = [of.reader for of in settings.sources.values()]
        counts, repeats = [len(clips) for clips in self.clips], [of.repeats for of in settings.sources.values()]
        self.bad = self.bad_images(sum(counts))
        self.pool = Pool(counts, repeats, setting.train.seed, self.stream, f"train.clips.sources: {', '.join(settings.sources)}")

    def __len__(self) -> int:
        return len(self.pool)

    def sizes(self) -> dict[str, int]:
        return {f"{name} (clips)": len(clips) for name, clips in zip(self.settings.sources, self.clips, strict=True)}

    def checksums(self) -> dict[str, str]:
        return {f"{name} (clips)": checksum(clips) for name, clips in zip(self.settings.sources, self.clips, strict=True)}

    def batch(self, positions: range) -> Batch:
        setting = self.setting
        images, targets = ImagesOf(setting.root, setting.model, max_tiles=1), setting.targets()
        settings = self.settings
        read = choose_frames(settings.frames + settings.followed, "uniform", settings.frames)
        encoded, drawn = [], []
        for position in positions:
            rng = self.rng(position)
            clip, numbers, lower, frames = self.bad.instead(
                self.pool, position, lambda source, sample, rng=rng: self._open(source, sample, rng, images)
            )
            known = taught(clip)
            picked = [known[i] for i in rng.integers(len(known), size=settings.expressions)]
            for one in picked:
                for number in numbers:
                    targets.add_mask(clip.target(one, number), rng)
            asked = [question(setting.template, one.text, lower, rng) for one in picked]
            answers = [prompts.SEG_ANSWERS[rng.integers(len(prompts.SEG_ANSWERS))] for _ in picked]
            tokens = [images.pixels[frames[place]].grid.tokens for place in read]
            encoded.append(
                prompts.encode_conversation(
                    setting.tokenizer, setting.template, conversation(setting.template, tokens, asked, answers)
                )
            )
            drawn.append(frames)
        return Batch(images.pack(), *pad_right(encoded), drawn, read, targets.pack())

    def losses(self, model: Segmenter, features: Features, batch: Batch, counts: Mapping[str, int], now: Now) -> Losses:
        train = self.setting.train
        shown = batch.shown
        first = [frames[0] for frames in shown]
        out = model(features, Conversations(batch.ids, batch.labels, batch.mask, first, [None] * len(shown), frames=shown))
        objects = len(out.seg_embeds) // len(shown)
        if self.settings.followed:
            parts = zip(out.seg_embeds.split(objects), batch.frames, strict=True)
            logits = torch.cat([followed(model, features, vectors, frames, batch.read) for vectors, frames in parts])
        else:
            logits = model.masks_in(features, [frames for frames in shown for _ in range(objects)], out.seg_embeds).low_res
        loss, values = mask_terms(logits, batch.targets, train.loss, train.mask_points, counts["masks"])
        language = out.language_loss / counts["tokens"]
        values |= {"language": language.detach(), "seg_rate": seg_rate(model, out, counts["objects"])}
        return Losses(loss + train.loss.language * language, {f"{self.prefix}_{name}": value for name, value in values.items()})

    # ------------------------------------------------------------------------------------------------------------ inside

    def _open(
        self, source: int, sample: int, rng: np.random.Generator, images: ImagesOf
    ) -> tuple[Clip, list[int], bool, list[int]]:
        """Return the clip of a sample, the numbers of its frames that are drawn, whether its texts are lower-cased, and the images that the
        frames became. Raises `ValueError` or `FileNotFoundError` for a frame that cannot be used; then no image was added."""
        clip = self.clips[source][sample]
        draw = draw_run if self.settings.followed else draw_frames
        numbers = draw(len(clip.frames), self.settings.frames + self.settings.followed, rng)
        opened = open_frames(self.setting.root, clip, numbers)
        places = {number: len(images.pixels) + place for place, number in enumerate(opened)}
        for image in opened.values():
            images.add_image(image)
        return clip, numbers, self.readers[source] not in KEPT_AS_WRITTEN, [places[number] for number in numbers]


def taught(clip: Clip) -> list[ClipExpression]:
    """Return the expressions of a clip that are learnt: all whose masks are known. One of nothing is too: its masks are empty, as those
    of an object are where it is not seen."""
    return [one for one in clip.expressions if one.objects is not None]


def question(template: prompts.Template, text: str, lower: bool, rng: np.random.Generator) -> str:
    """Return what is asked about an expression: itself where it has a question mark, else one of the questions about images, or what the
    evaluation asks of videos, which the official training leaves out and a small model then does not answer. `lower`: in lower case,
    and without full stops."""
    if "?" in text:
        return prompts.quoted(text)
    said = text.replace(".", "").strip().lower() if lower else text
    wordings = (*template.questions, prompts.VIDEO_PROMPT)
    return wordings[rng.integers(len(wordings))].format(prompts.quoted(said))


def conversation(
    template: prompts.Template, frames: Sequence[int], questions: Sequence[str], answers: Sequence[str]
) -> list[prompts.Turn]:
    """Return a turn per question; before the first come the frames, with their numbers of image tokens, and one line break as in the
    evaluation."""
    shown = "".join(map(template.image_string, frames))
    return [
        prompts.Turn(asked if number else shown + asked, answer, separated=True)
        for number, (asked, answer) in enumerate(zip(questions, answers, strict=True))
    ]


def followed(model: Segmenter, features: Features, vectors: Tensor, frames: Sequence[int], prompted: Sequence[int]) -> Tensor:
    """Mask logits (N * frames, S/4, S/4), vector by vector, of the objects of one clip that `vectors` (N, W) name, in the images `frames`:
    those at the places `prompted` are prompted, and the memory carries the masks to the others, as in the official inference. A frame's
    number, for the memory, is its place."""
    tracker, size = model.sam.tracker("official"), features.sizes[frames[0]]
    levels = [tuple(level[image : image + 1] for level in features.levels) for image in frames]
    logits = {place: tracker.prompt(place, levels[place], vectors, size) for place in prompted}
    logits |= {place: tracker.follow(place, levels[place]) for place in range(len(frames)) if place not in logits}
    return torch.stack([logits[place] for place in range(len(frames))], dim=1).flatten(0, 1)
