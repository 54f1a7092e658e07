"""The modules of a segmenting vision-language model, what they make of images, and the forward of training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ans.model import prompts, tokens
from ans.model.config import ModelConfig
from ans.model.decoder import Levels, Masks
from ans.model.family import Inputs, Pixels, Visual, Vlm
from ans.model.host import sent
from ans.model.preprocess import ImageLike, as_image


@dataclass(frozen=True)
class Features:
    """What the frozen encoders say about B images; computed once, then handed around.

    `visual`: of each image, what the vision-language model sees. `levels`: the maps of the mask part's image encoder. `sizes`:
    (height, width) of each image in pixels.
    """

    visual: list[Visual]
    levels: Levels
    sizes: list[tuple[int, int]]

    @classmethod
    def join(cls, parts: Sequence["Features"]) -> "Features":
        """Return those of several images from those of each; images that are not segmented, which have no levels, come last."""
        levels = tuple(torch.cat(maps) for maps in zip(*(part.levels for part in parts if part.levels), strict=True))
        return cls([one for part in parts for one in part.visual], levels, [size for part in parts for size in part.sizes])


@dataclass(frozen=True)
class Conversations:
    """A right-padded batch for the training forward. `ids`, `labels`, `mask`: (B, L). `image_index` (B,): the image of each row.
    `regions`: per row None, or (n, rows, columns) bool, the grid cells of its region prompts; `weights`, if given, of the same shapes:
    what the cells' tokens are multiplied by. `embeds` (N, D), if given, take the places that `embeds_at` (B, L) marks, in order.
    `frames`, if given: of each row all images that it shows, in order, the first of which is that of `image_index`; such rows have no
    regions.

    All but `weights` and `embeds` lie in CPU memory: what they decide is known there, so that nobody has to wait for the device."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    image_index: list[int]
    regions: list[Tensor | None]
    embeds: Tensor | None = None
    embeds_at: Tensor | None = None
    weights: list[Tensor] | None = None
    frames: list[list[int]] | None = None

    @property
    def shown(self) -> list[list[int]]:
        """The images of each row, in order."""
        return [[i] for i in self.image_index] if self.frames is None else self.frames


@dataclass(frozen=True)
class Forward:
    """`hidden` (B, L, D), what the output layer reads. Of the M labelled positions in row order: `labels` (M,) and the `logits`
    (M, V) that predict them; `seg_labels`, the numbers of those that are `[SEG]`. `seg_embeds` (N, W) of every `[SEG]` in row order, on
    image `seg_image[n]`."""

    hidden: Tensor
    logits: Tensor
    labels: Tensor
    seg_labels: Tensor
    seg_embeds: Tensor
    seg_image: Tensor

    @property
    def language_loss(self) -> Tensor:
        """Next-token cross-entropy, summed over the labels."""
        return F.cross_entropy(self.logits.float(), self.labels, reduction="sum")


