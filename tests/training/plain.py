"""Fine-tuning written out plainly: the reference that `train()` is held against (`test_independent_step.py`).

Each formula is written here a second time, from the method's definitions (docs/dual-loop.md, and the docstrings where that is
silent), with loops over objects, rows and tensors instead of anything clever. Of the library only the model is used (its forward,
its mask decoder, its greedy captions, its templates) and the data's samples, by their attributes. Nothing comes from
`ans.training`, `ans.objectives` or `ans.tasks`: a fault there must not be repeated here.

The names of the logged values are those of the curves in `reports/train/plots`.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Segmenter

Tensors = dict[str, Tensor]
Values = dict[str, Tensor]

TRAINED = {
    "lora": r".*language_model\..*\.lora_[AB]\.",
    "seg_row": r".*language_model\..*\.seg_row$",
    "embed_head": r".*language_model\.(model\.(embed_tokens|tok_embeddings)|lm_head)\.",
    "proj": r"vlm\.(mlp1|multi_modal_projector)\.",
    "fcs": r"text_hidden_fcs\.",
    # without the heads that no loss reaches: they would only decay
    "sam2_decoder": r"sam\.(model\.sam_)?(sam\.)?mask_decoder\.(?!iou_prediction_head|pred_obj_score_head)",
}
"""Module group -> the names of its tensors. SAM's decoder has three more masks, of which LISA takes none; see `trained_group`."""

NO_GRADIENT = r".*mask_decoder\..*k_proj\.bias$"
"""A bias of all keys changes no attention weight: its exact gradient is zero, and AdamW makes steps of the rounding errors."""


@dataclass(frozen=True)
class Settings:
    """What of `params.yaml` the optimizer's steps depend on, beyond the samples."""

    steps: int
    mask: float
    dice: float
    language: float
    iou: float
    lisa_dice: bool
    beta: float
    surgery: Literal["orthogonal", "pcgrad", "none"]
    ema_decay: float
    ema_warmup: bool
    loop1: bool
    bridge: Literal["gumbel", "detached", "hard", "discrete"]
    rescored: Literal["all", "corrupted"]
    tau: float
    tau_end: float
    mask_ratio: float
    noise: float
    denoising: float
    imitation: float
    agreement: float
    confidence: bool
    distillation: float
    reward: float
    contrast: bool
    leash: float
    soft_region: bool
    mask_supervision: float
    groups: Sequence[str]
    lora: bool
    precision: Literal["float32", "bf16"]
    lr: float
    lr_sam2_scale: float
    schedule: Literal["constant", "cosine", "linear"]
    warmup: float
    weight_decay: float
    clip: float
    mask_points: int


@dataclass(frozen=True)
class Micro:
    """The samples of one micro-batch: `first` of the supervised objective, or (`regions`) of loop 1; `second` of loop 2."""

    regions: bool
    first: Any
    second: Any | None


@dataclass(frozen=True)
class State:
    """What there is after a step. `values`: what is logged of it."""

    trained: Tensors
    teacher: Tensors
    values: dict[str, float]


@dataclass(frozen=True)
class Totals:
    """What losses are divided by: counts of a whole step, over all of its micro-batches."""

    objects: int
    tokens: int
    second_objects: int = 0
    second_tokens: int = 0
    caption_tokens: int = 0
    known: int = 0


# ---------------------------------------------------------------------------------------------------------------- the steps


