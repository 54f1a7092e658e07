"""What `tests.bench.gpu` measures beside training steps: generation, evaluation, and whether a GPU computes what a CPU does."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ans.model.generate import AT_ONCE, PACES, Pace
from ans.model.segmenter import Conversations, Features, Query, Segmenter
from ans.tasks import referring
from ans.training.hooks.examples import Examples
from ans.training.step import count
from tests.bench import sizes
from tests.bench.trainer import Trainer

EXPRESSIONS = 7
Row = dict[str, Any]


@contextmanager
def decoding(device: torch.device, pace: Pace) -> Iterator[None]:
    """Within, decoding on this kind of device goes at this pace."""
    before = PACES.get(device.type)
    PACES[device.type] = pace
    try:
        yield
    finally:
        del PACES[device.type]
        if before is not None:
            PACES[device.type] = before


@torch.no_grad()
def generation(model: Segmenter, images: int, length: int, graphs: bool) -> Row:
    """Captions of one region each, as loop 1's teacher says them: tokens a second, up to `length` of each, by captured steps or not."""
    batch = sizes.mask_batch(model, images, length, 2, 0)
    features = model.encode_pixels(batch.images.pixels, batch.images.sam, batch.images.sizes)
    said: list[int] = []

    def caption() -> None:
        answers = model.caption_ids(features, batch.describe_index, batch.cells, batch.describe_questions, length)[0]
        said[:] = map(len, answers)

    with decoding(model.device, Pace(8, graphs)):
        caption()
        seconds = sizes.seconds(caption)
    return {
        "measure": "generation",
        "batch": images,
        "caption_len": length,
        "graphs": graphs,
        "seconds": seconds,
        "tokens_per_s": sum(said) / seconds,
    }


@torch.no_grad()
def evaluation(model: Segmenter, images: int, tokens: int) -> Row:
    """Expressions a second, pixels and masks included, with `EXPRESSIONS` an image and answers of at most `tokens`."""
    pictures = [Image.effect_noise((640, 480), 60).convert("RGB") for _ in range(images)]
    asked = [[f"w{n} w{n + 1} w{n + 2}" for n in range(EXPRESSIONS)]] * images
    work = partial(model.segment, pictures, asked, tokens)
    work()
    seconds = sizes.seconds(work)
    return {"measure": "evaluation", "batch": images, "seconds": seconds, "expressions_per_s": images * EXPRESSIONS / seconds}


def forward(model: Segmenter, batch: referring.Batch) -> Iterator[torch.Tensor]:
    """Logits of the answers' tokens, and of the masks."""
    features: Features = model.encode_pixels(batch.images.pixels, batch.images.sam, batch.images.sizes)
    out = model(features, Conversations(batch.ids, batch.labels, batch.mask, batch.image_index, [None] * len(batch.ids)))
    yield out.logits
    yield model.masks(features, out.seg_image, out.seg_embeds).low_res


@torch.no_grad()
def parity(device: torch.device) -> Row:
    """The tiny base in bf16 on `device` against float32 on the CPU: the largest difference of logits, over their standard deviation."""
    torch.manual_seed(0)
    exact = Segmenter.from_pretrained(sizes.REPOSITORY / "weights" / "tiny")
    batch = sizes.referring_batch(exact, 2, 1, 4, 0)
    other = Segmenter.from_pretrained(sizes.REPOSITORY / "weights" / "tiny", device=device, dtype=torch.bfloat16)
    differences = []
    for ours, theirs in zip(forward(exact, batch), forward(other, batch), strict=True):
        differences.append(float((ours - theirs.float().cpu()).abs().max() / ours.std()))
    return {"measure": "parity", "token_logits": differences[0], "mask_logits": differences[1]}


@torch.no_grad()
def graphs(device: torch.device) -> Row:
    """Answers and captions of the tiny base on `device`, decoded by repeated steps and token by token: 1 where all tokens are the same."""
    model = Segmenter.from_pretrained(sizes.REPOSITORY / "weights" / "tiny", device=device).eval()
    batch = sizes.mask_batch(model, 4, 24, 2, 0)
    features = model.encode_pixels(batch.images.pixels, batch.images.sam, batch.images.sizes)
    asked = [Query(n, text) for n in range(4) for text in ("Where is the red circle?", "Please segment the small blue square.")]
    found = []
    for pace in (AT_ONCE, Pace(8, True)):
        with decoding(device, pace):
            captions = model.caption_ids(features, range(4), batch.cells, batch.describe_questions, 24)[0]
            found.append([captions, [answer.ids for answer in model.answer(features, asked, 80)]])
    return {"measure": "graphs", "same_tokens": float(found[0] == found[1]), "tokens": sum(map(len, found[0][1]))}


def waits(trainer: Trainer, batches: Any) -> Row:
    """How often one step waits for the GPU, as CUDA's debug mode counts it, and where: PyTorch's file and line, or ours."""
    trainer.step(batches)  # what is made once
    if trainer.device.type != "cuda":
        return {"waits": None}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.step(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(one.filename).name}:{one.lineno}" for one in said if "synchroniz" in str(one.message))
    return {"waits": places.total(), "where": dict(places.most_common(12))}


def determinism(trainer: Trainer, batches: Any) -> Row:
    """The same step's gradients twice: 1 where every bit is the same, and the norm of the difference over the gradient's."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        trainer.stepper.tasks = {name: trainer.tasks[name] for name, _ in batches}
        counts, _ = count([batches], trainer.stepper.tasks, trainer.accelerator, False)
        found.append(trainer.stepper.gradients([batches], counts, 0, Examples(0, 1, first_process=False)).primary)
    one, two = found
    return {
        "measure": "determinism",
        "same_bits": float(torch.equal(one, two)),
        "difference": float((one - two).norm() / one.norm()),
    }