class SegmenterModules(nn.Module):
    """A vision-language part and a mask part joined by `[SEG]`. Everything comes from the model folder: sizes, template, tokenizer."""

    def __init__(self, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, vlm: Vlm | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.template = config.template
        self.image_token, self.image_last, self.seg_token = (
            tokens.token_id(tokenizer, text) for text in (self.template.image_token, self.template.image_last, prompts.SEG_TOKEN)
        )
        self.vlm = vlm or config.family.build()
        self.sam = config.decoder.build()
        width = config.language.hidden_size
        self.text_hidden_fcs = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.decoder.width))
        self.meet: Callable[[], None] = _alone
        """Called before processes communicate: where they share out frozen weights, they wait for each other's forwards."""

    @property
    def device(self) -> torch.device:
        return next(self.text_hidden_fcs.parameters()).device

    @cached_property
    def text_tokens(self) -> Tensor:
        """Ids (n,) of the tokens that stand for text: none that is special or was added to the vocabulary."""
        return tokens.text_tokens(self.tokenizer)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluate: within, no dropout and no gradients; afterwards the mode is as it was."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            torch.clear_autocast_cache()  # copies of parameters that were made without a gradient
            self.train(training)

    # ------------------------------------------------------------------------------------------------------------ images

    @torch.no_grad()
    def encode_images(self, images: Sequence[ImageLike], max_tiles: int | None = None, masks: bool = True) -> Features:
        """Run the frozen encoders once over images, PIL's, arrays or tensors (see `preprocess.as_image`). `max_tiles` caps the
        tiles below the model's own number; without `masks` the mask part sees none of them, and nothing can be segmented."""
        rgb = list(map(as_image, images))
        return self.encode_pixels(
            [self.config.family.pixels(image, max_tiles) for image in rgb],
            torch.stack([self.config.decoder.pixels(image) for image in rgb]) if masks else torch.empty(0),
            [(image.height, image.width) for image in rgb],
        )

    @torch.no_grad()
    def encode_pixels(self, pixels: Sequence[Pixels], sam_pixels: Tensor, sizes: list[tuple[int, int]]) -> Features:
        """Encode as `encode_images` does, from what `Family.pixels` made of each image, and from (n, 3, S, S) normalised pixels of the
        first n images for the mask part."""
        values = sent(torch.cat([one.values for one in pixels]), self.device).to(self.vlm.dtype)
        visual = self.vlm.encode(values, [one.grid for one in pixels])
        levels = self.sam.encode(sent(sam_pixels, self.device).to(self.sam.dtype)) if len(sam_pixels) else ()
        return Features(visual, levels, sizes)

    def image_tokens(self, features: Features) -> list[Visual]:
        """Return the features of each image, projected to the language model's width."""
        found = self.vlm.project(torch.cat([one.tokens.flatten(0, 1) for one in features.visual]))
        parts = found.split([one.grid.tokens for one in features.visual])
        return [
            replace(one, tokens=part.unflatten(0, one.tokens.shape[:2])) for one, part in zip(features.visual, parts, strict=True)
        ]

    # ---------------------------------------------------------------------------------------------------------- training

    def forward(self, features: Features, batch: Conversations) -> Forward:
        """Return the teacher-forced forward pass of a batch of conversations over images that `encode_images` has seen."""
        visual = self.image_tokens(features)
        weights = batch.weights or [None] * len(batch.regions)
        rows = [
            with_regions([visual[i] for i in images], cells, weight)
            for images, cells, weight in zip(batch.shown, batch.regions, weights, strict=True)
        ]
        positions = self.vlm.positions(batch.ids, batch.mask, [visual[i].grid for images in batch.shown for i in images])
        inputs = self.inputs(batch.ids, batch.mask, positions, rows, padded=False)
        if batch.embeds is not None:
            assert batch.embeds_at is not None
            embeds = batch.embeds.to(inputs.embeds.dtype)
            places = sent(batch.embeds_at[..., None], self.device)
            inputs = replace(inputs, embeds=inputs.embeds.masked_scatter(places, embeds))
        normed, states = self.vlm.run(inputs)
        shifted = F.pad(batch.labels[:, 1:], (0, 1), value=prompts.IGNORE)
        labelled, seg = (mask.flatten().nonzero()[:, 0] for mask in (shifted != prompts.IGNORE, batch.ids == self.seg_token))
        labels = shifted.flatten()[labelled]
        seg_labels = (labels == self.seg_token).nonzero()[:, 0]
        image = torch.tensor(batch.image_index)[seg // batch.ids.shape[1]]
        labelled, labels, seg_labels, seg, image = (sent(of, self.device) for of in (labelled, labels, seg_labels, seg, image))
        logits = self.vlm.language_model.lm_head(normed.flatten(0, 1)[labelled])
        return Forward(normed, logits, labels, seg_labels, self.seg_embed(states.flatten(0, 1)[seg]), image)

    def inputs(
        self, ids: Tensor, mask: Tensor, positions: Tensor, visual: Sequence[Sequence[Tensor]], padded: bool = True
    ) -> Inputs:
        """Return what the language model reads of `ids` (B, L), which lie in CPU memory, the levels of `visual` (see `Visual.levels`),
        (n, D) each, filling the places of image tokens in order. `padded`: see `Inputs`."""
        first, *deep = (torch.cat(level) for level in zip(*visual, strict=True))
        embeds = self.vlm.embed(ids, first, self.image_token)
        mask, positions, places = (sent(of, self.device) for of in (mask, positions, ids == self.image_token))
        return Inputs(embeds, mask, positions, places, tuple(deep), padded)

    def seg_embed(self, states: Tensor) -> Tensor:
        """Map (N, D) states at `[SEG]` to (N, W) prompt vectors for the mask decoder."""
        return self.text_hidden_fcs(states.to(next(self.text_hidden_fcs.parameters()).dtype))

    def masks(self, features: Features, image_index: Tensor, prompt: Tensor) -> Masks:
        """Return masks for prompt vectors (N, W), the n-th on image `image_index[n]`."""
        return self.sam.decode(self.sam.project(features.levels), image_index, prompt)

    def masks_in(self, features: Features, frames: Sequence[Sequence[int]], prompt: Tensor) -> Masks:
        """Return masks for prompt vectors (N, W), the n-th in each of the images `frames[n]`, vector by vector."""
        index = sent(torch.tensor([image for images in frames for image in images]), prompt.device)
        each = sent(torch.tensor([len(images) for images in frames]), prompt.device)
        return self.masks(features, index, prompt.repeat_interleave(each, dim=0, output_size=len(index)))

    def region_question(self, cells: Tensor, question: str) -> str:
        """Return the text of a question about regions (n, rows, columns), as evaluation asks it (an empty line before the question)."""
        return self.template.region_string(cells.flatten(1).sum(1).tolist(), "\n\n") + question

    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        """Map (N, S/4, S/4) logits to (N, h, w): bilinear to the mask part's own size, then to the image's."""
        return self.config.decoder.upscale(low_res, size)


def _alone() -> None:
    pass


def with_regions(images: Sequence[Visual], cells: Tensor | None, weights: Tensor | None = None) -> list[Tensor]:
    """Return all image tokens (n, D) of one row's images, followed by those of its regions in the one image, which are multiplied by
    `weights`; each level by itself."""
    wholes = [[level.flatten(0, 1) for level in one.levels] for one in images]
    if cells is not None:
        (one,) = images
        wholes.append(region_tokens(one, cells, weights))
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*wholes, strict=True)]


def region_tokens(visual: Visual, cells: Tensor, weights: Tensor | None = None) -> list[Tensor]:
    """Return the image tokens (n, D) of a row's regions, those of the overall view (the last tile) in their cells (n, rows, columns),
    region by region; each level by itself. See `Conversations`."""
    places = [sent(inside.nonzero()[:, 0], visual.tokens.device) for inside in cells.flatten(1)]
    factors = [None] * len(places) if weights is None else [w[at] for w, at in zip(weights.flatten(1), places, strict=True)]
    return [
        torch.cat([_weighted(level[-1][at], factor) for at, factor in zip(places, factors, strict=True)])
        for level in visual.levels
    ]


def _weighted(tokens: Tensor, factors: Tensor | None) -> Tensor:
    return tokens if factors is None else tokens * factors[:, None].to(tokens.dtype)