def fine_tune(
    model: Segmenter,
    settings: Settings,
    steps: Sequence[Sequence[Micro]],
    seed_step: Callable[[int], object],
    facts: Mapping[str, Any],
    alone: bool = False,
) -> Iterator[State]:
    """Train `model` as `settings` say on the samples of each step, and yield the state after each.

    `seed_step(step)` seeds torch's generator, which only dropout draws from. `facts`: what the world's `facts.json` holds.
    `alone`: the model reads every conversation by itself, so that there is no padding at all.
    """
    trained = select(model, settings)
    teacher = {name: p.detach().clone() for name, p in trained.items()} if settings.loop1 else {}
    moments = {name: (torch.zeros_like(p).double(), torch.zeros_like(p).double()) for name, p in trained.items()}
    task = Task(model, settings, trained, teacher, facts, alone)
    model.train()
    for step, micros in enumerate(steps):
        seed_step(step)
        totals = count(model, micros)
        tau = settings.tau + (settings.tau_end - settings.tau) * step / max(1, settings.steps - 1)
        values: dict[str, float] = {}
        first = {name: torch.zeros_like(p).double() for name, p in trained.items()}
        second = {name: torch.zeros_like(p).double() for name, p in trained.items()}
        caption_gradient = 0.0
        for micro in micros:
            with compute(settings):
                features = task.encode(micro.first.images)
                if micro.regions:
                    loss, logged, passed_on = task.loop1(features, micro.first, totals, tau)
                else:
                    loss, logged, passed_on = *task.supervised(features, micro.first, totals), None
            if passed_on is not None:
                caption_gradient += float(add_gradients(loss, trained, first, passed_on).square().sum())
            else:
                add_gradients(loss, trained, first)
            add(values, logged | {"loss": loss})
            if micro.second is not None:
                with compute(settings):
                    loss, logged = task.loop2(task.encode(micro.second.images), micro.second, totals)
                add_gradients(loss, trained, second)
                add(values, logged)
        if micros[0].regions and settings.bridge in ("gumbel", "detached"):
            values["loop1_caption_gradient"] = math.sqrt(caption_gradient)

        gradient = first
        if micros[0].second is not None:
            values |= conflict(first, second)
            gradient = combine(first, second, settings)
        norm = math.sqrt(dot(gradient, gradient))
        values["grad_norm"] = norm
        if norm > settings.clip:
            gradient = {name: g * settings.clip / norm for name, g in gradient.items()}
        factor = lr_factor(step, settings)
        values["lr"] = settings.lr * factor
        for name, parameter in trained.items():
            scale = settings.lr_sam2_scale if trained_group(name) == "sam2_decoder" else 1.0
            adamw(parameter, gradient[name], moments[name], step + 1, settings.lr * scale * factor, settings.weight_decay)
        decay = settings.ema_decay
        if settings.ema_warmup:
            decay = min(decay, (1 + step) / (10 + step))
        for name, average in teacher.items():
            average.copy_(decay * average.double() + (1 - decay) * trained[name].detach().double())
        yield State(copies(trained), copies(teacher), values)


def turns(referring: int, loop1: int, steps: int) -> list[tuple[bool, int]]:
    """Of each step whether it is loop 1's, and how many steps of its kind were before: those on expressions are spread evenly, the
    very first being one, in proportion to the samples of both (0: the objective is off)."""
    found, done = [], 0
    for step in range(steps):
        due = -(-(step + 1) * referring // (referring + loop1))  # so many of the first steps are on expressions, rounded up
        found.append((due == done, step - done if due == done else done))
        done = due
    return found


def select(model: Segmenter, settings: Settings) -> dict[str, nn.Parameter]:
    """The tensors of the trained groups, by name; they are float32, and all others get no gradient."""
    groups = [group for group in settings.groups if group != "lora" or settings.lora]
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained_group(name) in groups)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trained[name] = parameter
    return trained


@cache
def trained_group(name: str) -> str | None:
    """The group of a tensor, None where it is in none."""
    if re.search(r"sam\.sam\.mask_decoder\.output_hypernetworks_mlps\.[123]", name):
        return None
    return next((group for group, pattern in TRAINED.items() if re.match(pattern, name)), None)


