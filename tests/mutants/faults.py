"""Faults that a review once put into the code, and more of their kinds, each with the tests that have to turn red."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`old`, which occurs once in `file`, becomes `new`; `tests` are pytest ids, and every one of them has to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


LOOP, SETUP, STEPPER, MIXTURE, SCHEDULE, EMA, GRADIENTS, SURGERY = (
    f"ans/training/{name}.py" for name in ("loop", "setup", "step", "mixture", "schedule", "ema", "gradients", "surgery")
)
LOSSES, MASK, GUMBEL, CAPTIONS = (f"ans/objectives/{name}.py" for name in ("losses", "mask", "gumbel", "captions"))
REFERRING, LOOP1, LOOP2 = (f"ans/tasks/{name}.py" for name in ("referring", "loop1", "loop2"))
MODULES, ADAPTERS = "ans/model/modules.py", "ans/model/adapters.py"

STATE = "ans/training/state.py"
VALIDATION, CHECKPOINTS, CURVES, PICTURES = (
    f"ans/training/hooks/{name}.py" for name in ("validation", "checkpoints", "curves", "pictures")
)

STEP = "tests/training/test_independent_step.py"
RUN, BETWEEN, PUT_TOGETHER = (f"tests/training/test_{name}.py" for name in ("small_run", "between_steps", "setup"))


def settings(*names: str) -> tuple[str, ...]:
    """The independent step's runs of these settings."""
    return tuple(f"{STEP}::test_setting[{name}]" for name in names)


BASE = (f"{STEP}::test_base",)

