"""The segmenting vision-language model: a vision-language part and a mask part joined by `[SEG]`. This is the public API.

model = Segmenter.from_pretrained("models/variants/full")
model.segment([image], [["the left cup", "the man in red"]])   # per image, per expression: answer and masks
model.describe([image], [masks])                               # per image, per region: a caption

An image is PIL's, an array (h, w, 3) or a tensor (3, h, w); masks are (n, h, w), arrays or tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ans.checkpoints.layout import hf_to_model
from ans.config.schema import Part
from ans.model import prompts
from ans.model.config import LisaConfig, ModelConfig, Sa2vaConfig
from ans.model.four_bit import hold_in_four_bits
from ans.model.generate import Generated, Prefix, forced, greedy, prefill
from ans.model.grounding import Levels, Masks, Sam, Sam2
from ans.model.preprocess import ImageLike, as_image
from ans.model.visual_prompt import region_cells
from ans.model.vlm import InternVL, Llava, Vlm

_PARTS = {Sa2vaConfig: (InternVL, Sam2), LisaConfig: (Llava, Sam)}
"""The two parts of each system; nothing else asks which one it is."""


@dataclass(frozen=True)
class Features:
    """What the frozen encoders say about B images; computed once, then handed around.

    `tiles`: per image (T_i, G*G, C) ViT features, the overall view last. `levels`: the maps of the mask part's image encoder.
    `sizes`: (height, width) of each image in pixels.
    """

    tiles: list[Tensor]
    levels: Levels
    sizes: list[tuple[int, int]]

    @classmethod
    def join(cls, parts: Sequence["Features"]) -> "Features":
        """Those of several images from those of each; images that are not segmented, which have no levels, come last."""
        levels = tuple(torch.cat(maps) for maps in zip(*(part.levels for part in parts if part.levels), strict=True))
        return cls([tiles for part in parts for tiles in part.tiles], levels, [size for part in parts for size in part.sizes])


@dataclass(frozen=True)
class Read:
    """What the model keeps of B images that it has read. `visual`: per image (T_i, G*G, D) image tokens. `levels`: what the mask
    decoder reads. `sizes`: (height, width) in pixels. `prefix`: the language model's keys and values up to each image's end."""

    visual: list[Tensor]
    levels: Levels
    sizes: list[tuple[int, int]]
    prefix: Prefix


Row = tuple[int, str, Tensor | None]
"""One question: the number of its image, its text, and the grid cells (n, G, G) of its regions."""

IMAGES_AT_ONCE, MASKS_AT_ONCE = 16, 32
"""Encoded, and decoded, in one go: so much that the machine is busy, so little that large batches fit into memory."""


@dataclass(frozen=True)
class Segmentation:
    """The answer to one expression. `masks` (n, h, w) bool, one per `[SEG]` that the answer holds, at the image's size; `mask` is
    their union, empty where no `[SEG]` was said."""

    answer: str
    masks: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return self.masks.any(0)


@dataclass(frozen=True)
class Conversations:
    """A right-padded batch for the training forward. `ids`, `labels`, `mask`: (B, L). `image_index` (B,): the image of each row.
    `regions`: per row None, or (n, G, G) grid cells of its region prompts: bool, or float with zero outside, and then the cells'
    tokens are multiplied by it. `embeds` (N, D), if given, take the places that `embeds_at` (B, L) marks, in order."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    image_index: list[int]
    regions: list[Tensor | None]
    embeds: Tensor | None = None
    embeds_at: Tensor | None = None


@dataclass(frozen=True)
class Forward:
    """`hidden` (B, L, D). Of the M labelled positions in row order: `labels` (M,) and the `logits` (M, V) that predict them.
    `seg_embeds` (N, 256) of every `[SEG]` in row order, on image `seg_image[n]`."""

    hidden: Tensor
    logits: Tensor
    labels: Tensor
    seg_embeds: Tensor
    seg_image: Tensor

    @property
    def language_loss(self) -> Tensor:
        """Next-token cross-entropy, summed over the labels."""
        return F.cross_entropy(self.logits.float(), self.labels, reduction="sum")


