"""What a family of vision-language models is. Everything that differs between families is behind these two classes.

`Family` is what a model folder's `config.json` says: sizes, pixels, template, names. `Vlm` is the modules. A vision-language model
has two halves that meet at the projector: `encode` depends on nothing that is ever fine-tuned, so its output is computed once per
image and shared; `project` is where the trained part begins.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel

from ans.model.host import sent
from ans.model.keys import KeyTable
from ans.model.plugs import Plug
from ans.model.prompts import Template

LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of Llama, Qwen2 and their like, by the last part of their names."""


@dataclass(frozen=True)
class Grid:
    """The image tokens of one image: `tiles` parts of `rows` x `columns` cells, row by row. The last part shows the whole image."""

    tiles: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.tiles * self.rows * self.columns

    @property
    def region(self) -> tuple[int, int]:
        """(rows, columns) of the cells that a region prompt chooses from: those of the part that shows the whole image."""
        return self.rows, self.columns


@dataclass(frozen=True)
class Pixels:
    """One image as the vision encoder takes it. `values` (P, ...): as many tiles, or patches, as the family makes of it."""

    values: Tensor
    grid: Grid


@dataclass(frozen=True)
class Visual:
    """What is known of one image. `tokens` (tiles, rows * columns, C): the vision encoder's features, or after the projector the
    image tokens. `deep`: further features of the same cells, each (tiles, rows * columns, D), that the language model takes in
    behind its first layers."""

    tokens: Tensor
    grid: Grid
    deep: tuple[Tensor, ...] = ()

    @property
    def levels(self) -> tuple[Tensor, ...]:
        return (self.tokens, *self.deep)


def by_image(features: Tensor, grids: Sequence[Grid]) -> list[Visual]:
    """Map features of the tiles of several images, one behind the other, (T, rows * columns, C) to those of each."""
    parts = features.split([grid.tiles for grid in grids])
    return [Visual(tokens, grid) for tokens, grid in zip(parts, grids, strict=True)]


def refuse_windows(language: Mapping[str, Any], section: str) -> None:
    """Raise `ValueError` naming the key, of `section` in `config.json`, by which some layers would attend to near tokens only: that
    changes results, and is not built here."""
    if language.get("use_sliding_window"):
        raise ValueError(f"{section}.use_sliding_window: true is not supported; every released Sa2VA attends to all tokens")
    if other := set(language.get("layer_types") or ()) - {"full_attention"}:
        raise ValueError(f"{section}.layer_types: {min(other)!r} is not supported; every released Sa2VA attends to all tokens")


@dataclass(frozen=True)
class Inputs:
    """What the language model reads of B rows. `embeds` (B, L, D); `mask` (B, K) of all that is attended to, that is of the cache,
    if there is one, and of `embeds`; `positions` (R, B, L), of which R are more than one where the family counts rows and columns
    too. `visual` (B, L): where image tokens stand; `deep`: further features (N, D) at these places, in order. `padded`: whether a row
    may have padding before a token; what lies behind all of its tokens is attended to by none of them."""

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    visual: Tensor
    deep: tuple[Tensor, ...] = ()
    padded: bool = True

    def attention(self) -> Tensor | None:
        """Return (B, 1, L, K) bool: which of the K tokens each of the L attends to, all up to itself that are not padding. None where the
        causal rule alone says as much: then attention has its fastest kernels.

        transformers makes the same of `mask`, but reads its values first, and so waits for the device in every forward.
        """
        length, reach = self.embeds.shape[1], self.mask.shape[1]
        if not self.padded and length in (1, reach):
            return None
        tokens = torch.arange(reach, device=self.mask.device)
        return (tokens <= tokens[reach - length :, None]) & (self.mask != 0)[:, None, None]


class States(NamedTuple):
    """(B, L, D) each. `normed`: what the output layer reads. `seg`: what the mask decoder's prompts are made of at `[SEG]`."""

    normed: Tensor
    seg: Tensor