def copies(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def compute(settings: Settings) -> torch.autocast:
    """What a forward runs in."""
    return torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16")


def add(sums: dict[str, float], values: Values) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + float(value.detach())


def add_gradients(loss: Tensor, trained: Mapping[str, nn.Parameter], sums: Tensors, passed_on: Tensor | None = None) -> Tensor:
    """Add the gradient of `loss` to `sums`; the gradient at `passed_on`, zeros where `loss` does not depend on it."""
    inputs = [*trained.values(), *([passed_on] if passed_on is not None else [])]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    for name, gradient in zip(trained, gradients, strict=False):
        if gradient is not None:
            sums[name] += gradient
    last = gradients[-1] if passed_on is not None else None
    return torch.zeros(()) if last is None else last


# ----------------------------------------------------------------------------------------------- gradients to one change


def dot(one: Tensors, two: Tensors) -> float:
    return sum(float((one[name] * two[name]).sum()) for name in one)


def combine(first: Tensors, second: Tensors, settings: Settings) -> Tensors:
    """g1 + beta * (g2 - (g2.g1 / g1.g1) g1); pcgrad: so only where g2.g1 < 0; none: g1 + beta * g2."""
    square, product = dot(first, first), dot(second, first)
    along = product / square if square else 0.0
    if settings.surgery == "none" or (settings.surgery == "pcgrad" and product >= 0):
        along = 0.0
    return {name: first[name] + settings.beta * (second[name] - along * first[name]) for name in first}


def conflict(first: Tensors, second: Tensors) -> dict[str, float]:
    """Of each trained group and of all: both norms, their cosine, and how much of g1 is in g2."""
    values = {}
    for group in ["all", *dict.fromkeys(map(trained_group, first))]:
        names = [name for name in first if group in ("all", trained_group(name))]
        one, two = {name: first[name] for name in names}, {name: second[name] for name in names}
        a, b, product = math.sqrt(dot(one, one)), math.sqrt(dot(two, two)), dot(one, two)
        values[f"norm1_{group}"], values[f"norm2_{group}"] = a, b
        values[f"cosine_{group}"] = product / (a * b) if a and b else 0.0
        values[f"along_{group}"] = product / a**2 if a else 0.0
    return values


def lr_factor(step: int, settings: Settings) -> float:
    """Linear warm-up over the share `warmup` of the steps (one step at least), then the schedule down to what would be 0 at the
    step after the last."""
    ramp = max(1, round(settings.warmup * settings.steps))
    if step < ramp:
        return (step + 1) / ramp
    done = (step - ramp) / max(1, settings.steps - ramp)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


def adamw(
    parameter: nn.Parameter, gradient: Tensor, moments: tuple[Tensor, Tensor], step: int, lr: float, weight_decay: float
) -> None:
    """One step, from 1, of AdamW (arXiv 1711.05101) with betas 0.9 and 0.999 and eps 1e-8."""
    mean, square = moments
    mean.copy_(0.9 * mean + 0.1 * gradient)
    square.copy_(0.999 * square + 0.001 * gradient**2)
    change = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    parameter.data.copy_(parameter.data.double() * (1 - lr * weight_decay) - lr * change)


# ------------------------------------------------------------------------------------------------- what the model reads


@dataclass(frozen=True)
class Conversation:
    """`labels` are as many as `ids`, IGNORE where nothing is learnt. `region` (1, G, G): cells of the region prompt, and
    `weights` what their tokens are multiplied by. `words`
    (n, D), if given, take the places of the n tokens from `start` on."""

    ids: list[int]
    labels: list[int]
    image: int
    region: Tensor | None = None
    words: Tensor | None = None
    start: int = 0
    weights: Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """Of one conversation: `logits` (M, V) that predict its `labels` (M,); `seg` (n, D): the mask decoder's prompts."""

    logits: Tensor
    labels: Tensor
    seg: Tensor
    image: int


def read(model: Segmenter, features: Features, rows: Sequence[Conversation], alone: bool) -> list[Reading]:
    """The model's forward over conversations, padded on the right; what is padded is not attended to."""
    if alone and len(rows) > 1:
        return [reading for row in rows for reading in read(model, features, [row], alone)]
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    attention, places = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    words = []
    for r, row in enumerate(rows):
        ids[r, : len(row.ids)] = torch.tensor(row.ids)
        attention[r, : len(row.ids)] = 1
        if row.words is not None:
            places[r, row.start : row.start + len(row.words)] = True
            words.append(row.words)
    out = model(
        features,
        Conversations(
            ids,
            torch.full_like(ids, prompts.IGNORE),
            attention,
            [row.image for row in rows],
            [row.region for row in rows],
            torch.cat(words) if words else None,
            places if words else None,
            None if rows[0].weights is None else [row.weights for row in rows],
        ),
    )
    readings = []
    # which state of `[SEG]` is read, a family says; the golden numbers have it
    seg = out.seg_embeds.split([row.ids.count(model.seg_token) for row in rows])
    for r, row in enumerate(rows):
        learnt = [t for t in range(1, len(row.ids)) if row.labels[t] != prompts.IGNORE]
        logits = model.vlm.language_model.lm_head(out.hidden[r, [t - 1 for t in learnt]])  # the position before predicts
        labels = torch.tensor([row.labels[t] for t in learnt])
        readings.append(Reading(logits.float(), labels, seg[r], row.image))
    return readings


def decode_masks(model: Segmenter, features: Features, readings: Sequence[Reading]) -> Tensor:
    """(N, h, w) mask logits of every `[SEG]`, in the conversations' order."""
    index = torch.tensor([reading.image for reading in readings for _ in reading.seg])
    return model.masks(features, index, torch.cat([reading.seg for reading in readings])).low_res.float()


def image_text(model: Segmenter, features: Features, image: int) -> str:
    """What stands for an image in a question."""
    return model.template.image_string(features.visual[image].grid.tokens)


def answer_ids(model: Segmenter, answer: str) -> list[int]:
    """An answer as it is learnt: with the template's end."""
    return model.tokenizer.encode(answer + model.template.suffix, add_special_tokens=False)


def referring_rows(model: Segmenter, batch: Any) -> list[Conversation]:
    """The data's own conversations, without their padding."""
    lengths = batch.mask.sum(1).tolist()
    rows = zip(batch.ids.tolist(), batch.labels.tolist(), batch.image_index, lengths, strict=True)
    return [Conversation(ids[:length], labels[:length], image) for ids, labels, image, length in rows]


def answered(row: Conversation) -> int:
    """How many tokens of a conversation are learnt."""
    return sum(label != prompts.IGNORE for label in row.labels[1:])


def count(model: Segmenter, micros: Sequence[Micro]) -> Totals:
    """Objects and learnt tokens of a step."""
    objects = tokens = second_objects = second_tokens = caption_tokens = 0
    for micro in micros:
        if micro.regions:
            objects += len(micro.first.answers)
            tokens += sum(len(answer_ids(model, answer)) for answer in micro.first.answers)
        else:
            rows = referring_rows(model, micro.first)
            objects += sum(row.ids.count(model.seg_token) for row in rows)
            tokens += sum(map(answered, rows))
        if micro.second is not None:
            second_objects += len(micro.second.captions)
            second_tokens += sum(len(answer_ids(model, answer)) for answer in micro.second.answers)
            caption_tokens += sum(map(len, micro.second.captions))
    known = sum(truth is not None for micro in micros for truth in getattr(micro.first, "known", []))
    return Totals(objects, tokens, second_objects, second_tokens, caption_tokens, known)


# ------------------------------------------------------------------------------------------------------------ the losses


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(M,) of next tokens."""
    return logits.logsumexp(-1) - logits[torch.arange(len(labels)), labels]


def binary_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """-t log p - (1 - t) log (1 - p) where p is the sigmoid."""
    return -truth * nn.functional.logsigmoid(logits) - (1 - truth) * nn.functional.logsigmoid(-logits)


def language(readings: Sequence[Reading]) -> Tensor:
    """Next-token cross-entropy, summed over all labels."""
    return torch.stack([cross_entropy(reading.logits, reading.labels).sum() for reading in readings]).sum()


def bilinear(image: Tensor, points: Tensor) -> Tensor:
    """(P,) values of an image (h, w) at points (P, 2), x and y in [0, 1]: between the centres of its cells, zero outside."""
    height, width = image.shape
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    total = torch.zeros(len(points))
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = x.floor() + dx, y.floor() + dy
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            value = image[row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            total = total + torch.where(inside, weight * value, 0.0)
    return total


def uncertain_points(logits: Tensor, uniform: Tensor, count: int) -> Tensor:
    """PointRend (arXiv 1912.08193): three quarters of the points are those of 3 x `count` candidates whose logit is nearest to
    zero, the others are the last of `uniform`."""
    chosen = int(0.75 * count)
    candidates, others = uniform[: 3 * count], uniform[3 * count :]
    assert len(others) == count - chosen, "as many candidates as PointRend draws"
    order = bilinear(logits.detach(), candidates).abs().argsort()
    return torch.cat([candidates[order[:chosen]], others])


def shown(share: Tensor, image: Tensor) -> Tensor:
    """The cells of an image (h, w), flat, that show some of it where it reaches to `share` (x, y); the others are padding."""
    height, width = image.shape
    across, down = share.tolist()
    rows, columns = (sum(cell / size < reach for cell in range(size)) for size, reach in ((height, down), (width, across)))
    return image[:rows, :columns].flatten()


def hard_iou(logits: Tensor, truth: Tensor) -> float:
    predicted, true = logits > 0, truth > 0.5
    union = int((predicted | true).sum())
    return int((predicted & true).sum()) / union if union else 1.0


def mask_losses(
    logits: Tensor, targets: Any, settings: Settings, objects: int, confidence: Sequence[float] | None = None
) -> tuple[Tensor, Values]:
    """The weighted mask loss of objects with `logits` (N, h, w), and its parts."""
    assert len(logits) == len(targets.soft), "one mask for each target"
    parts: dict[str, list[Tensor]] = {"mask": [], "dice": [], "iou": [], "train_iou": []}
    for n, scores in enumerate(logits):
        share = targets.share[n]
        flat, truth = shown(share, scores), shown(share, targets.soft[n])
        parts["train_iou"].append(torch.tensor(hard_iou(flat, truth)))
        if settings.mask_points:
            points = uncertain_points(scores, targets.uniform[n] * share, settings.mask_points)
            flat, truth = bilinear(scores, points), bilinear(targets.soft[n], points)
        weight = 1.0 if confidence is None else confidence[n]
        probability = flat.sigmoid()
        both, either = (probability * truth).sum(), probability.sum() + truth.sum()
        parts["mask"].append(weight * binary_cross_entropy(flat, truth).mean())
        dice = 1 - (2 * both + 1) / (either + 1)
        if settings.lisa_dice:
            dice = 1 - (2 * both / 1000 + 1e-6) / (either / 1000 + 1e-6)
        parts["dice"].append(weight * dice)
        parts["iou"].append(weight * (1 - (both + 1) / (either - both + 1)))
    values = {name: torch.stack(each).sum() / objects for name, each in parts.items()}
    loss = settings.mask * values["mask"] + settings.dice * values["dice"] + settings.iou * values["iou"]
    return loss, values


def seg_rate(model: Segmenter, readings: Sequence[Reading], objects: int) -> Tensor:
    """Share of the objects whose `[SEG]` has a probability of 0.1 or more where it is to be said."""
    said = 0
    for reading in readings:
        for scores, label in zip(reading.logits, reading.labels.tolist(), strict=True):
            said += label == model.seg_token and float(scores.detach().softmax(-1)[label]) >= 0.1
    return torch.tensor(said / objects)


# -------------------------------------------------------------------------------------------------------- the objectives


@dataclass(frozen=True)
class Expression:
    """What of captions reaches the segmentation prompt: their tokens, and of the embeddings those that stand for them."""

    ids: list[list[int]]
    words: list[Tensor] | None


@dataclass(frozen=True)
class Task:
    """The three objectives of a model in training; each gives its loss and what is logged of it."""

    model: Segmenter
    settings: Settings
    trained: dict[str, nn.Parameter]
    teacher: Tensors
    facts: Mapping[str, Any]
    alone: bool

    def encode(self, images: Any) -> Features:
        """The frozen encoders over a micro-batch's images."""
        return self.model.encode_pixels(images.pixels, images.sam, images.sizes)

    @contextmanager
    def taught(self) -> Iterator[None]:
        """Within, the model is its teacher, in eval mode and without gradients."""
        student = copies(self.trained)
        for name, tensor in self.teacher.items():
            self.trained[name].data.copy_(tensor)
        torch.clear_autocast_cache()  # of the tensors that were
        self.model.eval()
        with torch.no_grad():
            yield
        for name, tensor in student.items():
            self.trained[name].data.copy_(tensor)
        torch.clear_autocast_cache()
        self.model.train()

    def supervised(self, features: Features, batch: Any, totals: Totals) -> tuple[Tensor, Values]:
        """Image and expression -> mask, with the language loss on the answer."""
        readings = read(self.model, features, referring_rows(self.model, batch), self.alone)
        loss, values = mask_losses(decode_masks(self.model, features, readings), batch.targets, self.settings, totals.objects)
        values["language"] = language(readings) / totals.tokens
        values["seg_rate"] = seg_rate(self.model, readings, totals.objects)
        return loss + self.settings.language * values["language"], prefixed("ref", values)

    def truth(self, batch: Any, captions: list[list[int]], known: int) -> Values:
        """Of the captions of scenes whose objects are known: shares of true facts, and captions that fit another object better."""
        facts = wrong = 0.0
        for about, ids in zip(batch.known, captions, strict=True):
            if about is None:
                continue
            locator, truth = about
            said = self.model.tokenizer.decode(ids).split()
            agree = {
                one["caption"]: sum(
                    [word for word in words if word in said] == [word for word in words if word in one["caption"].split()]
                    for words in self.facts["facts"].values()
                )
                for one in self.facts["objects"][locator]
            }
            facts += agree[truth] / len(self.facts["facts"])
            wrong += max(agree.values()) > agree[truth]
        return {"teacher_facts": torch.tensor(facts / known), "teacher_other": torch.tensor(wrong / known)}

    def loop1(self, features: Features, batch: Any, totals: Totals, tau: float) -> tuple[Tensor, Values, Tensor | None]:
        """Mask -> caption -> mask. The last of the result: the embeddings that are passed on, where the bridge is `gumbel`."""
        model, settings, objects = self.model, self.settings, totals.objects
        with self.taught():
            captions, ended, confidence = self.describe(features, batch, views=True)
            _, taught_masks = self.segment(features, batch, Expression(captions, None))
        values = {
            "teacher_confidence": torch.tensor(sum(confidence) / objects),
            "teacher_ended": torch.tensor(sum(ended) / objects),
            "teacher_length": torch.tensor(sum(map(len, captions)) / objects),
            "teacher_empty": torch.tensor(sum(not ids for ids in captions) / objects),
            "teacher_different": torch.tensor(sum(captions.count(ids) == 1 for ids in captions) / objects),
        }
        if totals.known:
            values |= self.truth(batch, captions, totals.known)
        extra: Tensor | float = 0.0
        passed_on, expression = None, Expression(captions, None)
        if settings.denoising or settings.bridge in ("gumbel", "detached"):
            said_anew, denoising, logged = self.rescore(features, batch, captions, objects, tau)
            if settings.denoising:
                extra, values["denoising"] = settings.denoising * denoising, denoising
            if settings.bridge in ("gumbel", "detached"):
                values |= logged
            if settings.bridge == "gumbel":
                passed_on = torch.cat(said_anew.words)
                expression = Expression(said_anew.ids, list(passed_on.split([len(ids) for ids in said_anew.ids])))
            if settings.bridge == "detached":
                expression = Expression(said_anew.ids, None)
        if settings.bridge == "discrete":
            model.eval()
            with torch.no_grad():
                expression = Expression(self.describe(features, batch, views=False)[0], None)
            model.train()

        readings, logits = self.segment(features, batch, expression)
        loss, masks = mask_losses(logits, batch.targets, settings, objects, confidence if settings.confidence else None)
        values |= masks
        values["language"] = language(readings) / totals.tokens
        values["seg_rate"] = seg_rate(model, readings, objects)
        loss = loss + settings.language * values["language"] + extra
        if settings.imitation:
            values["imitation"], learnt = self.imitate(features, batch, captions, confidence, objects)
            values["learnt_captions"] = torch.tensor(learnt)
            loss = loss + settings.imitation * values["imitation"]
        if settings.distillation:
            distances = [binary_cross_entropy(a, b.sigmoid()).mean() for a, b in zip(logits, taught_masks, strict=True)]
            values["distillation"] = torch.stack(distances).sum() / objects
            loss = loss + settings.distillation * values["distillation"]
        if settings.reward:
            gained, logged = self.rewarded(features, batch, objects)
            values |= logged
            loss = loss - settings.reward * gained
        if passed_on is not None and not passed_on.requires_grad:  # nothing that is trained lies before the caption
            passed_on = None
        return loss, prefixed("loop1", values), passed_on

    def describe(self, features: Features, batch: Any, views: bool) -> tuple[list[list[int]], list[bool], list[float]]:
        """Greedy captions of the objects, of `caption_len` tokens at most; whether each ended; the geometric mean of its tokens'
        probabilities, of the end's too. The model generates them token by token; here it reads them as a whole."""
        model, most = self.model, batch.noise.shape[1]
        each = len(batch.views) // len(batch.cells)
        seen = []  # of each object, image and cells of all its views
        for n, cells in enumerate(batch.cells):
            seen.append([(batch.describe_index[n], cells), *(batch.views[n * each : (n + 1) * each] if views else [])])
        index, cells = (list(column) for column in zip(*(view for of in seen for view in of), strict=True))
        questions = [question for question, of in zip(batch.describe_questions, seen, strict=True) for _ in of]
        captions, ended, _ = model.caption_ids(features, index, cells, questions, most, len(seen[0]))
        end = answer_ids(model, "")
        confidence = []
        for n, caption in enumerate(captions):
            rows = []
            for image, cells in seen[n]:
                prompt = self.question(features, image, cells, batch.describe_questions[n])
                said = caption + end if ended[n] else caption
                rows.append(Conversation(prompt + said, ignored(prompt) + said, image, cells[None]))
            readings = read(model, features, rows, self.alone)
            mean = torch.stack([reading.logits.log_softmax(-1) for reading in readings]).mean(0)
            assert torch.equal(mean.argmax(-1), readings[0].labels), "each token is the likeliest"
            confidence.append(float(mean.gather(1, readings[0].labels[:, None]).mean().exp()))
        return captions, ended, confidence

    def question(self, features: Features, image: int, cells: Tensor, question: str) -> list[int]:
        """The prompt that asks for a description of the object at these cells."""
        text = image_text(self.model, features, image) + self.model.region_question(cells[None], question)
        return prompts.encode_prompt(self.model.tokenizer, self.model.template, text)

    def imitate(
        self, features: Features, batch: Any, captions: list[list[int]], confidence: list[float], objects: int
    ) -> tuple[Tensor, float]:
        """The language loss of the teacher's captions that are sure enough, with their ends, and these captions' share."""
        end, losses = answer_ids(self.model, ""), []
        for n, caption in enumerate(captions):
            if caption and confidence[n] >= self.settings.agreement:
                prompt = self.question(features, batch.describe_index[n], batch.cells[n], batch.describe_questions[n])
                said = caption + end
                row = Conversation(prompt + said, ignored(prompt) + said, batch.describe_index[n], batch.cells[n][None])
                (reading,) = read(self.model, features, [row], self.alone)
                losses.append(cross_entropy(reading.logits, reading.labels).mean())
        return sum(losses, torch.zeros(())) / objects, len(losses) / objects

    def segment(self, features: Features, batch: Any, expression: Expression) -> tuple[list[Reading], Tensor]:
        """The answers about the second view, and the masks, for captions in the expression's place."""
        model, rows = self.model, []
        for n, ids in enumerate(expression.ids):
            image = batch.segment_index[n]
            question = image_text(model, features, image) + batch.questions[n]
            before, after = prompts.encode_gap(model.tokenizer, model.template, question)
            answer = answer_ids(model, batch.answers[n])
            asked = before + ids + after
            words = None if expression.words is None else expression.words[n]
            rows.append(Conversation(asked + answer, ignored(asked) + answer, image, None, words, len(before)))
        readings = read(model, features, rows, self.alone)
        return readings, decode_masks(model, features, readings)

    def rewarded(self, features: Features, batch: Any, objects: int) -> tuple[Tensor, Values]:
        """Random captions of the student, each likelier by as much as it earns more than the object's others: what the teacher's mask by it
        has in common with the object's, and not with another one, less how much likelier it is to the student than to the teacher."""
        model, objects_here = self.model, len(batch.cells)
        end, text = answer_ids(model, "")[-1], model.text_tokens.tolist()
        sayable = torch.tensor(sorted({*text, *answer_ids(model, "")}))
        most = min(batch.chances.shape[-1], len(sayable))

        def scores(n: int, ids: list[int]) -> Tensor:
            """(len(ids), sayable): of what may be said at each place, where these are read."""
            prompt = self.question(features, batch.describe_index[n], batch.cells[n], batch.describe_questions[n])
            row = Conversation(prompt + ids, ignored(prompt) + ids, batch.describe_index[n], batch.cells[n][None])
            return read(model, features, [row], self.alone)[0].logits[:, sayable].float()

        def sure(n: int, ids: list[int]) -> Tensor:
            places = [sayable.tolist().index(token) for token in ids]
            rows = scores(n, ids)
            return sum(row[place] - row.topk(most).values.logsumexp(0) for row, place in zip(rows, places, strict=True))

        def say(n: int, noise: Tensor) -> list[int]:
            ids: list[int] = []
            while len(ids) < len(noise) and ids[-1:] != [end]:
                values, index = scores(n, [*ids, end])[-1].topk(most)
                ids.append(int(sayable[index[(values + noise[len(ids)][:most]).argmax()]]))
            return ids

        model.eval()
        with torch.no_grad():
            drawn = [[say(n, noise) for noise in batch.chances[n]] for n in range(objects_here)]
        model.train()
        log_probabilities = [[sure(n, ids) for ids in drawn[n]] for n in range(objects_here)]
        earned = torch.zeros(objects_here, batch.chances.shape[1])
        strayed = torch.zeros_like(earned)
        with self.taught():
            for k in range(earned.shape[1]):
                captions = [[token for token in drawn[n][k] if token in text] for n in range(objects_here)]
                _, masks = self.segment(features, batch, Expression(captions, None))
                for n, soft in enumerate(batch.targets.soft):
                    earned[n, k] = hard_iou(masks[n], soft)
                    if self.settings.contrast and len(batch.others[n]):
                        earned[n, k] -= max(hard_iou(masks[n], other) for other in batch.others[n])
                    strayed[n, k] = log_probabilities[n][k].detach() - sure(n, drawn[n][k])
        reward, gained = earned - self.settings.leash * strayed, torch.zeros(())
        for n, of_object in enumerate(log_probabilities):
            for k, log_probability in enumerate(of_object):
                rest = [float(reward[n, other]) for other in range(len(of_object)) if other != k]
                gained = gained + (reward[n, k] - sum(rest) / len(rest)) * log_probability / len(of_object)
        values = {"earned": earned.mean(1).sum() / objects, "strayed": strayed.mean(1).sum() / objects}
        return gained / objects, values

    def rescore(
        self, features: Features, batch: Any, captions: list[list[int]], objects: int, tau: float
    ) -> tuple[Expression, Tensor, Values]:
        """The student reads image, region and the corrupted captions and says each token again.

        Returns the expression, the denoising loss, and what is logged.
        """
        model, settings = self.model, self.settings
        ordinary = model.text_tokens.tolist()
        rows, corrupted = [], []
        for n, caption in enumerate(captions):
            uniform = batch.corruption[n]
            order = sorted(range(len(caption)), key=uniform[:, 0].tolist().__getitem__)
            replaced = order[: round(settings.mask_ratio * len(caption))]
            seen = [ordinary[int(uniform[t, 1] * len(ordinary))] if t in replaced else ids for t, ids in enumerate(caption)]
            prompt = self.question(features, batch.describe_index[n], batch.cells[n], batch.describe_questions[n])
            row = Conversation(prompt + seen, ignored(prompt) + caption, batch.describe_index[n], batch.cells[n][None])
            rows.append(row)
            corrupted.append([a != b for a, b in zip(seen, caption, strict=True)])
        readings = read(model, features, rows, self.alone)

        table = model.vlm.language_model.get_input_embeddings().weight
        no_text = torch.ones(readings[0].logits.shape[-1], dtype=torch.bool)
        no_text[ordinary] = False
        said, words, denoising, kept, changed = [], [], [], [], []
        for n, reading in enumerate(readings):
            chosen, embeds, mass, wrong = [], [], [], []
            for t, token in enumerate(captions[n]):
                scores = reading.logits[t].masked_fill(no_text, -math.inf)
                free = corrupted[n][t] or settings.rescored == "all"
                values, index = scores.topk(min(batch.noise.shape[2], len(scores)))
                perturbed = values + settings.noise * batch.noise[n, t, : len(values)]
                best = int(index[perturbed.argmax()])
                soft = (perturbed / tau).softmax(-1) @ table[index].detach()
                chosen.append(best if free else token)
                embeds.append(table[best] + soft - soft.detach() if free else table[token])
                mass.append((values.logsumexp(-1) - scores.logsumexp(-1)).exp().detach())
                if corrupted[n][t]:
                    wrong.append(cross_entropy(reading.logits[t][None], torch.tensor([token]))[0])
            said.append(chosen)
            words.append(torch.stack(embeds) if embeds else table[:0])
            denoising.append(torch.stack(wrong).mean() if wrong else torch.zeros(()))
            kept.append(torch.stack(mass).mean() if mass else torch.zeros(()))
            different = [a != b for a, b in zip(chosen, captions[n], strict=True)]
            changed.append(torch.tensor(sum(different) / max(1, len(different))))
        logged = {"kept_mass": torch.stack(kept).sum() / objects, "changed_tokens": torch.stack(changed).sum() / objects}
        return Expression(said, words), torch.stack(denoising).sum() / objects, logged

    def loop2(self, features: Features, batch: Any, totals: Totals) -> tuple[Tensor, Values]:
        """Caption -> mask -> caption."""
        model, settings, objects = self.model, self.settings, totals.second_objects
        rows = []
        for n, text in enumerate(batch.texts):
            question = image_text(model, features, n) + batch.questions[n].format(text)
            asked = prompts.encode_prompt(model.tokenizer, model.template, question)
            answer = answer_ids(model, batch.answers[n])
            rows.append(Conversation(asked + answer, ignored(asked) + answer, n))
        found = read(model, features, rows, self.alone)
        logits = decode_masks(model, features, found)

        rows, non_empty = [], 0
        for n, caption in enumerate(batch.captions):
            share = cell_means(logits[n].sigmoid(), *features.visual[n].grid.region)
            cells = share > 0.5
            weights = (1 + share - share.detach())[None] if settings.soft_region else None
            non_empty += bool(cells.any())
            question = image_text(model, features, n) + model.region_question(cells[None], batch.describe_questions[n])
            prompt = prompts.encode_prompt(model.tokenizer, model.template, question)
            rows.append(Conversation(prompt + caption, ignored(prompt) + caption, n, cells[None], weights=weights))
        told = read(model, features, rows, self.alone)

        supervision, values = mask_losses(logits, batch.targets, settings, objects)
        values["caption"] = language(told) / totals.caption_tokens
        values["language"] = language(found) / totals.second_tokens
        values["seg_rate"] = seg_rate(model, found, objects)
        values["non_empty"] = torch.tensor(non_empty / objects)
        loss = settings.language * (values["caption"] + values["language"]) + settings.mask_supervision * supervision
        return loss, prefixed("loop2", values)


def prefixed(name: str, values: Values) -> Values:
    return {f"{name}_{key}": value.detach() for key, value in values.items()}


def ignored(ids: Sequence[int]) -> list[int]:
    """Labels of tokens that are not learnt."""
    return [prompts.IGNORE] * len(ids)


def cell_means(probability: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) means of a mask (h, w) over the cells of the region grid; a cell takes every pixel that it touches."""
    height, width = probability.shape
    means = []
    for row in range(rows):
        down = slice(row * height // rows, -(-(row + 1) * height // rows))
        for column in range(columns):
            across = slice(column * width // columns, -(-(column + 1) * width // columns))
            means.append(probability[down, across].mean())
    return torch.stack(means).view(rows, columns)