FAULTS: list[Fault] = [
    # ------------------------------------------------------------------------------------ the review's thirteen
    Fault(
        "gradients combined as (second, first, none, 3.0)",
        STEPPER,
        "combine(gradient, gradients.auxiliary, settings.surgery, settings.beta)",
        'combine(gradients.auxiliary, gradient, "none", 3.0)',
        BASE + settings("beta", "surgery-none", "surgery-pcgrad"),
    ),
    Fault(
        "the teacher is never updated", LOOP, "        run.teacher.update(step)\n", "", BASE + settings("ema_decay", "ema_warmup")
    ),
    Fault(
        "clipping is not used",
        STEPPER,
        'gradient, values["grad_norm"] = clip(gradient, settings.clip)',
        '_, values["grad_norm"] = clip(gradient, settings.clip)',
        settings("clip"),
    ),
    Fault(
        "the learning rate's schedule is not used",
        STEPPER,
        'group["lr"] = rate * factor',
        'group["lr"] = rate',
        settings("warmup", "schedule-linear"),
    ),
    Fault("weight decay is 0", SETUP, "weight_decay=settings.weight_decay", "weight_decay=0.0", settings("weight_decay")),
    Fault("lr_sam2_scale is ignored", SETUP, "settings.lr * settings.lr_sam2_scale", "settings.lr", settings("lr_sam2_scale")),
    Fault(
        "mask and Dice weights are swapped",
        LOSSES,
        "weights.mask * entropy + weights.dice * dice",
        "weights.dice * entropy + weights.mask * dice",
        BASE + settings("mask", "dice"),
    ),
    Fault("the IoU term is dropped", LOSSES, " + weights.iou * iou, values", ", values", settings("iou")),
    Fault(
        "the reward's sign is flipped",
        LOOP1,
        "loss - settings.reward * reward",
        "loss + settings.reward * reward",
        settings("reward", "reward_by"),
    ),
    Fault(
        "the linear schedule is constant",
        SCHEDULE,
        "return 1 - (step - ramp) / max(1, steps - ramp)",
        "return 1.0",
        settings("schedule-linear"),
    ),
    Fault(
        "tau_end is ignored",
        LOOP1,
        "self.tau + (self.tau_end - self.tau) * step / max(1, steps - 1)",
        "self.tau",
        settings("tau_end"),
    ),
    Fault(
        "the supervised language loss is dropped",
        REFERRING,
        "Losses(loss + train.loss.language * language,",
        "Losses(loss,",
        BASE + settings("language"),
    ),
    Fault(
        "the student in the teacher's place",
        EMA,
        "parameter.data = self.average[name]",
        "parameter.data = students[name]",
        BASE + settings("ema_decay", "distillation"),
    ),
    Fault("LoRA's dropout is 0", SETUP, "lora.alpha, lora.dropout,", "lora.alpha, 0.0,", settings("dropout")),
    # ------------------------------------------------------------------------------------------- gradients to one change
    Fault(
        "beta weighs the first gradient",
        SURGERY,
        "return first + beta * (second - coefficient * first)",
        "return beta * first + (second - coefficient * first)",
        BASE + settings("beta"),
    ),
    Fault(
        "no projection",
        SURGERY,
        "return first + beta * (second - coefficient * first)",
        "return first + beta * second",
        BASE + settings("surgery-none"),
    ),
    Fault(
        "the projection divides by the wrong square",
        SURGERY,
        "_share(_dot(second, first), _dot(first, first))",
        "_share(_dot(second, first), _dot(second, second))",
        BASE,
    ),
    Fault(
        "pcgrad projects where the two agree",
        SURGERY,
        "coefficient.clamp(max=0.0)",
        "coefficient.clamp(min=0.0)",
        settings("surgery-pcgrad"),
    ),
    Fault(
        "a micro-batch's gradient replaces the last one's",
        GRADIENTS,
        "part.add_(gradient.flatten())",
        "part.copy_(gradient.flatten())",
        settings("accumulation"),
    ),
    Fault(
        "short gradients are scaled up to the limit",
        GRADIENTS,
        "(limit / norm.double()).clamp(max=1.0)",
        "(limit / norm.double())",
        settings("clip"),
    ),
    Fault("clipped by the largest element", GRADIENTS, "norm = gradient.norm()", "norm = gradient.abs().max()", BASE),
    Fault("AdamW's second beta", SETUP, "torch.optim.AdamW, fused=True", "torch.optim.AdamW, fused=True, betas=(0.9, 0.9)", BASE),
    Fault(
        "AdamW's first beta", SETUP, "torch.optim.AdamW, fused=True", "torch.optim.AdamW, fused=True, betas=(0.8, 0.999)", BASE
    ),
    Fault("AdamW's eps", SETUP, "torch.optim.AdamW, fused=True", "torch.optim.AdamW, fused=True, eps=1e-4", BASE),
    Fault(
        "weight decay as a part of the gradient",
        SETUP,
        "torch.optim.AdamW, fused=True",
        "torch.optim.Adam, fused=True",
        settings("weight_decay"),
    ),
    Fault(
        "lr_sam2_scale on the wrong tensors",
        SETUP,
        'if group_of_parameter(model, name) == "sam2_decoder"',
        'if group_of_parameter(model, name) == "lora"',
        settings("lr_sam2_scale"),
    ),
    Fault("warm-up begins at zero", SCHEDULE, "return (step + 1) / ramp", "return step / ramp", BASE + settings("warmup")),
    Fault("warm-up takes a step too many", SCHEDULE, "if step < ramp:", "if step <= ramp:", settings("warmup")),
    Fault("warm-up is taken for a number of steps", SCHEDULE, "round(warmup * steps)", "round(warmup)", settings("warmup")),
    Fault("cosine to half a period too far", SCHEDULE, "math.cos(math.pi * (step", "math.cos(2 * math.pi * (step", BASE),
    # ------------------------------------------------------------------------------------------------------ the teacher
    Fault(
        "the teacher is updated before the student",
        LOOP,
        "        values = run.stepper.update(run.stepper.gradients(micro_batches, counts, step, run.examples), step)\n"
        "        run.teacher.update(step)\n",
        "        run.teacher.update(step)\n"
        "        values = run.stepper.update(run.stepper.gradients(micro_batches, counts, step, run.examples), step)\n",
        BASE + settings("ema_decay"),
    ),
    Fault(
        "decay and its complement swapped",
        EMA,
        "students, 1 - self.rate(step)",
        "students, self.rate(step)",
        BASE + settings("ema_decay"),
    ),
    Fault("the EMA's warm-up is off by one", EMA, "(1 + step) / (10 + step)", "(2 + step) / (11 + step)", settings("ema_warmup")),
    Fault(
        "the EMA's warm-up is ignored",
        EMA,
        " if self.warmup else self.decay",
        " if False else self.decay",
        settings("ema_warmup"),
    ),
    Fault(
        "the teacher with dropout",
        EMA,
        "            with model.evaluating():\n                yield",
        "            with torch.no_grad():\n                yield",
        settings("dropout"),
    ),
    # ---------------------------------------------------------------------------------------------- which samples, and when
    Fault(
        "a step's micro-batches overlap with the next step's",
        MIXTURE,
        "self._positions(before * self.accumulation + micro)",
        "self._positions(before + micro)",
        settings("accumulation"),
    ),
    Fault(
        "loop 1 begins",
        MIXTURE,
        "if interleaved(rest, share):",
        "if not interleaved(rest, share):",
        BASE + settings("ema_decay"),
    ),
    Fault(
        "repeats are ignored",
        LOOP1,
        "[of.repeats for of in settings.sources.values()]",
        "[1.0 for of in settings.sources.values()]",
        settings("loop1_sources-repeats"),
    ),
    # ------------------------------------------------------------------------------------------------------- the masks
    Fault(
        "masks normalised by the micro-batch",
        LOSSES,
        "(1.0 if confidence is None else confidence) / objects",
        "(1.0 if confidence is None else confidence) / len(logits)",
        settings("accumulation"),
    ),
    Fault(
        "the mean over padding too",
        LOSSES,
        "each * scale * mask.cross_entropy",
        "each * mask.cross_entropy",
        settings("lisa", "lisa-objects"),
    ),
    Fault(
        "padding is looked at",
        LOSSES,
        "visible = logits.masked_fill(~within, mask.NOTHING)",
        "visible = logits",
        settings("lisa", "lisa-objects"),
    ),
    Fault("points in the padding", LOSSES, "share[:, None] * uniform", "uniform", settings("lisa-mask_points")),
    Fault("a column of padding too many", MASK, "/ width < share[:, :1]", "/ width <= share[:, :1]", settings("lisa")),
    Fault("LISA's Dice never", LOSSES, "mask.lisa_dice if weights.lisa_dice else mask.dice", "mask.dice", settings("lisa_dice")),
    Fault(
        "half of the points by uncertainty",
        MASK,
        "count: int, importance: float = 0.75) -> Tensor",
        "count: int, importance: float = 0.5) -> Tensor",
        settings("mask_points"),
    ),
    Fault(
        "the surest points",
        MASK,
        "(-sample(logits, candidates).abs())",
        "(sample(logits, candidates).abs())",
        settings("mask_points"),
    ),
    Fault(
        "points between corners",
        MASK,
        'padding_mode="zeros", align_corners=False',
        'padding_mode="zeros", align_corners=True',
        settings("mask_points"),
    ),
    Fault(
        "Dice without its eps",
        MASK,
        "1 - overlap / (probability.sum(-1) + targets.sum(-1) + 1)",
        "1 - overlap / (probability.sum(-1) + targets.sum(-1))",
        BASE,
    ),
    Fault("IoU that counts the overlap twice", MASK, "targets.sum(-1) - overlap + 1)", "targets.sum(-1) + 1)", settings("iou")),
    # ---------------------------------------------------------------------------------------------- the supervised objective
    Fault(
        "answers normalised by the micro-batch",
        REFERRING,
        'out.language_loss / counts["tokens"]',
        "out.language_loss / len(out.labels)",
        settings("accumulation"),
    ),
    Fault(
        "the labels are shifted",
        MODULES,
        "shifted = F.pad(batch.labels[:, 1:], (0, 1), value=prompts.IGNORE)",
        "shifted = batch.labels",
        BASE,
    ),
    Fault("all tokens are counted", REFERRING, "labels_of(self.labels)", "int(self.mask.sum())", BASE),
    Fault(
        "images are counted, not objects",
        LOOP1,
        '"objects": len(self.describe_index)',
        '"objects": len(self.images.sam)',
        settings("masks_per_image"),
    ),
    # ------------------------------------------------------------------------------------------------------------- loop 1
    Fault(
        "tau runs backwards",
        LOOP1,
        "self.tau + (self.tau_end - self.tau) * step",
        "self.tau_end + (self.tau - self.tau_end) * step",
        settings("tau", "tau_end"),
    ),
    Fault("tau never comes to its end", LOOP1, "* step / max(1, steps - 1)", "* step / steps", settings("tau_end")),
    Fault(
        "special tokens in the corruption",
        LOOP1,
        "corrupt(ids, settings.mask_ratio, uniform, model.text_tokens)",
        "corrupt(ids, settings.mask_ratio, uniform, torch.arange(len(model.tokenizer)))",
        BASE,
    ),
    Fault(
        "one token more is corrupted", CAPTIONS, "count = round(ratio * len(ids))", "count = round(ratio * len(ids)) + 1", BASE
    ),
    Fault(
        "the other tokens are corrupted",
        CAPTIONS,
        "uniform[: len(ids), 0].argsort()",
        "uniform[: len(ids), 0].argsort(descending=True)",
        BASE,
    ),
    Fault(
        "the student reads the caption as it was",
        LOOP1,
        "out = say(model, features, batch, corrupted_ids, teacher)",
        "out = say(model, features, batch, teacher, teacher)",
        BASE,
    ),
    Fault(
        "the corrupted caption is learnt",
        LOOP1,
        "out = say(model, features, batch, corrupted_ids, teacher)",
        "out = say(model, features, batch, corrupted_ids, corrupted_ids)",
        BASE,
    ),
    Fault(
        "special tokens may be said",
        LOOP1,
        'logits = out.logits.index_fill(1, _no_text(model, out.logits), float("-inf"))',
        "logits = out.logits",
        BASE,
    ),
    Fault(
        "denoising over text tokens alone",
        LOOP1,
        "captions.cross_entropy(out.logits, out.labels, places,",
        "captions.cross_entropy(logits, out.labels, places,",
        BASE,
    ),
    Fault(
        "denoising as a mean over all tokens",
        CAPTIONS,
        "(entropy / each.repeat_interleave(each).to(logits.device)).sum() / objects",
        "entropy.mean()",
        settings("mask_ratio-1", "accumulation"),
    ),
    Fault(
        "denoising's weight is ignored",
        LOOP1,
        "settings.denoising * denoising, denoising.detach()",
        "denoising, denoising.detach()",
        BASE + settings("denoising"),
    ),
    Fault("the noise is not scaled", LOOP1, "noise = settings.noise * noise[:", "noise = noise[:", settings("noise", "noise-3")),
    Fault(
        "what is not corrupted is said anew",
        LOOP1,
        "embeds = torch.where(corrupted[:, None], embeds, F.embedding(out.labels, table))",
        "embeds = torch.where(corrupted[:, None], F.embedding(out.labels, table), embeds)",
        BASE,
    ),
    Fault(
        "the likeliest token goes on",
        GUMBEL,
        "(values + noise).argmax(-1, keepdim=True)",
        "values.argmax(-1, keepdim=True)",
        settings("noise-3"),
    ),
    Fault(
        "the backward forgets the noise",
        GUMBEL,
        "(logits.gather(1, index).float() + noise) / tau",
        "(logits.gather(1, index).float()) / tau",
        BASE,
    ),
    Fault(
        "the backward forgets tau", GUMBEL, ".sum(-1, keepdim=True)) / ctx.tau", ".sum(-1, keepdim=True))", BASE + settings("tau")
    ),
    Fault(
        "the softmax's own derivative is missing",
        GUMBEL,
        "soft[part] * (scores - (soft[part] * scores).sum(-1, keepdim=True))",
        "soft[part] * scores",
        BASE,
    ),
    Fault(
        "detached passes the gradient on",
        LOOP1,
        "return replace(caption, embeds=F.embedding(caption.chosen, _table(model)))",
        "return caption",
        settings("bridge-detached"),
    ),
    Fault(
        "discrete takes the teacher's caption",
        LOOP1,
        'if bridge == "discrete":',
        "if False:",
        settings("bridge-discrete"),
    ),
    Fault(
        "the second view is described",
        LOOP1,
        "for row in ((batch.describe_index[n],",
        "for row in ((batch.segment_index[n],",
        settings("loop1_sources-repeats"),
    ),
    Fault(
        "the further views are left out",
        LOOP1,
        "describe(model, features, batch, batch.views)",
        "describe(model, features, batch, [])",
        settings("views"),
    ),
    Fault(
        "a view has the image's own cells",
        LOOP1,
        "view.mask(mask)",
        "mask",
        ("tests/tasks/test_batches.py::test_views_of_an_image",),
    ),
    Fault(
        "every caption is learnt",
        LOOP1,
        "bool(ids) and sure >= self.settings.agreement",
        "bool(ids)",
        settings("agreement"),
    ),
    Fault("the end of a caption is not learnt", LOOP1, "said = [ids + end for", "said = [ids for", settings("imitation")),
    Fault("confidence is ignored", LOOP1, "weights if settings.confidence else None", "None", settings("confidence")),
    Fault(
        "the teacher's mask is made hard",
        LOOP1,
        "reference.float().sigmoid()",
        "(reference > 0).float()",
        settings("distillation"),
    ),
    Fault(
        "a reward without a baseline",
        LOOP1,
        "hard_iou(logits, soft) - hard_iou(reference, soft)",
        "hard_iou(logits, soft)",
        settings("reward"),
    ),
    Fault(
        "the baseline is the sampled caption", LOOP1, "captions.cider(tokenizer, greedy, teacher)", "0.0", settings("reward_by")
    ),
    Fault("tokens without a choice are rewarded", CAPTIONS, ".where(free, 0.0)", "", settings("reward-corrupted")),
    Fault(
        "loop 1's answer is normalised by its objects",
        LOOP1,
        'language = out.language_loss / counts["tokens"]',
        "language = out.language_loss / objects",
        BASE,
    ),
    Fault(
        "loop 1 without its language loss",
        LOOP1,
        "loss + train.loss.language * language + student.extra",
        "loss + student.extra",
        BASE + settings("language"),
    ),
    # ------------------------------------------------------------------------------------------------------------- loop 2
    Fault(
        "the caption's loss has no weight",
        LOOP2,
        "train.loss.language * (caption + answer)",
        "caption + train.loss.language * answer",
        settings("language"),
    ),
    Fault("loop 2 without its answer", LOOP2, "train.loss.language * (caption + answer)", "train.loss.language * caption", BASE),
    Fault(
        "captions are normalised by the answers",
        LOOP2,
        'described.language_loss / counts["caption_tokens"]',
        'described.language_loss / counts["tokens"]',
        BASE,
    ),
    Fault(
        "the region is what is likelier than 0.3",
        LOOP2,
        "part.view(share.shape) > 0.5",
        "part.view(share.shape) > 0.3",
        BASE,
    ),
    Fault(
        "the soft region weighs its tokens",
        LOOP2,
        "(1 + share - share.detach())[None]",
        "share[None]",
        settings("soft_region"),
    ),
    Fault(
        "mask supervision without its weight",
        LOOP2,
        "self.settings.mask_supervision * supervision",
        "supervision",
        settings("mask_supervision"),
    ),
    Fault(
        "loop 2 reads the data's mask",
        LOOP2,
        "shares = region_shares(logits,",
        "shares = region_shares(1e4 * (batch.targets.soft - 0.5),",
        BASE,
    ),
    # --------------------------------------------------------------------------------------------------- what is trained
    Fault(
        "LoRA's matrices from another seed",
        SETUP,
        "lora.dropout, settings.seed, lora.targets",
        "lora.dropout, 0, lora.targets",
        BASE + settings("seed"),
    ),
    Fault("LoRA's targets are ignored", SETUP, "settings.seed, lora.targets)", "settings.seed)", settings("lora_targets")),
    Fault("LoRA's scale is fixed", ADAPTERS, "lora_alpha=cast(Any, alpha)", "lora_alpha=2 * rank", settings("lora_alpha")),
    Fault("the model is not in training mode", LOOP, "    run.model.train()\n", "    run.model.eval()\n", settings("dropout")),
    Fault(
        "dropout draws the same in every step",
        LOOP,
        "hash((settings.seed, step, run.accelerator.process_index))",
        "hash((settings.seed, 0, run.accelerator.process_index))",
        settings("dropout"),
    ),
    Fault(
        "the checkpoint is the teacher",
        LOOP,
        "settings.keep, self.model.config.keys, self.trained, self.manifest",
        "settings.keep, self.model.config.keys, self.teacher.average, self.manifest",
        BASE,
    ),
    # --------------------------------------------------------------------------------------- resume, processes, precision
    Fault(
        "the optimizer begins anew when continued",
        LOOP,
        '        self.optimizer.load_state_dict(state["optimizer"])\n',
        "",
        (f"{STEP}::test_stopped_and_continued",),
    ),
    Fault(
        "the teacher begins anew when continued",
        EMA,
        "average.copy_(state[name])",
        "pass",
        (f"{STEP}::test_stopped_and_continued",),
    ),
    Fault(
        "the samples begin anew when continued",
        LOOP,
        "first_step * settings.accumulation, config.launch.workers",
        "first_step, config.launch.workers",
        (f"{STEP}::test_stopped_and_continued",),
    ),
    Fault(
        "gradients are averaged over processes",
        STEPPER,
        'self.accelerator.reduce(total, "sum")',
        'self.accelerator.reduce(total, "mean")',
        (f"{STEP}::test_two_processes",),
    ),
    Fault(
        "each process counts for itself",
        STEPPER,
        'total = accelerator.reduce(total.to(accelerator.device), "sum")',
        "pass",
        (f"{STEP}::test_two_processes",),
    ),
    Fault(
        "nothing is computed in bf16",
        STEPPER,
        "with self.accelerator.autocast():",
        "if True:",
        (f"{STEP}::test_bf16",),
    ),
    # --------------------------------------------------------------------------------- validation, checkpoints, a run's end
    Fault(
        "the best is the smallest",
        VALIDATION,
        'row[metric] > self.best["row"][metric]',
        'row[metric] < self.best["row"][metric]',
        (f"{BETWEEN}::test_the_best_is_the_first_of_the_largest", f"{BETWEEN}::test_the_metric_that_is_asked_for_decides"),
    ),
    Fault(
        "an equal one replaces the best",
        VALIDATION,
        'row[metric] > self.best["row"][metric]',
        'row[metric] >= self.best["row"][metric]',
        (f"{BETWEEN}::test_the_best_is_the_first_of_the_largest",),
    ),
    Fault(
        "the best tensors go on being trained",
        VALIDATION,
        "p.detach().clone() for name, p",
        "p.detach() for name, p",
        (f"{BETWEEN}::test_the_best_is_the_first_of_the_largest",),
    ),
    Fault(
        "cIoU decides whatever is asked for",
        VALIDATION,
        'f"val_{self.settings.metric}"',
        '"val_ciou"',
        (f"{BETWEEN}::test_the_metric_that_is_asked_for_decides",),
    ),
    Fault(
        "patience ends one too late",
        VALIDATION,
        ">= self.settings.patience",
        "> self.settings.patience",
        (f"{BETWEEN}::test_the_best_is_the_first_of_the_largest", f"{BETWEEN}::test_a_continued_validation_knows_its_best"),
    ),
    Fault(
        "a continued validation forgets its best",
        VALIDATION,
        'self.history, self.best = state["history"], state["best"]',
        'self.history = state["history"]',
        (f"{BETWEEN}::test_a_continued_validation_knows_its_best",),
    ),
    Fault(
        "validation in training mode",
        VALIDATION,
        "with self.model.evaluating(), self.accelerator.autocast():",
        "with self.accelerator.autocast():",
        (f"{BETWEEN}::test_the_best_is_the_first_of_the_largest",),
    ),
    Fault(
        "every process evaluates the same",
        VALIDATION,
        "range(self.accelerator.process_index, len(self.batches)",
        "range(0, len(self.batches)",
        (f"{BETWEEN}::test_processes_share_the_batches_and_all_rows_count",),
    ),
    Fault(
        "the metrics stay those of the last validation",
        VALIDATION,
        'self.curves.best = {name: value for name, value in self.best["row"].items() if name.startswith("val_")}',
        "pass",
        (f"{BETWEEN}::test_the_best_is_the_first_of_the_largest", f"{RUN}::test_history_and_curves"),
    ),
    Fault(
        "best.pth has the last tensors",
        LOOP,
        'best["trained"], best_step)',
        "self.trained, best_step)",
        (f"{RUN}::test_each_file_has_the_student_of_its_step",),
    ),
    Fault(
        "best.pth says the run's last step",
        LOOP,
        '{"step": best["row"]["step"]}',
        '{"step": self.steps}',
        (f"{RUN}::test_each_file_has_the_student_of_its_step",),
    ),
    Fault(
        "the last tensors are left out beside a best one",
        LOOP,
        "if best is None or validation is None or not validation.save_best_only:",
        "if best is None:",
        (f"{RUN}::test_each_file_has_the_student_of_its_step",),
    ),
    Fault(
        "hooks hear of the step before",
        LOOP,
        "hook.after(step + 1, values)",
        "hook.after(step, values)",
        (f"{RUN}::test_each_file_has_the_student_of_its_step",),
    ),
    Fault(
        "a state says the step before",
        LOOP,
        "            run.save(step + 1)\n",
        "            run.save(step)\n",
        (f"{STEP}::test_stopped_and_continued",),
    ),
    Fault(
        "a run that is asked to stop skips a step",
        LOOP,
        "run.save(step, wait=True)",
        "run.save(step + 1, wait=True)",
        (f"{RUN}::test_stopped_and_continued_it_ends_in_the_same_bits",),
    ),
    Fault(
        "hooks begin anew when continued",
        LOOP,
        'hook.load_state_dict(state["hooks"][name])',
        "pass",
        (f"{RUN}::test_stopped_and_continued_it_ends_in_the_same_bits",),
    ),
    Fault(
        "a frozen tensor may change",
        LOOP,
        "if setup.frozen_checksum(self.model, self.trained) != self.frozen:",
        "if False:",
        (f"{RUN}::test_a_frozen_tensor_that_changes_is_an_error",),
    ),
    Fault(
        "the newest step checkpoints go",
        CHECKPOINTS,
        "self.files()[: -self.keep if self.keep else 0]",
        "self.files()[self.keep or 10**9 :]",
        (f"{BETWEEN}::test_the_newest_step_checkpoints_stay",),
    ),
    Fault(
        "step checkpoints one step late",
        CHECKPOINTS,
        "step % self.every == 0",
        "step % self.every == 1 % self.every",
        (f"{BETWEEN}::test_the_newest_step_checkpoints_stay",),
    ),
    Fault(
        "metrics are of the first tenth",
        CURVES,
        "rows[-max(1, len(rows) // 10) :]",
        "rows[: max(1, len(rows) // 10)]",
        ("tests/training/test_hooks.py::test_metrics_are_the_mean_of_the_last_tenth",),
    ),
    Fault(
        "truth and prediction change places in the pictures",
        PICTURES,
        '(("gt_counts", TRUTH), ("counts", PREDICTION))',
        '(("counts", TRUTH), ("gt_counts", PREDICTION))',
        (f"{BETWEEN}::test_truth_and_prediction_side_by_side",),
    ),
    Fault(
        "a run goes on under other conditions",
        STATE,
        "if before != now:",
        "if False:",
        (f"{BETWEEN}::test_a_run_is_continued_under_its_conditions",),
    ),
    Fault(
        "the decoder is not decayed",
        SETUP,
        '"lr": settings.lr * settings.lr_sam2_scale}',
        '"lr": settings.lr * settings.lr_sam2_scale, "weight_decay": 0.0}',
        (f"{PUT_TOGETHER}::test_the_decoder_has_its_own_rate_and_all_decay",) + settings("weight_decay"),
    ),
    Fault(
        "an epoch is a pass over all tasks",
        SETUP,
        "settings.epoch_steps(len(primary[0]), processes)",
        "settings.epoch_steps(sum(map(len, tasks.values())), processes)",
        (f"{PUT_TOGETHER}::test_steps_of_an_epoch_and_of_the_run",),
    ),
    Fault(
        "processes draw the same dropout",
        LOOP,
        "hash((settings.seed, step, run.accelerator.process_index))",
        "hash((settings.seed, step, 0))",
        (f"{RUN}::test_each_step_of_each_process_draws_its_own",),
    ),
    Fault(
        "gradients are averaged over accumulation once more",
        STEPPER,
        "add_gradient(losses.total, self.parameters",
        "add_gradient(losses.total / len(micro_batches), self.parameters",
        settings("accumulation"),
    ),
    Fault(
        "the teacher is an average of LoRA alone",
        LOOP,
        "taught = self.trained if",
        'taught = {name: p for name, p in self.trained.items() if "lora" in name} if',
        BASE,
    ),
    Fault(
        "the first optimizer step has the rate of the second",
        STEPPER,
        "lr_factor(step, self.steps",
        "lr_factor(step + 1, self.steps",
        BASE,
    ),
    # ------------------------------------------------------------------------------------------------ data, damaged or hostile
    Fault(
        "an image of another size than its record is used",
        "ans/data/matching.py",
        "if found != stated:",
        "if False:",
        (
            "tests/data/test_matching.py::test_a_coco_listing_of_another_size_is_refused_for_own_data",
            "tests/data/test_matching.py::test_a_second_frame_is_compared_too",
        ),
    ),
    Fault(
        "an id that is there twice takes the last",
        "ans/data/sources/common.py",
        "if (first := places.setdefault(number, place)) != place:",
        "if (first := places.setdefault(number, place)) > place:",
        ("tests/data/test_cases.py::test_other_ids_too[annotations]",),
    ),
    Fault(
        "a stated area is not compared",
        "ans/data/masks.py",
        "if not found / 2 - 4 <= number <= 2 * found + 4:",
        "if False:",
        ("tests/data/test_masks.py::test_stated_measures_are_compared",),
    ),
    Fault(
        "a stated box is not compared",
        "ans/data/masks.py",
        "if not near and shared < 0.5 * (wide * high + w * h - shared):",
        "if False:",
        (
            "tests/data/test_masks.py::test_stated_measures_are_compared",
            "tests/data/test_cases.py::test_every_form_of_a_segmentation_is_understood_or_has_its_own_reason",
        ),
    ),
    Fault(
        "a mask of the whole image is not noted",
        "ans/data/mask_files.py",
        "if mask.all():",
        "if False:",
        ("tests/data/test_hostile.py::test_suspicious_masks",),
    ),
    Fault(
        "a lossy mask is read",
        "ans/data/images.py",
        'LOSSY = ("JPEG", "MPO", "WEBP")',
        "LOSSY = ()",
        ("tests/data/test_cases.py::test_masks_of_other_kinds_are_read_or_refused",),
    ),
    Fault(
        "a copy of an evaluated photograph is trained on",
        "ans/data/samples.py",
        "return (known or self._content(path)) in self._contents",
        "return False",
        ("tests/data/test_samples.py::test_a_photograph_is_known_by_its_content_too",),
    ),
    Fault(
        "the loops learn from evaluated photographs",
        "ans/data/samples.py",
        "counts[held] = 0",
        "pass",
        (
            "tests/data/test_samples.py::test_a_photograph_is_known_wherever_it_lies",
            "tests/tasks/test_evaluated.py::test_no_task_learns_from_evaluated_photographs",
        ),
    ),
    Fault(
        "tasks are not told what is evaluated",
        SETUP,
        "evaluated, clips = Evaluated(map(indexes, config.training_indexes()), root), Evaluated((), root)",
        "evaluated, clips = Evaluated(), Evaluated((), root)",
        ("tests/tasks/test_evaluated.py::test_no_task_learns_from_evaluated_photographs",),
    ),
    Fault(
        "a special token in a text of the data is one",
        "ans/model/prompts.py",
        "if any(inside[found.start() : found.end()]):\n            cuts",
        "if False:\n            cuts",
        ("tests/model/test_prompts.py::test_a_token_that_data_and_template_would_make_together_is_cut",),
    ),
    Fault(
        "images are of any format that Pillow knows",
        "ans/data/images.py",
        "formats=FORMATS)",
        "formats=None)",
        (
            "tests/data/test_hostile.py::test_only_a_few_formats_are_images[EPS]",
            "tests/data/test_hostile.py::test_no_image_starts_a_program",
        ),
    ),
    Fault(
        "a changed byte of a PNG is another mask",
        "ans/data/images.py",
        "_sound_png(data) if data.startswith(PNG) else data",
        "data",
        ("tests/data/test_hostile.py::test_a_changed_byte_of_a_png_is_no_other_image",),
    ),
    Fault(
        "a number of a run length may have any length",
        "ans/data/masks.py",
        "if further.max() > 6:",
        "if False:",
        ("tests/data/test_masks.py::test_a_number_beyond_64_bits_is_no_smaller_one",),
    ),
    Fault(
        "what a killed process left stays",
        "ans/files.py",
        "if match and not _lives(int(match[1])):",
        "if False:",
        ("tests/test_files.py::test_the_next_run_removes_what_a_killed_one_left",),
    ),
    Fault(
        "each process counts its own bad images",
        "ans/data/bad_images.py",
        "self.seen |= set(file.read().splitlines())",
        "pass",
        ("tests/data/test_bad_images.py::test_processes_have_one_count",),
    ),
    Fault(
        "what is no plain file is read",
        "ans/data/disk.py",
        "if not stat.S_ISREG(state.st_mode):",
        "if False:",
        ("tests/data/test_hostile.py::test_what_is_no_plain_file_is_refused_at_once[folder]",),
    ),
    Fault(
        "redirects lead anywhere",
        "ans/checkpoints/fetch.py",
        "if not newurl.lower().startswith(allowed):",
        "if False:",
        ("tests/checkpoints/test_fetch.py::test_redirects_to_another_host_are_followed_and_never_out_of_https",),
    ),
    Fault(
        "a changed byte of a pth is another weight",
        "ans/formats/pth.py",
        "            if member.CRC:",
        "            if False:",
        ("tests/checkpoints/test_convert.py::test_a_checkpoint_is_whole_and_checked",),
    ),
    Fault(
        "two processes share a folder of unfinished work",
        "ans/data/parts.py",
        "if there:  # else",
        "if True:  # else",
        ("tests/data/test_index.py::test_two_that_share_a_folder_for_unfinished_work_take_turns",),
    ),
    Fault(
        "a config.json may ask for any number of layers",
        "ans/model/config.py",
        '    _refuse_absurd(values, path, "")',
        "    pass",
        ("tests/model/test_loading.py::test_absurd_sizes_are_refused_at_once",),
    ),
    # ------------------------------------------------------------------------------------------------- masks and metrics
    Fault(
        "several polygons of one object are not united",
        "ans/data/masks.py",
        "coco.merge(coco.frPyObjects(outlines, height, width))",
        "coco.merge(coco.frPyObjects(outlines[:1], height, width))",
        ("tests/data/test_masks.py::test_polygons_of_one_object_are_united",),
    ),
    Fault(
        "pixels to ignore count in the union",
        "ans/evaluation/metrics.py",
        "return pred & ~ignore, gt & ~ignore",
        "return pred, gt & ~ignore",
        ("tests/evaluation/test_metrics.py::test_ignored_pixels_by_hand",),
    ),
]
