"""Answers about images: free generation, masks of what is asked for, masks of what is pointed at,
captions of regions, in batches.

What all questions about an image share is computed once: its features, its tokens, and the language model's keys and values up to
the image's end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor

from ans.model import prompts, tokens
from ans.model.cache import ROOM
from ans.model.decoder import Levels
from ans.model.family import Inputs, Visual
from ans.model.generate import Chance, Generated, Prefix, forced, greedy, pad_left, prefill
from ans.model.host import sent
from ans.model.modules import Features, SegmenterModules, region_tokens
from ans.model.places import Place
from ans.model.preprocess import ImageLike
from ans.model.visual_prompt import region_cells

IMAGES_AT_ONCE, MASKS_AT_ONCE = 16, 32
"""Encoded, and decoded, in one go: so much that the machine is busy, so little that large batches fit into memory."""


@dataclass(frozen=True)
class Read:
    """What the model keeps of B images that it has read. `visual`: of each image, the image tokens. `levels`: what the mask decoder
    reads. `sizes`: (height, width) in pixels. `prefix`: the language model's keys and values up to each image's end."""

    visual: list[Visual]
    levels: Levels
    sizes: list[tuple[int, int]]
    prefix: Prefix


@dataclass(frozen=True)
class Query:
    """About image number `image`: its text behind the image, and the grid cells (n, rows, columns) of the regions in it."""

    image: int
    text: str
    cells: Tensor | None = None


@dataclass(frozen=True)
class Segmentation:
    """The answer to one expression. `masks` (n, h, w) bool, one per `[SEG]` that the answer holds, at the image's size; `mask` is
    their union, empty where the answer has no `[SEG]`. Of a video's frame their `logits` (n, h, w) too, on the model's device."""

    answer: str
    masks: np.ndarray
    logits: Tensor | None = None

    @property
    def mask(self) -> np.ndarray:
        return np.any(self.masks, axis=0)


class SegmenterInference(SegmenterModules):
    """`images` below are RGB images, or what `encode_images` or `read` made of them. No method has a gradient."""

    @torch.no_grad()
    def read(
        self,
        images: Sequence[ImageLike] | Features | Read,
        encode: Callable[[Sequence[ImageLike]], Features] | None = None,
    ) -> Read:
        """Return everything that answers about these images share, made once: `segment`, `segment_given`, `segment_at` and `describe` take
        it too.

        Images are encoded `IMAGES_AT_ONCE` at a time, by `encode`: something that does as `encode_images`, which is the default.
        Raises `ValueError` when there is none.
        """
        if isinstance(images, Read):
            return images
        if not isinstance(images, Features) and len(images) == 0:
            raise ValueError("images: there is none")
        parts = [images] if isinstance(images, Features) else map(encode or self.encode_images, _chunks(images, IMAGES_AT_ONCE))
        visual: list[Visual] = []
        levels: list[Levels] = []
        sizes: list[tuple[int, int]] = []
        for features in parts:  # the encoders' large maps go as soon as they are projected
            visual += self.image_tokens(features)
            if features.levels:  # absent where images are only described
                levels.append(self.sam.project(features.levels))
            sizes += features.sizes
        joined = tuple(torch.cat(level) for level in zip(*levels, strict=True))
        return Read(visual, joined, sizes, prefill(self.vlm, self._beginnings(visual)))

    @torch.no_grad()
    def segment(
        self,
        images: Sequence[ImageLike] | Features | Read,
        expressions: Sequence[Sequence[str]],
        max_new_tokens: int = 512,
    ) -> list[list[Segmentation]]:
        """Segment every expression of every image by free greedy generation.

        Raises `ValueError` when the two lists differ in length.
        """
        read = self.read(images)
        results = iter(self._segmented(read, self._referring(read, expressions), max_new_tokens))
        return [[next(results) for _ in row] for row in expressions]

    @torch.no_grad()
    def ask(
        self, images: Sequence[ImageLike] | Features | Read, questions: Sequence[Sequence[str]], max_new_tokens: int = 512
    ) -> list[list[Segmentation]]:
        """Answer every question about every image in its own words, with a mask for each `[SEG]` of the answer.

        Raises `ValueError` when the two lists differ in length.
        """
        read = self.read(images)
        _same_length("questions", questions, read)
        asked = [Query(i, prompts.quoted(text)) for i, texts in enumerate(questions) for text in texts]
        results = iter(self._segmented(read, asked, max_new_tokens))
        return [[next(results) for _ in row] for row in questions]

    @torch.no_grad()
    def segment_given(
        self, images: Sequence[ImageLike] | Features | Read, expressions: Sequence[Sequence[str]], answer: str
    ) -> list[list[Segmentation]]:
        """Segment as `segment` does, but every answer is `answer`, teacher-forced: what the masks would be, had the model answered that.

        Raises `ValueError` when the answer has no `[SEG]`, or when the two lists differ in length.
        """
        read = self.read(images)
        questions = self._referring(read, expressions)
        ids = self.tokenizer.encode(answer, add_special_tokens=False)
        places = [position for position, token in enumerate(ids) if token == self.seg_token]
        if not places:
            raise ValueError(f"answer: {answer!r} has no {prompts.SEG_TOKEN}, so there is no mask in it")
        if not questions:
            return [[] for _ in expressions]
        states = forced(self.vlm, *self._continued(read, questions, ids), len(ids))
        masks = iter(self._masks_of(read, questions, list(states[:, places])))
        return [[Segmentation(answer, next(masks)) for _ in row] for row in expressions]

    @torch.no_grad()
    def segment_at(self, images: Sequence[ImageLike] | Features | Read, places: Sequence[Sequence[Place]]) -> list[np.ndarray]:
        """Segment what is at every place of every image: per image masks (n, h, w) bool at its size. The mask decoder does this alone,
        as SAM and SAM2 do; a single point is answered by the candidate with the highest predicted IoU.

        Raises `ValueError` for a place outside its image, when the two lists differ in length, and for a mask decoder that takes none.
        """
        read = self.read(images)
        _same_length("places", places, read)
        asked = [(i, place) for i, row in enumerate(places) for place in row]
        for i, place in asked:
            place.check(*read.sizes[i])
        masks = iter(self._masks_at(read, asked))
        return [_stacked(list(islice(masks, len(row))), size) for row, size in zip(places, read.sizes, strict=True)]

    @torch.no_grad()
    def describe(
        self,
        images: Sequence[ImageLike] | Features | Read,
        masks: Sequence[np.ndarray | Tensor | Sequence[np.ndarray | Place]],
        max_new_tokens: int = 512,
        question: str = prompts.DESCRIBE_PROMPT,
    ) -> list[list[str]]:
        """Caption every region of every image, by `question`, which calls it `region1`. `masks`: per image (n, h, w), non-zero
        inside, or a list in which a region may also be a `Place`, for the mask that `segment_at` finds there; each is asked alone.
        Where there is no `Place`, images are not encoded for the mask decoder.

        Raises `ValueError` for an empty mask, when the two lists differ in length, for a model that knows no regions, and as
        `segment_at` does.
        """
        self.config.ask_for_regions("describe")
        places = any(isinstance(one, Place) for row in masks if not isinstance(row, np.ndarray | Tensor) for one in row)
        read = self.read(images, partial(self.encode_images, masks=places))
        _same_length("masks", masks, read)
        if places:
            masks = self._found(read, masks)
        questions = []
        for i, regions in enumerate(masks):
            inside = regions.cpu() if isinstance(regions, Tensor) else torch.from_numpy(np.asarray(regions))
            cells = region_cells(inside > 0, read.visual[i].grid.region) if len(regions) else []
            questions += [self._about_region(i, cell, question) for cell in cells]
        answers = iter(self.answer(read, questions, max_new_tokens))
        return [[self._decode(next(answers).ids, self.template.stop_words) for _ in regions] for regions in masks]

    @torch.no_grad()
    def caption_ids(
        self,
        features: Features,
        image_index: Sequence[int],
        cells: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        views: int = 1,
    ) -> tuple[list[list[int]], list[bool], list[float]]:
        """Return greedy captions of R regions with `cells` (rows, columns) each, the r-th on image `image_index[r]`, as ids of text tokens;
        whether each came to its end; and the geometric mean of its tokens' probabilities.

        With `views` so many of the R, one behind the other, are one region, whose caption is the likeliest in the mean of them
        (`greedy`); there are R / views captions, and the geometric mean is over the views too.
        """
        asked = [self._about_region(i, cell, text) for i, cell, text in zip(image_index, cells, questions, strict=True)]
        without = replace(features, levels=())  # nothing is segmented
        rows = self.answer(without, asked, max_new_tokens, confidence=True, together=views)
        answers = rows[::views]
        text = set(self.text_tokens.tolist())
        captions = [tokens.text_ids(self.tokenizer, self.template.stop_words, answer.ids, text) for answer in answers]
        confidences = [
            math.prod(row.confidence for row in rows[n : n + views]) ** (1 / views) for n in range(0, len(rows), views)
        ]
        return captions, [self._ended(answer.ids) for answer in answers], confidences

    @torch.no_grad()
    def answer(
        self,
        images: Features | Read,
        questions: Sequence[Query],
        max_new_tokens: int,
        confidence: bool = False,
        together: int = 1,
        chance: Chance | None = None,
    ) -> list[Generated]:
        """Return answers as ids, with the states of their `[SEG]`s, and, if asked for, the probability of their tokens. What all
        questions about an image share, up to its last image token, runs once. `together` and `chance`: see `greedy`."""
        if not questions:
            return []
        prefix, rows = self._continued(self.read(images), questions)
        return greedy(self.vlm, prefix, rows, self._ended, self.seg_token, max_new_tokens, confidence, together, chance)

    @torch.no_grad()
    def random_captions(
        self, features: Features, image_index: Sequence[int], cells: Sequence[Tensor], questions: Sequence[str], chance: Chance
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return captions of regions, as in `caption_ids`, that are drawn by `chance`: all that was said, and the ids of its text."""
        asked = [self._about_region(i, cell, text) for i, cell, text in zip(image_index, cells, questions, strict=True)]
        said = self.answer(replace(features, levels=()), asked, chance.noise.shape[1], chance=chance)
        text = set(self.text_tokens.tolist())
        stop = self.template.stop_words
        return [one.ids for one in said], [tokens.text_ids(self.tokenizer, stop, one.ids, text) for one in said]

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of `text` that the tokenizer has no token for; tokenizers made of bytes have one for everything."""
        return tokens.unknown_words(self.tokenizer, text)

    # ------------------------------------------------------------------------------------------------------------ inside

    def _referring(self, read: Read, expressions: Sequence[Sequence[str]]) -> list[Query]:
        _same_length("expressions", expressions, read)
        question = self.template.segment_question
        return [Query(i, question(prompts.quoted(text))) for i, texts in enumerate(expressions) for text in texts]

    def _segmented(self, read: Read, questions: Sequence[Query], max_new_tokens: int) -> list[Segmentation]:
        answers = self.answer(read, questions, max_new_tokens)
        masks = self._masks_of(read, questions, [answer.seg_states for answer in answers])
        return [Segmentation(self._decode(a.ids), found) for a, found in zip(answers, masks, strict=True)]

    def _about_region(self, image: int, cells: Tensor, question: str) -> Query:
        return Query(image, self.region_question(cells[None], question), cells[None])

    def _prompt(self, text: str) -> list[int]:
        """Return ids of a question about an image, for which one image token stands: a text behind the image's end is cut into the same
        ids as behind all its tokens, many times faster."""
        return prompts.encode_prompt(self.tokenizer, self.template, self.template.image_string(1) + text)

    def _beginnings(self, visual: Sequence[Visual]) -> Inputs:
        """Return each image's prompt up to the image's end."""
        ids = self._prompt("")
        place, last = ids.index(self.image_token), ids.index(self.image_last)
        wholes = [[*ids[:place], *[self.image_token] * one.grid.tokens, *ids[place + 1 : last + 1]] for one in visual]
        padded, mask = pad_left(wholes)
        positions = self.vlm.positions(padded, mask, [one.grid for one in visual])
        rows = [[level.flatten(0, 1) for level in one.levels] for one in visual]
        return self.inputs(padded, mask, positions, rows, padded=len(set(map(len, wholes))) > 1)

    def _continued(self, read: Read, questions: Sequence[Query], answer: Sequence[int] = ()) -> tuple[Prefix, Inputs]:
        """Return each question's prefix, and its prompt from the image's end on with the beginning of its answer."""
        suffixes = []
        visual = [[level.new_zeros(0, level.shape[-1]) for level in read.visual[0].levels]]
        for question in questions:
            ids = self._prompt(question.text)
            suffixes.append([*ids[ids.index(self.image_last) + 1 :], *answer])
            if question.cells is not None:
                visual.append(region_tokens(read.visual[question.image], question.cells))
        ids, mask = pad_left(suffixes)
        mask = sent(mask, self.device)
        owners = sent(torch.tensor([question.image for question in questions]), self.device)
        prefix = read.prefix.rows(owners, ids.shape[1] + ROOM)
        padded = prefix.padded or len(set(map(len, suffixes))) > 1
        return prefix, self.inputs(ids, torch.cat([prefix.mask, mask], dim=1), prefix.positions(mask), visual, padded)

    def _masks_of(self, read: Read, questions: Sequence[Query], states: Sequence[Tensor]) -> list[np.ndarray]:
        """Return masks (n, h, w) bool of each question from the states (n, D) of its `[SEG]`s, decoded `MASKS_AT_ONCE` at a time."""
        owners = [question.image for question, found in zip(questions, states, strict=True) for _ in found]
        masks: list[np.ndarray] = []
        if owners:
            prompt = self.seg_embed(torch.cat(list(states)))
            for start in range(0, len(owners), MASKS_AT_ONCE):
                chunk = owners[start : start + MASKS_AT_ONCE]
                index = sent(torch.tensor(chunk), self.device)
                low_res = self.sam.decode(read.levels, index, prompt[start : start + MASKS_AT_ONCE]).low_res
                masks += self._at_size(read, chunk, low_res)
        taken: Iterator[np.ndarray] = iter(masks)
        return [
            _stacked(list(islice(taken, len(found))), read.sizes[question.image])
            for question, found in zip(questions, states, strict=True)
        ]

    def _at_size(self, read: Read, owners: Sequence[int], low_res: Tensor) -> list[np.ndarray]:
        """Return each of the logits (N, S/4, S/4) as a mask (h, w) bool of image `owners[n]`; those of one image lie together."""
        masks: list[np.ndarray] = []
        runs = [(i, len(list(same))) for i, same in groupby(owners)]
        for (i, _), logits in zip(runs, low_res.split([count for _, count in runs]), strict=True):
            masks += list((self.upscale(logits, read.sizes[i]) > 0).cpu().numpy())
        return masks

    def _masks_at(self, read: Read, asked: Sequence[tuple[int, Place]]) -> list[np.ndarray]:
        """Return the mask (h, w) bool at each place, which is on the image of the number beside it. Only places of one form share a batch:
        padding would be read, and would change the masks."""
        masks: dict[int, np.ndarray] = {}
        order = sorted(range(len(asked)), key=lambda number: asked[number][1].form)
        for _, same in groupby(order, key=lambda number: asked[number][1].form):
            while chunk := list(islice(same, MASKS_AT_ONCE)):
                low_res = self._decode_at(read, [asked[number] for number in chunk])
                masks |= zip(chunk, self._at_size(read, [asked[number][0] for number in chunk], low_res), strict=True)
        return [masks[number] for number in range(len(asked))]

    def _decode_at(self, read: Read, asked: Sequence[tuple[int, Place]]) -> Tensor:
        """Return logits (N, S/4, S/4) at places of one form."""
        sizes = [read.sizes[i] for i, _ in asked]
        shares = [
            place.shares(*size, self.config.decoder.image_share(*size)) for (_, place), size in zip(asked, sizes, strict=True)
        ]
        points, boxes = (sent(torch.from_numpy(np.stack(part)).float(), self.device) for part in zip(*shares, strict=True))
        labels = sent(torch.tensor([list(place.on_object) for _, place in asked], dtype=torch.int32), self.device)
        index = sent(torch.tensor([i for i, _ in asked]), self.device)
        return self.sam.decode_at(read.levels, index, points, labels, boxes[:, 0] if boxes.shape[1] else None).low_res

    def _found(
        self, read: Read, regions: Sequence[np.ndarray | Tensor | Sequence[np.ndarray | Place]]
    ) -> list[np.ndarray | Tensor]:
        """Return the regions with the masks of places in the places' stead."""
        places = [[one for one in row if isinstance(one, Place)] for row in regions]
        found = [iter(masks) for masks in self.segment_at(read, places)]
        return [
            row
            if isinstance(row, np.ndarray | Tensor)
            else np.array([_marked(next(at), one) if isinstance(one, Place) else one for one in row])
            for row, at in zip(regions, found, strict=True)
        ]

    def _ended(self, ids: list[int]) -> bool:
        return tokens.ended(self.tokenizer, self.template.stop_words, ids)

    def _decode(self, ids: list[int], without: tuple[str, ...] = ()) -> str:
        return tokens.decode(self.tokenizer, ids, without)


def _same_length(name: str, values: Sequence[object], read: Read) -> None:
    if len(values) != len(read.sizes):
        raise ValueError(f"{name}: {len(values)} lists for {len(read.sizes)} images")


def _stacked(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return np.array(masks, dtype=bool).reshape(len(masks), *size)


def _marked(mask: np.ndarray, place: Place) -> np.ndarray:
    if not mask.any():
        raise ValueError(f"{place}: the mask decoder finds nothing there, so there is no region to describe")
    return mask


def _chunks(values: Sequence[ImageLike], size: int) -> list[Sequence[ImageLike]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
