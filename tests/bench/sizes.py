"""Models of the official sizes with random weights, and micro-batches of random content for them. No file and no network.

Needs what training needs, and no data.
"""

import dataclasses
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerFast

from ans.config import Config
from ans.data.arrow import Index
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.family import Grid, Pixels
from ans.model.segmenter import Segmenter
from ans.objectives import passes
from ans.objectives.batches import Images, Targets, pad_right
from ans.objectives.mask import point_candidates
from ans.planning.released import RELEASED
from ans.tasks import load as load_task
from ans.tasks import loop2, referring
from ans.tasks.base import AnyTask, Setting, Task

REPOSITORY = Path(__file__).parents[2]
_LOCATIONS = {"sa2va-1b": "ByteDance/Sa2VA-1B", "sa2va-4b": "ByteDance/Sa2VA-4B"}
SIZES = tuple(_LOCATIONS)


def official(size: str) -> ModelConfig:
    """The configuration of a released model (`SIZES`): InternVL2.5 with Qwen2.5, and SAM2-L at 1024 px."""
    return ModelConfig.from_dict(config_json(size))


def config_json(size: str) -> dict[str, Any]:
    """What the released model's `config.json` says."""
    return RELEASED[_LOCATIONS[size]]


def tokenizer(size: int, more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """`size` tokens: the special ones that the prompts use and `more`, and words w0, w1, ...; every other word is `<unk>`."""
    template = prompts.TEMPLATES["qwen_chat"]
    image = [template.image_token, template.image_start, template.image_end]
    sa2va = [prompts.SEG_TOKEN, "<p>", "</p>", template.region_start, template.region_end]
    special = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", *image, *sa2va, *more]
    names = [*special, *(f"w{i}" for i in range(size - len(special)))]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=10**9
    )


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Segmenter:
    """Random weights, drawn on `device`; as in training the vision-language model is held in `dtype` and the rest in float32."""
    torch.manual_seed(0)
    with device:
        vlm = config.family.build().to(dtype)
        model = Segmenter(config, tokenizer(config.language.vocab_size), vlm)
    return model.to(device)


# ---------------------------------------------------------------------------------------------------------- micro-batches


def tasks_of(model: Segmenter, config: Config) -> dict[str, AnyTask]:
    """The tasks that are on, without data: their losses work, their samples do not."""

    def no_index(name: str) -> Index:
        raise AssertionError(f"{name}: a benchmark opened an index")

    setting = Setting(config.train, model.config, model.tokenizer, REPOSITORY, no_index)
    tasks: dict[str, AnyTask] = {}
    for name, settings in config.tasks.items():
        kind = load_task(name)
        tasks[name] = kind.__new__(kind)
        Task.__init__(tasks[name], settings, setting)
    return tasks


def referring_batch(model: Segmenter, images: int, tiles: int, objects: int, mask_points: int) -> referring.Batch:
    """One conversation about each image, with `objects` expressions of eight words."""
    pixels, image = pixels_of(model, images, tiles), model.template.image_string(grid_of(model, tiles).tokens)
    turns = [
        prompts.Turn(("" if n else image) + prompts.SEG_QUESTIONS[0].format(_words(8)), prompts.SEG_ANSWERS[2])
        for n in range(objects)
    ]
    ids, labels, mask = pad_right([prompts.encode_conversation(model.tokenizer, model.template, turns)] * images)
    return referring.Batch(pixels, ids, labels, mask, list(range(images)), targets_of(model, images * objects, mask_points))


def mask_batch(model: Segmenter, images: int, caption_len: int, top_k: int, mask_points: int) -> passes.Batch:
    """One object per image, described and segmented there, which covers a quarter of the region grid."""
    rows, columns = grid_of(model, 1).region
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    inside[: rows // 2, : columns // 2] = True
    uniform = torch.rand(images, caption_len, top_k).clamp(1e-6, 1 - 1e-6)
    answers = [prompts.SEG_ANSWERS[2]] * images
    return passes.Batch(
        pixels_of(model, images, 1),
        list(range(images)),
        list(range(images)),
        [inside] * images,
        [prompts.DESCRIBE_PROMPT] * images,
        [prompts.SEG_QUESTIONS[0]] * images,
        answers,
        _answer_tokens(model, answers),
        torch.rand(images, caption_len, 2),
        -(-uniform.log()).log(),
        targets_of(model, images, mask_points),
        [("random", "random")] * images,
        [None] * images,
        [],
        [],
    )


def caption_batch(model: Segmenter, images: int, caption_len: int, mask_points: int) -> loop2.Batch:
    """One region per image, with a caption of `caption_len` tokens, the end token among them."""
    end = model.tokenizer.encode(model.template.suffix, add_special_tokens=False)
    caption = model.tokenizer.encode(_words(caption_len), add_special_tokens=False)[: caption_len - len(end)] + end
    answers = [prompts.SEG_ANSWERS[2]] * images
    return loop2.Batch(
        pixels_of(model, images, 1),
        [caption] * images,
        [_words(caption_len)] * images,
        [prompts.DESCRIBE_PROMPT] * images,
        [prompts.SEG_QUESTIONS[0]] * images,
        answers,
        _answer_tokens(model, answers),
        targets_of(model, images, mask_points),
        [("random", "random")] * images,
    )


def grid_of(model: Segmenter, tiles: int) -> Grid:
    """The image tokens of an image of so many tiles."""
    return dataclasses.replace(model.config.family.grid(1, 1, max_tiles=1), tiles=tiles)


def pixels_of(model: Segmenter, images: int, tiles: int) -> Images:
    config = model.config
    blank = Image.new("RGB", (64, 64))
    values = torch.randn(images, tiles, *config.family.pixels(blank, 1).values.shape[1:])
    sam = torch.randn(images, *config.decoder.pixels(blank).shape)
    return Images([Pixels(one, grid_of(model, tiles)) for one in values], sam, [(480, 640)] * images)


def targets_of(model: Segmenter, objects: int, mask_points: int) -> Targets:
    side = model.config.decoder.side
    candidates = point_candidates(mask_points) if mask_points else 0
    return Targets((torch.rand(objects, side, side) > 0.5).float(), torch.ones(objects, 2), torch.rand(objects, candidates, 2))


def _words(count: int) -> str:
    return " ".join(f"w{i % 50}" for i in range(count))


def _answer_tokens(model: Segmenter, answers: list[str]) -> int:
    return sum(len(model.tokenizer.encode(a + model.template.suffix, add_special_tokens=False)) for a in answers)


# ----------------------------------------------------------------------------------------------------------- measurement


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, what it leaves running on a GPU included."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], object]) -> int:
    """The highest sum of memory that `work` allocates on the CPU and has not freed yet, by PyTorch's own allocator. What was
    there before does not count; kernels' scratch space does."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
