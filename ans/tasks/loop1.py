"""Loop 1: mask -> caption -> mask. The teacher describes an object, the student reads that caption again, and from what it reads
must come the object's mask. No text is given.

With the Gumbel bridge the gradient of the mask runs through the caption's tokens into the student's reading of the first image.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ans.config.fields import Count, Name, Positive, Section, Share, Weight
from ans.config.schema import LearntVideos, VideoFolder
from ans.config.tasks import TaskSettings
from ans.data.clips import checksum
from ans.data.mask_samples import OfImages, OfVideos, Sample, seen_objects
from ans.data.mixing import Pool
from ans.data.samples import Regions
from ans.data.views import VIEWS
from ans.facts import read_facts
from ans.model import prompts
from ans.model.host import sent
from ans.model.segmenter import Features, Segmenter
from ans.model.visual_prompt import region_cells
from ans.objectives import captions, rloo
from ans.objectives.batches import ImagesOf, draw_questions
from ans.objectives.captions import Caption
from ans.objectives.gumbel import square_of_gradient, straight_through
from ans.objectives.losses import distillation, mask_terms, seg_rate
from ans.objectives.passes import Batch, describe, imitate, say, segment
from ans.shown import Panel
from ans.tasks import base
from ans.tasks.base import Degenerate, Example, Losses, Now, Setting, Wordings


class MaskSource(Section):
    """A source of masks without text."""

    repeats: Weight = Field(1.0, description="how many times each sample comes per epoch")
    max_samples: Count | None = Field(None, description="use only the first N masks; none: all")


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
    reward: Weight = Field(
        0.0, description="weight of the reward of random captions of the student by which the teacher finds the object (RLOO)"
    )
    draws: Annotated[Count, Field(ge=2)] = Field(2, description="reward: captions of an object that are drawn")
    contrast: bool = Field(True, description="reward: less the best IoU with another object of the image")
    leash: Weight = Field(0.05, description="reward: weight of the caption's distance to what the teacher would say (KL)")
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
        return self

    def indexes(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def clips(self) -> Mapping[str, VideoFolder]:
        return self.videos

    def tau_at(self, step: int, steps: int) -> float:
        """Return the Gumbel temperature of a step, on a line from `tau` to `tau_end`."""
        return self.tau + (self.tau_end - self.tau) * step / max(1, steps - 1)


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
        Panel(
            "the reward of captions", {"loop1_earned": "IoU less another object's", "loop1_strayed": "distance to the teacher"}
        ),
    )

    def __init__(self, settings: Settings, setting: Setting) -> None:
        super().__init__(settings, setting)
        setting.model.ask_for_regions("train.loop1", "; else set train.loop1.enabled=false")
        regions = [
            Regions(name, setting.open_index(name), setting.evaluated, of.max_samples, described=settings.bridge == "given")
            for name, of in settings.sources.items()
        ]
        self.left_out, clips = sum(of.left_out for of in regions), 0
        soft = setting.model.decoder.soft_target if settings.reward and settings.contrast else None
        self.sources: list[OfImages | OfVideos] = [OfImages(setting.root, of, settings.objects_per_image, soft) for of in regions]
        if settings.videos and not setting.model.family.videos:
            raise ValueError(f"train.loop1.videos: {setting.model.family.name} reads one image in a question; name no videos")
        for name, of in settings.videos.items():
            found, left_out = setting.clips(f"train.loop1.videos.{name}", of, lambda clip: bool(seen_objects(clip)))
            self.left_out, clips = self.left_out + left_out, clips + len(found)
            self.sources.append(OfVideos(setting.root, name, found, settings.frames))
        repeats = [of.repeats for of in (*settings.sources.values(), *settings.videos.values())]
        name = f"train.loop1.sources: {', '.join(source.name for source in self.sources)}"
        self.bad = self.bad_images(sum(len(of.index) for of in regions) + clips)
        self.pool = Pool([source.count for source in self.sources], repeats, setting.train.seed, self.stream, name)
        self.facts = read_facts(setting.root)

    def __len__(self) -> int:
        return len(self.pool)

    def sizes(self) -> dict[str, int]:
        return {source.title: source.count for source in self.sources}

    def checksums(self) -> dict[str, str]:
        return {source.title: checksum(source.clips) for source in self.sources if isinstance(source, OfVideos)}

    def batch(self, positions: range) -> Batch:
        train, settings, setting = self.setting.train, self.settings, self.setting
        family = setting.model.family
        images, targets = ImagesOf(setting.root, setting.model, max_tiles=1), setting.targets()
        views = VIEWS[1 : settings.views]
        samples: list[tuple[int, Sample]] = []
        cells, frames, questions, corruption, noise, where, known, in_views = [], [], [], [], [], [], [], []
        others: list[Tensor] = []
        chances = []
        for position in positions:
            first, rng = len(images.pixels), self.rng(position)
            sample = self.bad.instead(self.pool, position, lambda of, i, rng=rng: self._open(of, i, rng, images))
            samples.append((first, sample))
            for one in sample.objects:
                for mask in one.targets:
                    targets.add_mask(mask, rng)
                grid = family.grid(*one.mask.shape, max_tiles=1).region
                cells.append(region_cells(torch.from_numpy(one.mask)[None], grid)[0])
                in_views.append([region_cells(torch.from_numpy(view.mask(one.mask))[None], grid)[0] for view in views])
                frames.append([first + frame for frame in sample.frames])
                truth = self.facts.true_caption(sample.path, one.mask) if self.facts else None
                known.append((sample.path, truth) if truth else None)
                questions.append(draw_questions(rng, settings.description_prompts))
                corruption.append(rng.random((train.caption_len, 2), dtype=np.float32))
                noise.append(rng.gumbel(size=(train.caption_len, settings.top_k)).astype(np.float32))
                where.append((sample.locators[sample.frames[0]], sample.source))
                if settings.reward:
                    chances.append(rng.gumbel(size=(settings.draws, *noise[-1].shape)).astype(np.float32))
                    others.append(torch.stack(one.others) if one.others else torch.empty(0))
        # images that are only described come behind those that are segmented, which the mask decoder's encoder sees too
        described = [images.add_described(sample.described) if sample.apart else first for first, sample in samples]
        of_views = [[images.add_described(view.image(sample.described)) for view in views] for _, sample in samples]
        sample_of = [number for number, (_, sample) in enumerate(samples) for _ in sample.objects]
        given = [one.text for _, sample in samples for one in sample.objects] if settings.bridge == "given" else []
        to_describe, to_segment, answers = (list(column) for column in zip(*questions, strict=True))
        return Batch(
            images.pack(), [described[number] for number in sample_of], [shown[0] for shown in frames], cells,
            to_describe, to_segment, answers, setting.answer_tokens(answers),
            torch.from_numpy(np.stack(corruption)), torch.from_numpy(np.stack(noise)), targets.pack(), where, known, given,
            [pair for number, of in zip(sample_of, in_views, strict=True) for pair in zip(of_views[number], of, strict=True)],
            frames if settings.videos else None, others, torch.from_numpy(np.stack(chances)) if chances else None,
        )  # fmt: skip

    def _open(self, source: int, number: int, rng: np.random.Generator, images: ImagesOf) -> Sample:
        sample = self.sources[source].open(number, rng)
        for image in sample.opened:
            images.add_image(image)
        return sample

    def losses(self, model: Segmenter, features: Features, batch: Batch, counts: Mapping[str, int], now: Now) -> Losses:
        settings, train, objects, masks = self.settings, self.setting.train, counts["objects"], counts["masks"]
        # the teacher describes each object; its own mask is needed only to compare with
        with now.teacher():
            teacher, ended, confidence = describe(model, features, batch, batch.views)
            reference = None
            if settings.distillation:
                _, reference = segment(model, features, batch, teacher, None)
        # the student predicts the caption again, and segments by its own tokens
        student = self.bridge(model, features, batch, teacher, settings.tau_at(now.step, now.steps), objects)
        out, logits = segment(model, features, batch, student.ids, student.embeds)

        weights = sent(torch.tensor(confidence), logits.device)
        of_masks = batch.of_masks(weights) if settings.confidence else None
        loss, values = mask_terms(logits, batch.targets, train.loss, train.mask_points, masks, of_masks)
        language = out.language_loss / counts["tokens"]
        loss = loss + train.loss.language * language + student.extra
        if settings.imitation:
            learnt = [bool(ids) and mean >= settings.agreement for ids, mean in zip(teacher, confidence, strict=True)]
            imitation = imitate(model, features, batch, teacher, learnt, objects)
            loss, values["imitation"] = loss + settings.imitation * imitation, imitation.detach()
            values["learnt_captions"] = torch.tensor(sum(learnt) / objects)
        if settings.distillation:
            assert reference is not None
            distance = distillation(logits, reference, masks)
            loss, values["distillation"] = loss + settings.distillation * distance, distance.detach()
        if settings.reward:
            reward, of_reward = self.rewarded(model, features, batch, objects, now)
            loss, values = loss - settings.reward * reward, values | of_reward

        values |= student.values | {"language": language.detach(), "seg_rate": seg_rate(model, out, objects)}
        values["teacher_confidence"] = weights.sum() / objects
        figures = captions.statistics(teacher, ended, objects)
        if counts["known"] and self.facts:
            figures |= captions.truth(model.tokenizer, self.facts, batch.known, teacher, counts["known"])
        for name, value in figures.items():
            values[f"teacher_{name}"] = torch.tensor(value)
        example = None
        if now.examples:
            texts = {"teacher": teacher, "student": student.words(student.chosen)}
            decoded = {name: [str(model.tokenizer.decode(ids)) for ids in said] for name, said in texts.items()}
            first = torch.tensor([0, *map(len, batch.shown[:-1])]).cumsum(0)
            example = Example(batch.where, decoded, logits.detach()[sent(first, logits.device)], batch.targets.soft[first])
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
            teacher = [prompts.encode(model.tokenizer, prompts.quoted(text), start=False) for text in batch.given]
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
        logits = captions.only_text(out.logits, model.text_tokens)  # an expression has no special tokens
        # all objects' positions side by side, as the logits are; the noise was drawn with the sample, so that a resumed run has the same
        noise = sent(torch.cat([row[: len(ids)] for row, ids in zip(batch.noise, teacher, strict=True)]), model.device)
        noise = settings.noise * noise[:, : logits.shape[-1]]
        table = _table(model)
        embeds, chosen, kept = straight_through(logits, table, noise, tau)
        lengths = [len(ids) for ids in teacher]
        # a token that was replaced by itself was not corrupted
        different = [a != b for one, two in zip(corrupted_ids, teacher, strict=True) for a, b in zip(one, two, strict=True)]
        places = torch.tensor(different, dtype=torch.bool)
        corrupted = sent(places, model.device)
        if settings.rescored == "corrupted":
            embeds = torch.where(corrupted[:, None], embeds, F.embedding(out.labels, table))
            chosen = torch.where(corrupted, chosen, out.labels)
        values = {
            "kept_mass": captions.mean_per_object(kept, lengths, objects),
            "changed_tokens": captions.mean_per_object((chosen != out.labels).float(), lengths, objects),
            "caption_gradient2": square_of_gradient(embeds),  # how much of the mask's loss reaches the caption
        }
        extra: Tensor | float = 0.0
        if settings.denoising:
            denoising = captions.cross_entropy(out.logits, out.labels, places, lengths, objects)
            extra, values["denoising"] = settings.denoising * denoising, denoising.detach()
        return Caption(teacher, embeds, extra, values, chosen)

    def rewarded(
        self, model: Segmenter, features: Features, batch: Batch, objects: int, now: Now
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the student is rewarded for random captions, to be maximized, and curves of them. The teacher is the listener; the
        nearer to it a caption's probability, the more it earns, so that words keep their meaning."""
        assert batch.chances is not None
        with model.evaluating():
            drawn = rloo.draw(model, features, batch, batch.chances)
        said = rloo.log_probability(model, features, drawn)
        with now.teacher():
            earned = rloo.earned(segment(model, features, drawn.rows, drawn.texts, None)[1], drawn.rows)
            strayed = said.detach() - rloo.log_probability(model, features, drawn)
        which = sent(drawn.which, said.device)
        reward = rloo.objective(said, earned - self.settings.leash * strayed, which).sum() / objects
        values = {"earned": earned, "strayed": strayed}
        return reward, {name: value[which].mean(1).sum() / objects for name, value in values.items()}

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


def _table(model: Segmenter) -> Tensor:
    """Return the embeddings of all tokens, (V, D)."""
    return cast(Tensor, model.vlm.language_model.get_input_embeddings().weight)
