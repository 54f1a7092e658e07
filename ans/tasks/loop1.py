"""Loop 1: mask -> caption -> mask. The teacher describes an object, the student reads that caption again, and from what it reads
must come the object's mask. No text is given.

With the Gumbel bridge the gradient of the mask runs through the caption's tokens into the student's reading of the first image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from ans.config.fields import Count, Name, Positive, Section, Share, Weight
from ans.config.schema import LearntVideos, VideoFolder
from ans.config.tasks import TaskSettings
from ans.data.clips import Clip, checksum, draw_frames, open_frames
from ans.data.matching import region_mask
from ans.data.mixing import Pool
from ans.data.records import ImageRecord, Region
from ans.data.samples import Regions
from ans.data.views import VIEWS
from ans.facts import read_facts
from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Forward, Segmenter
from ans.model.visual_prompt import region_cells
from ans.objectives import captions
from ans.objectives.batches import Images, ImagesOf, Targets, draw_questions, pad_right
from ans.objectives.gumbel import straight_through
from ans.objectives.losses import hard_iou, mask_terms, seg_rate
from ans.shown import Panel
from ans.tasks import base
from ans.tasks.base import Degenerate, Example, Losses, Now, Setting, Wordings


class MaskSource(Section):
    """A source of masks without text."""

    repeats: Weight = Field(1.0, description="how many times each sample comes per epoch")
    max_samples: Count | None = Field(None, description="the first so many masks; none: all")


class Settings(TaskSettings):
    """Mask -> caption -> mask, on images without text."""

    sources: dict[Name, MaskSource] = Field(
        {"sav": MaskSource(), "sa1b_subset": MaskSource(), "openimages": MaskSource()},
        description="indexes whose masks are used, with repeats and max_samples of each",
    )
    bridge: Literal["gumbel", "detached", "hard", "discrete", "given"] = Field(
        "gumbel",
        description="caption that the student segments by: gumbel (its own, with a gradient), detached (the same without), "
        "hard (the teacher's), discrete (its own, greedy), given (the data's own, for studies)",
    )
    rescored: Literal["all", "corrupted"] = Field(
        "corrupted", description="caption tokens that the student predicts again: corrupted, or all (the original method)"
    )
    tau: Positive = Field(0.7, description="temperature of the Gumbel softmax at the first step")
    tau_end: Positive = Field(0.7, description="temperature at the last step")
    top_k: Count = Field(512, description="most probable tokens among which the student chooses")
    mask_ratio: Share = Field(0.25, description="share of the caption's tokens that are corrupted")
    noise: Weight = Field(
        1.0, description="scale of the Gumbel noise; 1: tokens are sampled, 0: the most probable ones are taken"
    )
    description_prompts: Wordings = 1
    denoising: Weight = Field(0.5, description="weight of the language loss at corrupted tokens (the original method: 0)")
    views: Annotated[int, Field(ge=1, le=len(VIEWS))] = Field(
        1, description="views of the image whose word probabilities the teacher averages; 1: the image alone"
    )
    imitation: Weight = Field(
        0.0, description="weight of the language loss by which the student learns to say the teacher's captions"
    )
    agreement: Share = Field(
        0.0,
        description="imitation: least confidence of a caption that is learnt (mean probability of a token, over the views too)",
    )
    confidence: bool = Field(False, description="true: weight each mask loss by the teacher's confidence in its caption")
    distillation: Weight = Field(0.0, description="weight of the distance to the mask that the teacher predicts")
    reward: Weight = Field(0.0, description="weight of the self-critical reward of captions")
    reward_by: Literal["iou", "cider"] = Field(
        "iou", description="reward: iou (of the mask predicted from the caption) or cider (similarity to the teacher's caption)"
    )
    objects_per_image: Count = Field(1, description="most objects of an image in one sample")
    videos: dict[Name, LearntVideos] = Field(
        {}, description="sets of videos too, as train.clips.sources: an object is described in one frame and segmented in others"
    )
    frames: Count = Field(4, description="frames of a video in which its object is segmented")

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if not self.sources and not self.videos:
            raise ValueError("sources: names no source; to turn the task off set train.loop1.enabled=false")
        if self.videos and self.bridge == "given":
            raise ValueError("videos: have no captions, which bridge=given needs")
        if not any(of.repeats for of in (*self.sources.values(), *self.videos.values())):
            raise ValueError("sources: repeats is 0 for each of them, so nothing would be learnt")
        if self.denoising and not self.mask_ratio:
            raise ValueError("denoising: needs corrupted tokens, so set train.loop1.mask_ratio above 0")
        if self.agreement and not self.imitation:
            raise ValueError("agreement: says which captions are learnt, so set train.loop1.imitation above 0")
        if self.reward and self.bridge != "gumbel":
            raise ValueError("reward: needs train.loop1.bridge=gumbel")
        return self

    def indexes(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def clips(self) -> Mapping[str, VideoFolder]:
        return self.videos

    def tau_at(self, step: int, steps: int) -> float:
        """Return the Gumbel temperature of a step, on a line from `tau` to `tau_end`."""
        return self.tau + (self.tau_end - self.tau) * step / max(1, steps - 1)


@dataclass(frozen=True)
class Batch:
    """R objects without text, each on one image to describe and one to segment (two frames of a video, or the same image), or with
    `frames` on all images `frames[n]` to segment, the first of which is that of `segment_index`. `targets`: object by object, image by
    image.

    `describe_index`, `segment_index` (R,): their images. `cells`, (rows, columns) each: grid cells of the objects on the former.
    `questions` hold `{}` for the expression. `corruption` (R, T, 2) in [0, 1): where and by what the caption is corrupted. `noise`
    (R, T, k): Gumbel noise. `answer_tokens`: labels of the answers. `where`: locator of the segmented image, and source, of each
    object. `known`: locator of the described image, and true caption, of each object whose truth is known, else None. `given`: the
    data's own text of each object, with the bridge of that name. `views`: image and cells of each object's further views, one object
    behind the other.
    """

    images: Images
    describe_index: list[int]
    segment_index: list[int]
    cells: list[Tensor]
    describe_questions: list[str]
    questions: list[str]
    answers: list[str]
    answer_tokens: int
    corruption: Tensor
    noise: Tensor
    targets: Targets
    where: list[tuple[str, str]]
    known: list[tuple[str, str] | None]
    given: list[str]
    views: list[tuple[int, Tensor]]
    frames: list[list[int]] | None = None

    @property
    def counts(self) -> dict[str, int]:
        known = sum(truth is not None for truth in self.known)
        return {
            "objects": len(self.describe_index),
            "masks": len(self.targets.soft),
            "tokens": self.answer_tokens,
            "known": known,
        }

    @property
    def shown(self) -> list[list[int]]:
        """Of each object the images in which it is segmented."""
        return [[place] for place in self.segment_index] if self.frames is None else self.frames


@dataclass(frozen=True)
class Caption:
    """Captions as the segmentation prompt takes them. `ids`: per object (n,) tokens; `embeds`: what is read in their place, all in one
    (N, D), or None for the table's own, and then `chosen` (N,) are its tokens, which only the device knows yet. `extra`: further loss,
    `values`: for the curves. For a reward: `greedy` (N,), what would have been said without noise, and the log-probability (R,) of what
    was."""

    ids: list[list[int]]
    embeds: Tensor | None
    extra: Tensor | float
    values: dict[str, Tensor]
    chosen: Tensor | None = None
    greedy: Tensor | None = None
    log_probability: Tensor | None = None

    def words(self, tokens: Tensor | None) -> list[list[int]]:
        """Return the tokens (N,) of each caption, fetched from the device; None: those of `ids`."""
        lengths = [len(ids) for ids in self.ids]
        return self.ids if tokens is None else [part.tolist() for part in tokens.cpu().split(lengths)]


def masklets(clip: Clip) -> list[str]:
    """Return the objects of a clip that are seen."""
    return [key for key, rows in clip.masks.items() if any(rows)]


@dataclass(frozen=True)
class Masklet:
    """An object of a clip, `key`, to be described in frame `at`, which is `described`, and segmented in the frames `numbers`, ascending.
    `opened`: these, each once, in the order of their numbers `order`."""

    source: int
    clip: Clip
    key: str
    at: int
    described: Image.Image
    numbers: list[int]
    order: list[int]
    opened: list[Image.Image]

    @classmethod
    def draw(cls, source: int, clip: Clip, key: str, frames: int, rng: np.random.Generator, root: Path) -> Self:
        """Draw the frames: one in which the object is seen, and others, unless there is but one. Raises as `open_frames`."""
        seen = [number for number, counts in enumerate(clip.masks[key]) if counts]
        at = seen[rng.integers(len(seen))]
        others = [number for number in range(len(clip.frames)) if number != at] or [at]
        numbers = [others[place] for place in draw_frames(len(others), frames, rng)]
        opened = open_frames(root, clip, [at, *numbers])
        order = list(dict.fromkeys(numbers))
        return cls(source, clip, key, at, opened[at], numbers, order, [opened[number] for number in order])


class Task(base.Task[Settings, Batch]):
    role = "primary"
    stream = 1
    counted = ("objects", "masks", "tokens", "known")
    title, prefix = "loop 1", "loop1"
    teacher = True
    examples = (
        "An object without text, the teacher's caption of it, the caption that the student segments by (words that differ are "
        "marked), and the mask that it predicts in the second view."
    )
    panels = (
        Panel("caption loss", {"loop1_denoising": "loop 1, denoising", "loop1_imitation": "loop 1, imitation"}),
        Panel(
            "the teacher's captions: share that",
            {"loop1_teacher_ended": "end", "loop1_teacher_different": "differ", "loop1_teacher_empty": "are empty"},
            share=True,
        ),
        Panel(
            "the teacher's captions: are they true?",
            {"loop1_teacher_facts": "facts right", "loop1_teacher_other": "fit another object better"},
            share=True,
        ),
        Panel("the teacher's captions: confidence", {"loop1_teacher_confidence": "mean probability of a token"}, share=True),
        Panel("the teacher's captions: tokens", {"loop1_teacher_length": "length"}),
        Panel(
            "the student's reading",
            {"loop1_changed_tokens": "tokens changed", "loop1_kept_mass": "probability kept by the top-k"},
            share=True,
        ),
        Panel("gradient norm", {"loop1_caption_gradient": "at loop 1's caption"}, log=True),
    )

    def __init__(self, settings: Settings, setting: Setting) -> None:
        super().__init__(settings, setting)
        setting.model.ask_for_regions("train.loop1", "; else set train.loop1.enabled=false")
        self.sources = [
            Regions(name, setting.open_index(name), setting.evaluated, of.max_samples, described=settings.bridge == "given")
            for name, of in settings.sources.items()
        ]
        self.left_out = sum(of.left_out for of in self.sources)
        self.masklets: list[list[tuple[Clip, str]]] = []
        clips = 0
        if settings.videos and not setting.model.family.videos:
            raise ValueError(f"train.loop1.videos: {setting.model.family.name} reads one image in a question; name no videos")
        for key, of in settings.videos.items():
            found, left_out = setting.clips(f"train.loop1.videos.{key}", of, lambda clip: bool(masklets(clip)))
            self.left_out, clips = self.left_out + left_out, clips + len(found)
            self.masklets.append([(clip, key) for clip in found for key in masklets(clip)])
        counts = [*(of.count for of in self.sources), *map(len, self.masklets)]
        repeats = [of.repeats for of in (*settings.sources.values(), *settings.videos.values())]
        name = f"train.loop1.sources: {', '.join([*settings.sources, *settings.videos])}"
        self.bad = self.bad_images(sum(len(of.index) for of in self.sources) + clips)
        self.pool = Pool(counts, repeats, setting.train.seed, self.stream, name)
        self.facts = read_facts(setting.root)

    def __len__(self) -> int:
        return len(self.pool)

    def sizes(self) -> dict[str, int]:
        videos = {f"{name} (masklets)": len(of) for name, of in zip(self.settings.videos, self.masklets, strict=True)}
        return {source.name: source.count for source in self.sources} | videos

    def checksums(self) -> dict[str, str]:
        clips = [list({clip.name: clip for clip, _ in of}.values()) for of in self.masklets]
        return {f"{name} (masklets)": checksum(of) for name, of in zip(self.settings.videos, clips, strict=True)}

    # ------------------------------------------------------------------------------------------------------------- samples

    def batch(self, positions: range) -> Batch:
        train, settings, setting = self.setting.train, self.settings, self.setting
        model = setting.model
        images, targets = ImagesOf(setting.root, model, max_tiles=1), setting.targets()
        described: dict[int, Image.Image] = {}  # of images that are not segmented
        further: list[tuple[int, Image.Image]] = []  # views, as places and images
        seen: list[list[Tensor]] = []  # of each object, its cells in them
        views = VIEWS[1 : settings.views]
        frames: list[list[int]] = []
        cells, questions, corruption, noise, where, known, given = [], [], [], [], [], [], []

        def add(path: str, mask: np.ndarray, shown: list[int], segmented: tuple[str, str], rng: np.random.Generator) -> None:
            grid = model.family.grid(*mask.shape, max_tiles=1).region
            frames.append(shown)
            cells.append(region_cells(torch.from_numpy(mask)[None], grid)[0])
            seen.append([region_cells(torch.from_numpy(view.mask(mask))[None], grid)[0] for view in views])
            truth = self.facts.true_caption(path, mask) if self.facts else None
            known.append((path, truth) if truth else None)
            questions.append(draw_questions(rng, settings.description_prompts))
            corruption.append(rng.random((train.caption_len, 2), dtype=np.float32))
            noise.append(rng.gumbel(size=(train.caption_len, settings.top_k)).astype(np.float32))
            where.append(segmented)

        for position in positions:
            place, rng = len(images.pixels), self.rng(position)
            opened = self.bad.instead(self.pool, position, lambda of, i, rng=rng: self._open(of, i, rng, images))
            if isinstance(opened, Masklet):
                clip, source = opened.clip, [*settings.videos][opened.source]
                described[place] = opened.described
                further += [(place, view.image(opened.described)) for view in views]
                for number in opened.numbers:
                    targets.add_mask(clip.mask(opened.key, number), rng)
                shown = [place + opened.order.index(number) for number in opened.numbers]
                path, mask = clip.frames[opened.at], clip.mask(opened.key, opened.at)
                add(path, mask, shown, (clip.frames[opened.numbers[0]], source), rng)
                continue
            source, record, region, image = opened
            two_views = _two_frames(record, region)
            if two_views:
                described[place] = image
            further += [(place, view.image(image)) for view in views]
            others = [o for o in source.usable(record) if o != region and bool(o.second_counts) == two_views]
            picked = [others[i] for i in rng.permutation(len(others))[: settings.objects_per_image - 1]]
            for one in [region, *picked]:
                if settings.bridge == "given":
                    given.append(one.expressions[0].sent)
                targets.add(record, one, rng, second=two_views)
                segmented = record.second if two_views else record.path
                add(record.path, region_mask(record, one), [place], (segmented, source.name), rng)
        # frames that are only described come behind those that are segmented
        behind = {place: images.add_described(image) for place, image in described.items()}
        segment = [shown[0] for shown in frames]
        index = [behind.get(place, place) for place in segment]
        numbers: dict[int, list[int]] = {}
        for place, image in further:
            numbers.setdefault(place, []).append(images.add_described(image))
        of_views = [
            pair
            for place, cells_of in zip(segment, seen, strict=True)
            if views
            for pair in zip(numbers[place], cells_of, strict=True)
        ]
        to_describe, to_segment, answers = (list(column) for column in zip(*questions, strict=True))
        return Batch(
            images.pack(), index, segment, cells, to_describe, to_segment, answers,
            setting.answer_tokens(answers), torch.from_numpy(np.stack(corruption)), torch.from_numpy(np.stack(noise)),
            targets.pack(), where, known, given, of_views, frames if settings.videos else None,
        )  # fmt: skip

    def _open(
        self, number: int, sample: int, rng: np.random.Generator, images: ImagesOf
    ) -> "tuple[Regions, ImageRecord, Region, Image.Image] | Masklet":
        """Return a sample's source, record, region, and the image that is described; the one that is segmented is added. Of a video its
        frames are added."""
        if number >= len(self.sources):
            source = number - len(self.sources)
            found = Masklet.draw(source, *self.masklets[source][sample], self.settings.frames, rng, self.setting.root)
            for image in found.opened:
                images.add_image(image)
            return found
        source = self.sources[number]
        record, region = source.sample(sample)
        image = images.opened(record)
        if _two_frames(record, region):
            images.add(record, second=True)
        else:
            images.add_image(image)
        return source, record, region, image

    # ---------------------------------------------------------------------------------------------------------------- loss

    def losses(self, model: Segmenter, features: Features, batch: Batch, counts: Mapping[str, int], now: Now) -> Losses:
        settings, train, objects, masks = self.settings, self.setting.train, counts["objects"], counts["masks"]
        with now.teacher():
            teacher, ended, confidence = describe(model, features, batch, batch.views)
            reference = None
            if settings.distillation or (settings.reward and settings.reward_by == "iou"):
                _, reference = segment(model, features, batch, teacher, None)
        student = self.bridge(model, features, batch, teacher, settings.tau_at(now.step, now.steps), objects)
        out, logits = segment(model, features, batch, student.ids, student.embeds)
        weights = torch.tensor(confidence, device=logits.device)
        loss, values = mask_terms(
            logits,
            batch.targets,
            train.loss,
            train.mask_points,
            masks,
            _of_masks(batch, weights) if settings.confidence else None,
        )
        language = out.language_loss / counts["tokens"]
        loss = loss + train.loss.language * language + student.extra
        if settings.imitation:
            imitation, values["learnt_captions"] = self.imitate(model, features, batch, teacher, confidence, objects)
            loss, values["imitation"] = loss + settings.imitation * imitation, imitation.detach()
        if settings.distillation:
            assert reference is not None
            distance = F.binary_cross_entropy_with_logits(logits.float(), reference.float().sigmoid(), reduction="none")
            distance = distance.flatten(1).mean(1).sum() / masks
            loss, values["distillation"] = loss + settings.distillation * distance, distance.detach()
        # self-critical (arXiv 1612.00563); the baseline is by iou the teacher's mask of its own caption, by cider the greedy caption
        if settings.reward:
            assert student.greedy is not None and student.log_probability is not None, "settings want the gumbel bridge"
            if settings.reward_by == "iou":
                assert reference is not None
                soft = batch.targets.soft.to(logits.device)
                advantage = hard_iou(logits, soft) - hard_iou(reference, soft)
                if batch.frames is not None:
                    advantage = torch.stack([part.mean() for part in advantage.split([len(of) for of in batch.frames])])
            else:
                words, greedy = student.words(student.chosen), student.words(student.greedy)
                tokenizer = model.tokenizer
                advantage = captions.cider(tokenizer, words, teacher) - captions.cider(tokenizer, greedy, teacher)
                advantage = advantage.to(logits.device)
            reward = (advantage * student.log_probability).sum() / objects
            loss, values["advantage"] = loss - settings.reward * reward, advantage.sum() / objects
        values |= student.values | {"language": language.detach(), "seg_rate": seg_rate(model, out, objects)}
        values["teacher_confidence"] = weights.sum() / objects
        for name, value in captions.statistics(teacher, ended, objects).items():
            values[f"teacher_{name}"] = torch.tensor(value, device=logits.device)
        if counts["known"]:
            values |= self._truth(model, batch, teacher, counts["known"], logits.device)
        example = None
        if now.examples:
            texts = {"teacher": teacher, "student": student.words(student.chosen)}
            decoded = {name: [str(model.tokenizer.decode(ids)) for ids in said] for name, said in texts.items()}
            first = torch.tensor([0, *map(len, batch.shown[:-1])]).cumsum(0)
            example = Example(batch.where, decoded, logits.detach()[first.to(logits.device)], batch.targets.soft[first])
        return Losses(loss, {f"loop1_{name}": value for name, value in values.items()}, example)

    def bridge(
        self, model: Segmenter, features: Features, batch: Batch, teacher: list[list[int]], tau: float, objects: int
    ) -> Caption:
        """Return what of the teacher's caption reaches the segmentation prompt. The denoising loss belongs to all bridges."""
        bridge, caption = self.settings.bridge, Caption(teacher, None, 0.0, {})
        if self.settings.denoising or bridge in ("gumbel", "detached"):
            caption = self.reread(model, features, batch, teacher, tau, objects)
        if bridge == "gumbel":
            return caption
        if bridge == "detached":
            assert caption.chosen is not None
            return replace(caption, embeds=F.embedding(caption.chosen, _table(model)))
        values = {name: value for name, value in caption.values.items() if name == "denoising"}  # nothing else was passed on
        if bridge == "given":
            teacher = [model.tokenizer.encode(text, add_special_tokens=False) for text in batch.given]
        if bridge == "discrete":
            with model.evaluating():
                teacher = describe(model, features, batch, [])[0]
        return Caption(teacher, None, caption.extra, values)

    def reread(
        self, model: Segmenter, features: Features, batch: Batch, teacher: list[list[int]], tau: float, objects: int
    ) -> Caption:
        """Let the student read image, region and the corrupted caption; its own choice at every position becomes the expression."""
        settings = self.settings
        corrupted_ids = [
            captions.corrupt(ids, settings.mask_ratio, uniform, model.text_tokens)
            for ids, uniform in zip(teacher, batch.corruption, strict=True)
        ]
        # predicted at each position of the corrupted caption: the teacher's token
        out = say(model, features, batch, corrupted_ids, teacher)
        logits = out.logits.index_fill(1, _no_text(model, out.logits), float("-inf"))  # an expression has no special tokens
        # all objects' positions side by side, as the logits are; the noise was drawn with the sample, so that a resumed run has the same
        noise = torch.cat([row[: len(ids)] for row, ids in zip(batch.noise, teacher, strict=True)]).to(model.device)
        noise = settings.noise * noise[:, : logits.shape[-1]]
        table = _table(model)
        embeds, chosen, kept = straight_through(logits, table, noise, tau)
        lengths = [len(ids) for ids in teacher]
        # a token that was replaced by itself was not corrupted
        different = [a != b for one, two in zip(corrupted_ids, teacher, strict=True) for a, b in zip(one, two, strict=True)]
        places = torch.tensor(different, dtype=torch.bool)
        corrupted = places.to(model.device)
        if settings.rescored == "corrupted":
            embeds = torch.where(corrupted[:, None], embeds, F.embedding(out.labels, table))
            chosen = torch.where(corrupted, chosen, out.labels)
        # filled in by the backward pass: how much of the mask's loss reaches the caption
        gradient = embeds.new_zeros(())
        if embeds.requires_grad:
            embeds.register_hook(partial(_add_square, gradient))
        values = {
            "kept_mass": captions.mean_per_object(kept, lengths, objects),
            "changed_tokens": captions.mean_per_object((chosen != out.labels).float(), lengths, objects),
            "caption_gradient2": gradient,
        }
        extra: Tensor | float = 0.0
        if settings.denoising:
            denoising = captions.cross_entropy(out.logits, out.labels, places, lengths, objects)
            extra, values["denoising"] = settings.denoising * denoising, denoising.detach()
        if not settings.reward:
            return Caption(teacher, embeds, extra, values, chosen)
        free = corrupted if settings.rescored == "corrupted" else torch.ones_like(corrupted)  # the other tokens are no choice
        log_probability = captions.log_probability(logits, chosen, free, lengths)
        greedy = torch.where(free, logits.argmax(-1), out.labels)
        return Caption(teacher, embeds, extra, values, chosen, greedy, log_probability)

    def imitate(
        self, model: Segmenter, features: Features, batch: Batch, teacher: list[list[int]], confidence: list[float], objects: int
    ) -> tuple[Tensor, Tensor]:
        """Let the student say the teacher's captions about the image as it is.

        Return the language loss, the mean over each caption's tokens and its end; and the share of captions that are learnt, those that
        are not empty and have enough confidence.
        """
        end = model.tokenizer.encode(model.template.suffix, add_special_tokens=False)
        said = [ids + end for ids in teacher]
        learnt = [bool(ids) and sure >= self.settings.agreement for ids, sure in zip(teacher, confidence, strict=True)]
        lengths = [len(ids) for ids in said]
        out = say(model, features, batch, said, said)
        counted = torch.tensor(learnt).repeat_interleave(torch.tensor(lengths))
        loss = captions.cross_entropy(out.logits, out.labels, counted, lengths, objects)
        return loss, torch.tensor(sum(learnt) / objects, device=loss.device)

    def _truth(
        self, model: Segmenter, batch: Batch, captions: list[list[int]], known: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Return the mean share of the facts that captions have right, and share of captions that fit another object better, over the
        objects whose truth is known."""
        right = other = 0.0
        for truth, ids in zip(batch.known, captions, strict=True):
            if truth is not None and self.facts:
                verdict = self.facts.judge(*truth, str(model.tokenizer.decode(ids)))
                right, other = right + verdict.right / verdict.facts, other + verdict.other
        return {
            name: torch.tensor(value / known, device=device)
            for name, value in (("teacher_facts", right), ("teacher_other", other))
        }

    def finish(self, values: dict[str, float]) -> dict[str, float]:
        if "loop1_caption_gradient2" in values:  # squares add up over micro-batches, norms do not
            values["loop1_caption_gradient"] = values.pop("loop1_caption_gradient2") ** 0.5
        return values

    def check(self, step: int, means: Mapping[str, float]) -> str | None:
        if means.get("loop1_teacher_empty", 0.0) > 0.9:
            raise Degenerate(
                f"step {step}: the teacher's captions of nearly all objects are empty, so loop 1 has no caption to work on. Can the "
                "base describe regions at all? If so, raise train.ema.decay or lower train.lr"
            )
        if means.get("loop1_teacher_different", 1.0) < 0.05:
            return f"step {step}: the teacher's captions of nearly all objects are the same; see the curves loop1_teacher_*"
        return None


def describe(
    model: Segmenter, features: Features, batch: Batch, views: list[tuple[int, Tensor]]
) -> tuple[list[list[int]], list[bool], list[float]]:
    """Return greedy captions of the objects, by the mean of their image and its further `views`: their tokens, whether they came to
    an end, and their confidence."""
    count, each = len(batch.cells), len(views) // len(batch.cells)
    rows = [row for n in range(count) for row in ((batch.describe_index[n], batch.cells[n]), *views[n * each : (n + 1) * each])]
    index, cells = (list(column) for column in zip(*rows, strict=True))
    questions = [question for question in batch.describe_questions for _ in range(1 + each)]
    return model.caption_ids(features, index, cells, questions, batch.noise.shape[1], 1 + each)


def say(model: Segmenter, features: Features, batch: Batch, read: list[list[int]], true: list[list[int]]) -> Forward:
    """Run teacher-forced descriptions: image, region, question and the captions `read` are the input, the tokens of `true` are learnt."""
    encoded = []
    for image, cells, question, ids, labels in zip(
        batch.describe_index, batch.cells, batch.describe_questions, read, true, strict=True
    ):
        text = model.template.image_string(features.visual[image].grid.tokens) + model.region_question(cells[None], question)
        prompt = prompts.encode_prompt(model.tokenizer, model.template, text)
        encoded.append((prompt + ids, [prompts.IGNORE] * len(prompt) + labels))
    regions: list[Tensor | None] = [cells[None] for cells in batch.cells]
    return model(features, Conversations(*pad_right(encoded), batch.describe_index, regions))


def segment(
    model: Segmenter, features: Features, batch: Batch, captions: list[list[int]], embeds: Tensor | None
) -> tuple[Forward, Tensor]:
    """Return teacher-forced answers about the second images, the captions (or their `embeds`) in the expression's place; mask logits."""
    encoded, marks = [], []
    for shown, question, answer, caption in zip(batch.shown, batch.questions, batch.answers, captions, strict=True):
        text = "".join(model.template.image_string(features.visual[place].grid.tokens) for place in shown) + question
        before, after = prompts.encode_gap(model.tokenizer, model.template, text)
        target = model.tokenizer.encode(answer + model.template.suffix, add_special_tokens=False)
        encoded.append((before + caption + after + target, [prompts.IGNORE] * len(before + caption + after) + target))
        marks.append((len(before), len(caption)))
    ids, labels, attention = pad_right(encoded)
    at = None
    if embeds is not None:
        at = torch.zeros_like(ids, dtype=torch.bool)
        for row, (start, length) in zip(at, marks, strict=True):
            row[start : start + length] = True
    index, frames = batch.segment_index, batch.frames
    out = model(features, Conversations(ids, labels, attention, index, [None] * len(ids), embeds, at, frames=frames))
    if batch.frames is not None:
        return out, model.masks_in(features, batch.frames, out.seg_embeds).low_res
    return out, model.masks(features, out.seg_image, out.seg_embeds).low_res


def _two_frames(record: ImageRecord, region: Region) -> bool:
    """Tell whether an object is described in one frame and segmented in another."""
    return bool(record.second and region.second_counts)


def _of_masks(batch: Batch, values: Tensor) -> Tensor:
    """Return one value per mask from one per object."""
    each = torch.tensor([len(images) for images in batch.shown], device=values.device)
    return values.repeat_interleave(each, output_size=len(batch.targets.soft))


def _table(model: Segmenter) -> Tensor:
    """Return the embeddings of all tokens, (V, D)."""
    return cast(Tensor, model.vlm.language_model.get_input_embeddings().weight)


def _no_text(model: Segmenter, logits: Tensor) -> Tensor:
    """Return ids (n,) of all that is no text: special tokens, and rows that the tokenizer does not use."""
    text = torch.zeros(logits.shape[-1], dtype=torch.bool)
    text[model.text_tokens] = True
    return (~text).nonzero()[:, 0].to(logits.device)


def _add_square(total: Tensor, gradient: Tensor) -> None:
    total.add_(gradient.detach().float().square().sum())
