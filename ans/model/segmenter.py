"""The segmenting vision-language model: InternVL and SAM2 joined by `[SEG]`. This is the public API.

model = Segmenter.from_pretrained("models/variants/full")
model.segment([image], [["the left cup", "the man in red"]])   # per image, per expression: answer and masks
model.describe([image], [masks])                               # per image, per region: a caption
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ans.checkpoints.layout import hf_to_model
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.generate import Generated, greedy, prefill
from ans.model.grounding import Masks, Sam2
from ans.model.preprocess import normalise, sam_image, tiles
from ans.model.visual_prompt import region_cells
from ans.model.vlm import InternVL


@dataclass(frozen=True)
class Features:
    """What the frozen encoders say about B images; computed once, then handed around.

    `tiles`: per image (T_i, G*G, C) ViT features, the overall view last. `levels`: SAM2's FPN maps, (B, D, S/4, S/4) and coarser.
    `sizes`: (height, width) of each image in pixels.
    """

    tiles: list[Tensor]
    levels: tuple[Tensor, Tensor, Tensor]
    sizes: list[tuple[int, int]]


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
    `regions`: per row None, or (n, G, G) bool grid cells of its region prompts."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    image_index: list[int]
    regions: list[Tensor | None]


@dataclass(frozen=True)
class Forward:
    """`hidden` (B, L, D); `language_loss` summed over `language_tokens` labels; `seg_embeds` (N, 256) of every `[SEG]` in row
    order, on image `seg_image[n]`."""

    hidden: Tensor
    language_loss: Tensor
    language_tokens: int
    seg_embeds: Tensor
    seg_image: Tensor


class Segmenter(nn.Module):
    """See the module's docstring. Everything that the model reads comes from its folder: sizes, template, tokenizer, weights."""

    def __init__(self, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, vlm: InternVL | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.template = prompts.TEMPLATES[config.template]
        self.image_token, self.image_end, self.seg_token = (
            self._token_id(text) for text in (prompts.IMAGE_TOKEN, prompts.IMAGE_END, prompts.SEG_TOKEN)
        )
        self.vlm = vlm or InternVL(config)
        self.sam = Sam2(config.sam2)
        width = config.language.hidden_size
        self.text_hidden_fcs = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.sam2.d_model))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Segmenter":
        """Load a folder in the official Hugging Face layout, strictly: a missing, unexpected or mis-shaped tensor is an error.

        With `dtype=torch.bfloat16` the vision-language model is held in bf16; SAM2 and `text_hidden_fcs` stay float32, as in
        training.
        """
        folder = Path(folder)
        config = ModelConfig.from_folder(folder)
        if config.template not in prompts.TEMPLATES:
            raise ValueError(
                f"{folder / 'config.json'}: template: {config.template!r} is unknown; there are {', '.join(prompts.TEMPLATES)}"
            )
        tokenizer = load_tokenizer(folder, config)
        with torch.device("meta"):  # no time or memory for random weights that the file replaces
            vlm = InternVL(config)
        model = cls(config, tokenizer, vlm)
        state = hf_to_model(_read_folder(folder))
        if config.language.tie_word_embeddings:
            state.setdefault("vlm.language_model.lm_head.weight", state["vlm.language_model.model.embed_tokens.weight"])
        state = {name: tensor.to(dtype if name.startswith("vlm.") else torch.float32) for name, tensor in state.items()}
        _check_names(folder, model, state)
        model.load_state_dict(state, strict=True, assign=True)
        rotary = vlm.language_model.model.rotary_emb  # its frequencies are in no file, so they are still on the meta device
        vlm.language_model.model.rotary_emb = type(rotary)(config=config.language)
        return model.to(device).eval()

    def _token_id(self, text: str) -> int:
        token = self.tokenizer.convert_tokens_to_ids(text)
        if token is None or token == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {text}; a Sa2VA tokenizer knows it as one token")
        return token

    # ---------------------------------------------------------------- images

    @property
    def device(self) -> torch.device:
        return self.text_hidden_fcs[0].weight.device

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image], max_tiles: int | None = None) -> Features:
        """Run the frozen encoders once over RGB images. `max_tiles` caps the tiles below the model's own number."""
        config = self.config
        limit = min(config.max_tiles, max_tiles or config.max_tiles)
        cut = [tiles(image, config.image_size, config.min_tiles, limit, config.use_thumbnail) for image in images]
        return self.encode_pixels(
            [normalise(parts) for parts in cut],
            normalise([sam_image(image, config.sam2.image_size) for image in images]),
            [(image.height, image.width) for image in images],
        )

    @torch.no_grad()
    def encode_pixels(self, tile_pixels: Sequence[Tensor], sam_pixels: Tensor, sizes: list[tuple[int, int]]) -> Features:
        """As `encode_images`, from normalised pixels: per image (T_i, 3, S, S), and (B, 3, 1024, 1024) for SAM2."""
        dtype = self.vlm.vision_model.embeddings.cls_token.dtype
        features = self.vlm.encode(torch.cat(list(tile_pixels)).to(self.device, dtype))
        levels = self.sam.encode(sam_pixels.to(self.device))
        return Features(list(features.split([len(pixels) for pixels in tile_pixels])), levels, sizes)

    # ---------------------------------------------------------------- training

    def forward(self, features: Features, batch: Conversations) -> Forward:
        """Teacher-forced forward of a batch of conversations over images that `encode_images` has seen."""
        visual = self._visual_tokens(features)
        per_row = [_with_regions(visual[i], cells) for i, cells in zip(batch.image_index, batch.regions, strict=True)]
        embeds = self.vlm.embed(batch.ids, torch.cat(per_row), self.image_token)
        hidden = self.vlm.hidden_states(embeds, batch.mask)
        shifted = F.pad(batch.labels[:, 1:], (0, 1), value=prompts.IGNORE)
        labelled = shifted != prompts.IGNORE
        logits = self.vlm.language_model.lm_head(hidden[labelled])
        loss = F.cross_entropy(logits.float(), shifted[labelled], reduction="sum")
        seg = batch.ids == self.seg_token
        rows = torch.tensor(batch.image_index, device=batch.ids.device)[:, None].expand_as(batch.ids)
        return Forward(hidden, loss, int(labelled.sum()), self.seg_embed(hidden[seg]), rows[seg])

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
    def segment(
        self, images: Sequence[Image.Image] | Features, expressions: Sequence[Sequence[str]], max_new_tokens: int = 512
    ) -> list[list[Segmentation]]:
        """Segment every expression of every image by free greedy generation.

        `images` are RGB images, or what `encode_images` made of them. Raises `ValueError` when the two lists differ in length.
        """
        features = self._features(images)
        _same_length("expressions", expressions, features)
        texts = [[prompts.SEGMENT_PROMPT.format(text) for text in row] for row in expressions]
        rows = [(i, text, None) for i, row in enumerate(texts) for text in row]
        answers = self._generate(features, rows, max_new_tokens)
        counts = [len(answer.seg_states) for answer in answers]
        found: list[np.ndarray] = [np.zeros((0, *features.sizes[i]), dtype=bool) for i, _, _ in rows]
        if sum(counts):
            image_index = torch.tensor([i for (i, _, _), count in zip(rows, counts, strict=True) for _ in range(count)])
            prompt = self.seg_embed(torch.cat([answer.seg_states for answer in answers]))
            low_res = self.masks(features, image_index.to(self.device), prompt).low_res
            for number, chunk in enumerate(low_res.split(counts)):
                if len(chunk):
                    found[number] = (self.upscale(chunk, features.sizes[rows[number][0]]) > 0).cpu().numpy()
        results = iter(Segmentation(self._decode(a.ids), masks) for a, masks in zip(answers, found, strict=True))
        return [[next(results) for _ in row] for row in expressions]

    @torch.no_grad()
    def describe(
        self, images: Sequence[Image.Image] | Features, masks: Sequence[np.ndarray], max_new_tokens: int = 512
    ) -> list[list[str]]:
        """Caption every region of every image. `masks`: per image (n, h, w), non-zero inside; each region is asked alone.

        Raises `ValueError` for an empty mask or when the two lists differ in length.
        """
        features = self._features(images)
        _same_length("masks", masks, features)
        rows = []
        for i, regions in enumerate(masks):
            cells = region_cells(torch.as_tensor(np.asarray(regions) > 0), self.config.grid_side)
            rows += [(i, self.region_question(cell[None], prompts.DESCRIBE_PROMPT), cell[None]) for cell in cells]
        answers = iter(self._generate(features, rows, max_new_tokens))
        return [[self._decode(next(answers).ids, stop_word=False) for _ in regions] for regions in masks]

    @staticmethod
    def region_question(cells: Tensor, question: str) -> str:
        """The text of a question about regions (n, G, G), as evaluation asks it (an empty line before the question)."""
        return prompts.region_string(cells.flatten(1).sum(1).tolist(), "\n\n") + question

    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, S/4, S/4) logits -> (N, h, w): bilinear to SAM2's own size, then to the image's, as the official model does."""
        side = self.config.sam2.image_size
        full = F.interpolate(low_res[:, None].float(), size=(side, side), mode="bilinear", align_corners=False)
        return F.interpolate(full, size=size, mode="bilinear", align_corners=False)[:, 0]

    def _features(self, images: Sequence[Image.Image] | Features) -> Features:
        return images if isinstance(images, Features) else self.encode_images(images)

    def _generate(self, features: Features, rows: list[tuple[int, str, Tensor | None]], max_new_tokens: int) -> list[Generated]:
        """Answers to (image, text, region cells) rows. What all rows of an image share, up to its last image token, runs once."""
        if not rows:
            return []
        visual = self._visual_tokens(features)
        beginnings: dict[int, Tensor] = {}
        suffixes, index = [], []
        for i, text, cells in rows:
            tokens = visual[i].flatten(0, 1)
            ids = prompts.encode_prompt(self.tokenizer, self.template, prompts.image_string(len(tokens)) + text)
            cut = ids.index(self.image_end) + 1
            if i not in beginnings:
                beginnings[i] = self._embed(ids[:cut], tokens)
            region = visual[i].new_zeros(0, tokens.shape[-1]) if cells is None else _region_tokens(visual[i], cells)
            suffixes.append(self._embed(ids[cut:], region))
            index.append(list(beginnings).index(i))
        language_model = self.vlm.language_model
        prefix = prefill(language_model, list(beginnings.values())).rows(torch.tensor(index, device=self.device))
        return greedy(language_model, prefix, suffixes, self._ended, self.seg_token, max_new_tokens)

    def _embed(self, ids: list[int], visual: Tensor) -> Tensor:
        return self.vlm.embed(torch.tensor([ids], device=self.device), visual, self.image_token)[0]

    def _ended(self, ids: list[int]) -> bool:
        """True at the tokenizer's end token, or when the text ends with one of the template's stop words."""
        if ids[-1] == self.tokenizer.eos_token_id:
            return True
        longest = max((len(word) for word in self.template.stop_words), default=0)
        tail = self.tokenizer.decode(ids[-longest:] if longest else []).replace("\r", "").replace("\n", "")
        return tail.endswith(self.template.stop_words) if longest else False

    def _decode(self, ids: list[int], stop_word: bool = True) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        if not stop_word:
            for word in self.template.stop_words:
                text = text.removesuffix(word)
        return text.strip()


def load_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, exactly as `tokenizer.json` has it; a folder without one is read by the class that it names.

    `AutoTokenizer` would rebuild a `tokenizer.json` by the rules of the language model's own class, and split words otherwise.
    """
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, config=config.language)


def _region_tokens(visual: Tensor, cells: Tensor) -> Tensor:
    """Image tokens of the overall view (the last tile) in the cells (n, G, G), region by region."""
    return torch.cat([visual[-1][cell.flatten().to(visual.device)] for cell in cells])


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


def _same_length(name: str, values: Sequence[object], features: Features) -> None:
    if len(values) != len(features.sizes):
        raise ValueError(f"{name}: {len(values)} lists for {len(features.sizes)} images")