class Vlm(nn.Module, ABC):
    """The modules. `language_model` is a causal language model (`.model`, `.lm_head`, `.get_input_embeddings()`)."""

    language_model: PreTrainedModel

    repeatable = True
    """Whether a decoding step may be captured as a CUDA graph: not where the host takes part in each forward."""

    @property
    @abstractmethod
    def vision(self) -> nn.Module:
        """The frozen image encoder."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What pixels have to be in."""

    @abstractmethod
    def encode(self, values: Tensor, grids: Sequence[Grid]) -> list[Visual]:
        """Return the features of several images, whose `Pixels.values` lie one behind the other."""

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Map (N, C) features to (N, D) image tokens in the language model's width."""

    def restore_buffers(self) -> None:
        """Compute what is in no file, after a load onto modules that were made without memory."""
        rotary = self.language_model.model.rotary_emb
        self.language_model.model.rotary_emb = type(rotary)(config=self.language_model.config)

    def embed(self, ids: Tensor, visual: Tensor, image_token: int) -> Tensor:
        """Return token embeddings (B, L, D) of `ids` (B, L), which lie in CPU memory, the `image_token` positions filled by `visual` (N, D)
        in order.

        Raises `ValueError` when the number of positions is not N.
        """
        places = ids == image_token
        if int(places.sum()) != len(visual):
            raise ValueError(f"the prompts hold {int(places.sum())} image positions, the images and regions give {len(visual)}")
        embeds = self.language_model.get_input_embeddings()(sent(ids, visual.device))
        return embeds.masked_scatter(sent(places[..., None], visual.device), visual.to(embeds.dtype))

    def positions(self, ids: Tensor, mask: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return (R, B, L) positions of rows that begin with an image each, of these grids; padding (`mask` 0) does not count. What
        follows counts on from the highest."""
        return (mask.cumsum(-1) - 1).clamp(min=0)[None]

    def attention(self, inputs: Inputs) -> Any:
        """Return `Inputs.attention` in the form that the language model takes it: by kind of layer, as most do."""
        return {"full_attention": inputs.attention()}

    def run(self, inputs: Inputs, cache: Cache | None = None) -> States:
        """Return the language model's last states; with a `cache` it goes on from what is in it, and leaves the new keys and values."""
        states = self.language_model.model(
            inputs_embeds=inputs.embeds,
            attention_mask=self.attention(inputs),
            position_ids=inputs.positions[0],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return States(states, states)


@dataclass(frozen=True)
class Family(Plug):
    """A vision-language model as its `config.json` describes it; no weights. A file of `ans/model/families` has one, `Family`."""

    system: ClassVar[str]
    """What a model card calls the whole."""

    title: ClassVar[str]
    """What a model card calls the vision-language model."""

    decoder: ClassVar[str]
    """Its mask decoder, a file of `ans/model/decoders`, where `config.json` has no section of another one."""

    tables: ClassVar[tuple[str, str]]
    """HF names of the token embeddings and of the output layer's weight."""

    lora_targets: ClassVar[tuple[str, ...]]
    """Linear layers of the language model that LoRA adapts in the official recipe, by the last part of their names."""

    regions: ClassVar[bool]
    """Whether its releases were taught region prompts."""

    videos: ClassVar[bool] = False
    """Whether a question may be about several frames of a video."""

    new_tokens: ClassVar[tuple[str, ...]]
    """Tokens that a new base adds to the released vocabulary, in the order that fixes their ids."""

    remote: ClassVar[Mapping[str, str]]
    """What reads the folder in transformers itself: its class -> module and class in the official repository; may be empty."""

    code: ClassVar[str] = ""
    """The official repository that `remote` is in."""

    keys: ClassVar[KeyTable]
    """Its tensors' names, with the spaces `model` and `pth` at least."""

    language: PretrainedConfig
    """The language model's own configuration."""

    template: Template

    @classmethod
    @abstractmethod
    def owns(cls, values: Mapping[str, Any]) -> bool:
        """Return whether this `config.json` is of a model of this family."""

    @classmethod
    @abstractmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return the model that `config.json`, without the mask decoder's section, describes.

        Raises `KeyError`, or `ValueError` naming a key that is not supported.
        """

    @abstractmethod
    def grid(self, height: int, width: int, max_tiles: int | None = None) -> Grid:
        """Return the image tokens of an image of this size in pixels. `max_tiles` caps the tiles below the model's own number."""

    @abstractmethod
    def pixels(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        """Return an RGB image as the vision encoder takes it, with `grid` of its size."""

    @abstractmethod
    def build(self) -> Vlm:
        """Return the modules with random weights, on the device that is the default."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.system} on {self.title}"

    @property
    def tied(self) -> dict[str, str]:
        """HF name of each tensor that may be in no file -> that of the tensor that it equals."""
        embedding, output = self.tables
        return {output: embedding} if self.language.tie_word_embeddings else {}

    @classmethod
    def for_remote(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return `config.json` in the form that `remote` reads, which may ask for more than is needed here."""
        return dict(values)

    # -------------------------------------------------------------------------------- a base of what was released without `[SEG]`

    @classmethod
    @abstractmethod
    def made_of(cls, values: Mapping[str, Any]) -> bool:
        """Return whether this is the `config.json` of a released vision-language model that a base of this family is made of."""

    @classmethod
    @abstractmethod
    def assembled(cls, values: Mapping[str, Any], tokens: int | None = None) -> dict[str, Any]:
        """Return the base's `config.json` from the released one. `tokens`: how many the tokenizer has with `new_tokens`; None: not known
        yet."""

    @classmethod
    def released_name(cls, name: str) -> str:
        """Return the HF name of a tensor of the released vision-language model."""
        return name