class Segmenter(nn.Module):
    """See the module's docstring. Everything that the model reads comes from its folder: sizes, template, tokenizer, weights."""

    def __init__(self, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, vlm: Vlm | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.template = prompts.TEMPLATES[config.template]
        self.image_token, self.image_last, self.seg_token = (
            self._token_id(text) for text in (self.template.image_token, self.template.image_last, prompts.SEG_TOKEN)
        )
        self.vlm = vlm or new_vlm(config)
        self.sam = _PARTS[type(config)][1](config)
        width = config.language.hidden_size
        self.text_hidden_fcs = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.mask_width))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        four_bit: Sequence[Part] = (),
    ) -> "Segmenter":
        """Load a folder in the official Hugging Face layout, strictly: a missing, unexpected or mis-shaped tensor is an error.

        With `dtype=torch.bfloat16` the vision-language model is held in bf16; the mask part and `text_hidden_fcs` stay float32,
        as in training. The linear layers of the parts in `four_bit` are held in 4 bits on top of that.
        """
        folder = Path(folder)
        config = ModelConfig.from_folder(folder)
        if config.template not in prompts.TEMPLATES:
            raise ValueError(
                f"{folder / 'config.json'}: template: {config.template!r} is unknown; there are {', '.join(prompts.TEMPLATES)}"
            )
        tokenizer = load_tokenizer(folder, config)
        with torch.device("meta"):  # no time or memory for random weights that the file replaces
            vlm = new_vlm(config)
        model = cls(config, tokenizer, vlm)
        files = _read_folder(folder)
        for name, same in config.tied.items():
            if same in files:
                files.setdefault(name, files[same])
        state = hf_to_model(files)
        state = {name: tensor.to(dtype if name.startswith("vlm.") else torch.float32) for name, tensor in state.items()}
        _check_names(folder, model, state)
        model.load_state_dict(state, strict=True, assign=True)
        vlm.restore_buffers()
        frozen = {"language": vlm.language_model.model, "vision": vlm.vision, "sam": model.sam.encoder}
        for part in four_bit:
            hold_in_four_bits(frozen[part], torch.device(device))
        vlm.language_model.is_loaded_in_4bit = "language" in four_bit  # what PEFT asks
        return model.to(device).eval()

    def _token_id(self, text: str) -> int:
        token = self.tokenizer.convert_tokens_to_ids(text)
        if token is None or token == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {text}; this model's tokenizer must know it as one token")
        return token

    @cached_property
    def text_tokens(self) -> Tensor:
        """Ids (n,) of the tokens that stand for text: none that is special or was added to the vocabulary."""
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        return torch.tensor([number for number in range(len(self.tokenizer)) if number not in special])

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that the tokenizer has no token for; tokenizers made of bytes have one for everything."""
        unknown = self.tokenizer.unk_token_id
        words = {word: self.tokenizer.encode(word, add_special_tokens=False) for word in text.split()}
        return [word for word, ids in words.items() if unknown is not None and unknown in ids]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, no dropout and no gradients; afterwards the mode is as it was."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            torch.clear_autocast_cache()  # copies of parameters that were made without a gradient
            self.train(training)

    # ---------------------------------------------------------------- images

    @property
    def device(self) -> torch.device:
        return self.text_hidden_fcs[0].weight.device

    @torch.no_grad()
    def encode_images(self, images: Sequence[ImageLike], max_tiles: int | None = None) -> Features:
        """Run the frozen encoders once over images, PIL's, arrays or tensors (see `preprocess.as_image`). `max_tiles` caps the
        tiles below the model's own number."""
        images = list(map(as_image, images))
        return self.encode_pixels(
            [self.config.tiles(image, max_tiles) for image in images],
            torch.stack([self.config.sam_pixels(image) for image in images]),
            [(image.height, image.width) for image in images],
        )

    @torch.no_grad()
    def encode_pixels(self, tile_pixels: Sequence[Tensor], sam_pixels: Tensor, sizes: list[tuple[int, int]]) -> Features:
        """As `encode_images`, from normalised pixels: per image (T_i, 3, S, S), and (n, 3, 1024, 1024) of the first n images for
        the mask part."""
        features = self.vlm.encode(torch.cat(list(tile_pixels)).to(self.device, self.vlm.dtype))
        levels = self.sam.encode(sam_pixels.to(self.device, self.sam.dtype)) if len(sam_pixels) else ()
        return Features(list(features.split([len(pixels) for pixels in tile_pixels])), levels, sizes)

    # ---------------------------------------------------------------- training

    def forward(self, features: Features, batch: Conversations) -> Forward:
        """Teacher-forced forward of a batch of conversations over images that `encode_images` has seen."""
        visual = self._visual_tokens(features)
        per_row = [_with_regions(visual[i], cells) for i, cells in zip(batch.image_index, batch.regions, strict=True)]
        embeds = self.vlm.embed(batch.ids, torch.cat(per_row), self.image_token)
        if batch.embeds is not None:
            embeds = embeds.masked_scatter(batch.embeds_at[..., None], batch.embeds.to(embeds.dtype))
        hidden = self.vlm.hidden_states(embeds, batch.mask)
        shifted = F.pad(batch.labels[:, 1:], (0, 1), value=prompts.IGNORE)
        labelled = shifted != prompts.IGNORE
        logits = self.vlm.language_model.lm_head(hidden[labelled])
        seg = batch.ids == self.seg_token
        rows = torch.tensor(batch.image_index, device=batch.ids.device)[:, None].expand_as(batch.ids)
        return Forward(hidden, logits, shifted[labelled], self.seg_embed(hidden[seg]), rows[seg])

    def seg_embed(self, states: Tensor) -> Tensor:
        """(N, D) hidden states at `[SEG]` -> (N, 256) prompt vectors for the mask decoder."""
        return self.text_hidden_fcs(states.to(self.text_hidden_fcs[0].weight.dtype))

    def masks(self, features: Features, image_index: Tensor, prompt: Tensor) -> Masks:
        """Masks for prompt vectors (N, 256), the n-th on image `image_index[n]`."""
        return self.sam.decode(self.sam.project(features.levels), image_index, prompt)

    def _visual_tokens(self, features: Features) -> list[Tensor]:
        """Per image (T_i, G*G, D) image tokens."""
        return list(self.vlm.project(torch.cat(features.tiles)).split([len(tiles) for tiles in features.tiles]))

    # ---------------------------------------------------------------- inference

    @torch.no_grad()
    def read(
        self,
        images: Sequence[ImageLike] | Features | Read,
        encode: Callable[[Sequence[ImageLike]], Features] | None = None,
    ) -> Read:
        """Everything that answers about these images share, made once: `segment`, `segment_given` and `describe` take it too.

        Images are encoded `IMAGES_AT_ONCE` at a time, by `encode`: something that does as `encode_images`, which is the default.
        Raises `ValueError` when there is none.
        """
        if isinstance(images, Read):
            return images
        if not isinstance(images, Features) and len(images) == 0:
            raise ValueError("images: there is none")
        parts = [images] if isinstance(images, Features) else map(encode or self.encode_images, _chunks(images, IMAGES_AT_ONCE))
        visual, levels, sizes = [], [], []
        for features in parts:  # the encoders' large maps go as soon as they are projected
            visual += self._visual_tokens(features)
            levels.append(self.sam.project(features.levels))
            sizes += features.sizes
        ids = prompts.encode_prompt(self.tokenizer, self.template, self.template.image_string(1))
        place, last = ids.index(self.image_token), ids.index(self.image_last)
        beginnings = []
        for tokens in visual:
            whole = [*ids[:place], *[self.image_token] * len(tokens.flatten(0, 1)), *ids[place + 1 : last + 1]]
            beginnings.append(self._embed(whole, tokens.flatten(0, 1)))
        joined = tuple(torch.cat(level) for level in zip(*levels, strict=True))
        return Read(visual, joined, sizes, prefill(self.vlm.language_model, beginnings))

    @torch.no_grad()
    def segment(
        self,
        images: Sequence[ImageLike] | Features | Read,
        expressions: Sequence[Sequence[str]],
        max_new_tokens: int = 512,
    ) -> list[list[Segmentation]]:
        """Segment every expression of every image by free greedy generation.

        `images` are RGB images, or what `encode_images` or `read` made of them. Raises `ValueError` when the two lists differ in
        length.
        """
        read = self.read(images)
        rows = self._referring_rows(read, expressions)
        answers = self._generate(read, rows, max_new_tokens)
        masks = self._mask_rows(read, rows, [answer.seg_states for answer in answers])
        results = iter(Segmentation(self._decode(a.ids), found) for a, found in zip(answers, masks, strict=True))
        return [[next(results) for _ in row] for row in expressions]

    @torch.no_grad()
    def segment_given(
        self, images: Sequence[ImageLike] | Features | Read, expressions: Sequence[Sequence[str]], answer: str
    ) -> list[list[Segmentation]]:
        """As `segment`, but every answer is `answer`, teacher-forced: what the masks would be, had the model said that.

        Raises `ValueError` when the answer has no `[SEG]`, or when the two lists differ in length.
        """
        read = self.read(images)
        rows = self._referring_rows(read, expressions)
        ids = self.tokenizer.encode(answer, add_special_tokens=False)
        said = [position for position, token in enumerate(ids) if token == self.seg_token]
        if not said:
            raise ValueError(f"answer: {answer!r} has no {prompts.SEG_TOKEN}, so there is no mask in it")
        if not rows:
            return [[] for _ in expressions]
        embeds = self._embed(ids, read.visual[0].new_zeros(0, read.visual[0].shape[-1]))
        states = forced(self.vlm.language_model, *self._continued(read, rows), embeds)
        masks = iter(self._mask_rows(read, rows, list(states[:, said])))
        return [[Segmentation(answer, next(masks)) for _ in row] for row in expressions]

    @torch.no_grad()
    def describe(
        self,
        images: Sequence[ImageLike] | Features | Read,
        masks: Sequence[np.ndarray | Tensor],
        max_new_tokens: int = 512,
    ) -> list[list[str]]:
        """Caption every region of every image. `masks`: per image (n, h, w), non-zero inside; each region is asked alone.

        Raises `ValueError` for an empty mask, when the two lists differ in length, or for a model that knows no regions.
        """
        if not self.template.regions:
            raise ValueError(f"template {self.config.template}: this model was not taught to describe regions")
        read = self.read(images)
        _same_length("masks", masks, read)
        rows = []
        for i, regions in enumerate(masks):
            inside = regions.cpu() if isinstance(regions, Tensor) else torch.from_numpy(np.asarray(regions))
            cells = region_cells(inside > 0, self.config.grid_side) if len(regions) else []
            rows += [(i, self.region_question(cell[None], prompts.DESCRIBE_PROMPT), cell[None]) for cell in cells]
        answers = iter(self._generate(read, rows, max_new_tokens))
        return [[self._decode(next(answers).ids, stop_word=False) for _ in regions] for regions in masks]

    @torch.no_grad()
    def caption_ids(
        self, features: Features, image_index: Sequence[int], cells: Tensor, questions: Sequence[str], max_new_tokens: int
    ) -> tuple[list[list[int]], list[bool], list[float]]:
        """Greedy captions of regions `cells` (R, G, G), the r-th on image `image_index[r]`, as ids of text tokens; whether each
        came to its end; and the geometric mean of its tokens' probabilities."""
        rows = [(i, self.region_question(c[None], q), c[None]) for i, c, q in zip(image_index, cells, questions, strict=True)]
        answers = self._generate(features, rows, max_new_tokens)
        captions = [self._text_ids(answer.ids) for answer in answers]
        return captions, [self._ended(answer.ids) for answer in answers], [answer.confidence for answer in answers]

    @staticmethod
    def region_question(cells: Tensor, question: str) -> str:
        """The text of a question about regions (n, G, G), as evaluation asks it (an empty line before the question)."""
        return prompts.region_string(cells.flatten(1).sum(1).tolist(), "\n\n") + question

    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, S/4, S/4) logits -> (N, h, w): bilinear to the mask part's own size, then to the image's."""
        return self.config.upscale(low_res, size)

    def _referring_rows(self, read: Read, expressions: Sequence[Sequence[str]]) -> list[Row]:
        _same_length("expressions", expressions, read)
        return [(i, self.template.segment_question(text), None) for i, texts in enumerate(expressions) for text in texts]

    def _generate(self, images: Features | Read, rows: list[Row], max_new_tokens: int) -> list[Generated]:
        """Answers to (image, text, region cells) rows. What all rows of an image share, up to its last image token, runs once."""
        if not rows:
            return []
        prefix, suffixes = self._continued(self.read(images), rows)
        return greedy(self.vlm.language_model, prefix, suffixes, self._ended, self.seg_token, max_new_tokens)

    def _continued(self, read: Read, rows: list[Row]) -> tuple[Prefix, tuple[Tensor, ...]]:
        """Each row's prefix, and the embeddings (S_i, D) of its prompt from the image's end on."""
        suffixes, regions = [], [read.visual[0].new_zeros(0, read.visual[0].shape[-1])]
        for i, text, cells in rows:
            # One image token stands for all: the text behind the image's end is cut into the same ids, many times faster.
            ids = prompts.encode_prompt(self.tokenizer, self.template, self.template.image_string(1) + text)
            suffixes.append(ids[ids.index(self.image_last) + 1 :])
            if cells is not None:
                regions.append(_region_tokens(read.visual[i], cells))
        embeds = self._embed([token for ids in suffixes for token in ids], torch.cat(regions))
        prefix = read.prefix.rows(torch.tensor([i for i, _, _ in rows], device=self.device))
        return prefix, embeds.split([len(ids) for ids in suffixes])

    def _mask_rows(self, read: Read, rows: list[Row], states: Sequence[Tensor]) -> list[np.ndarray]:
        """Masks (n, h, w) bool of each row from the states (n, D) of its `[SEG]`s, decoded together `MASKS_AT_ONCE` at a time."""
        owners = [i for (i, _, _), found in zip(rows, states, strict=True) for _ in found]
        masks: list[np.ndarray] = []
        for start in range(0, len(owners), MASKS_AT_ONCE):
            if not start:
                prompt = self.seg_embed(torch.cat(list(states)))
            chunk = owners[start : start + MASKS_AT_ONCE]
            index = torch.tensor(chunk, device=self.device)
            low_res = self.sam.decode(read.levels, index, prompt[start : start + MASKS_AT_ONCE]).low_res
            runs = [(i, len(list(same))) for i, same in groupby(chunk)]
            for (i, _), logits in zip(runs, low_res.split([count for _, count in runs]), strict=True):
                masks += list((self.upscale(logits, read.sizes[i]) > 0).cpu().numpy())
        taken = iter(masks)
        return [
            np.array(list(islice(taken, len(found))), dtype=bool).reshape(len(found), *read.sizes[i])
            for (i, _, _), found in zip(rows, states, strict=True)
        ]

    def _embed(self, ids: list[int], visual: Tensor) -> Tensor:
        return self.vlm.embed(torch.tensor([ids], device=self.device), visual, self.image_token)[0]

    def _ended(self, ids: list[int]) -> bool:
        """True at the tokenizer's end token, or when the text ends with one of the template's stop words."""
        if ids[-1] == self.tokenizer.eos_token_id:
            return True
        longest = max((len(word) for word in self.template.stop_words), default=0)
        tail = self.tokenizer.decode(ids[-longest:] if longest else []).replace("\r", "").replace("\n", "")
        return tail.endswith(self.template.stop_words) if longest else False

    def _text_ids(self, ids: list[int]) -> list[int]:
        """The tokens of an answer that stand for text, without the stop word, which may be text to the tokenizer as well
        (Sa2VA-4B's `<|end|>`), and then share a token with the words before it."""
        text = set(self.text_tokens.tolist())
        kept = [i for i in ids if i in text]
        said = self.tokenizer.decode(kept)
        for word in self.template.stop_words:
            if said.rstrip().endswith(word):
                return self.tokenizer.encode(said.rstrip().removesuffix(word).rstrip(), add_special_tokens=False)
        return kept

    def _decode(self, ids: list[int], stop_word: bool = True) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        if not stop_word:
            for word in self.template.stop_words:
                text = text.removesuffix(word)
        return text.strip()


def new_vlm(config: ModelConfig) -> Vlm:
    """The vision-language part with random weights, on the device that is the default."""
    return _PARTS[type(config)][0](config)


def load_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, exactly as `tokenizer.json` has it; a folder without one is read by the class that it names.

    `AutoTokenizer` would rebuild a `tokenizer.json` by the rules of the language model's own class, and split words otherwise.
    """
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, config=config.language)


def _region_tokens(visual: Tensor, cells: Tensor) -> Tensor:
    """Image tokens of the overall view (the last tile) in the cells (n, G, G), region by region; see `Conversations.regions`."""
    flat = cells.flatten(1).to(visual.device)
    tokens = [visual[-1][inside] for inside in flat != 0]
    if cells.dtype != torch.bool:
        tokens = [token * weight[weight != 0][:, None].to(token.dtype) for token, weight in zip(tokens, flat, strict=True)]
    return torch.cat(tokens)


def _with_regions(visual: Tensor, cells: Tensor | None) -> Tensor:
    """All image tokens (T*G*G, D) of one row, followed by those of its regions."""
    everything = visual.flatten(0, 1)
    return everything if cells is None else torch.cat([everything, _region_tokens(visual, cells)])


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files. Raises `FileNotFoundError` when there is none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no *.safetensors file in this model folder")
    state: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                if key in state:
                    raise ValueError(f"{path}: {key} is in another file of this folder too")
                state[key] = file.get_tensor(key)
    return state


def _check_names(folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"missing {name}" for name in sorted(expected.keys() - state.keys())]
    problems += [f"unexpected {name}" for name in sorted(state.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(state[name].shape)}, config.json says {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(f"{folder}: the tensors do not fit the model: {'; '.join(problems[:5])}{more}")


def _same_length(name: str, values: Sequence[object], read: Read) -> None:
    if len(values) != len(read.sizes):
        raise ValueError(f"{name}: {len(values)} lists for {len(read.sizes)} images")


def _chunks(values: Sequence[ImageLike], size: int) -> list[Sequence[ImageLike]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
