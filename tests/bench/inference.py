"""What `tests.bench.gpu` measures beside training steps: generation, evaluation, and whether a GPU computes what a CPU does."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image

from ans.model.segmenter import Conversations, Features, Segmenter
from ans.tasks import referring
from ans.training.hooks.examples import Examples
from ans.training.step import count
from tests.bench import sizes
from tests.bench.trainer import Trainer

EXPRESSIONS = 7
Row = dict[str, Any]


@torch.no_grad()
def generation(model: Segmenter, images: int, length: int) -> Row:
    """Captions of one region each, as loop 1's teacher says them: tokens a second, up to `length` of each."""
    batch = sizes.mask_batch(model, images, length, 2, 0)
    features = model.encode_pixels(batch.images.pixels, batch.images.sam, batch.images.sizes)
    said: list[int] = []

    def caption() -> None:
        answers = model.caption_ids(features, batch.describe_index, batch.cells, batch.describe_questions, length)[0]
        said[:] = map(len, answers)

    caption()
    seconds = sizes.seconds(caption)
    return {
        "measure": "generation",
        "batch": images,
        "caption_len": length,
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
