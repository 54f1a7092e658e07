"""`train()` against fine-tuning written out plainly (`plain.py`): trained tensors, the teacher's, and all curves, step by step.

One run for each setting that changes the result. The reference must follow the setting, and the setting must make a difference
there: both together say that `train()` reads it and does with it what the method says.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ans.model.segmenter import Segmenter
from tests.training import plain
from tests.training.plain import State
from tests.training.reference_case import TILED, Changes, World, key_of, training_keys

BASE = {
    "seed": 2, "steps": 2, "batch": 2, "max_train_samples": 6, "caption_len": 8, "gallery": 0, "dropout": 0.0,
    "lr": 2e-4,
    "ema_decay": 0.8,  # a teacher that differs from the student after a step
}  # fmt: skip
"""What differs from `params.yaml` in all runs. The first step is on expressions, the others on loop 1."""

CURVE, TENSOR = 1e-5, 1e-5
"""Relative tolerances of a curve's value, and of a group of trained tensors."""

CHANGE = 2e-2
"""And of the change of one tensor since the start. AdamW divides each gradient by its own size, so that of an element whose
gradient is near zero is float32 noise; in a bias of 64 numbers one such element is much (measured over all runs: up to 1e-2)."""

GRADIENT = 5e-5
"""Of a group's gradient norm, after steps that left such elements elsewhere (measured: up to 9e-6)."""

LONG_SUM = 5e-4
"""Of what is summed in float32 over all 1.6 million trained numbers: the norms and products of whole gradients (up to 1.3e-4)."""

ROUNDING = 3e-7
"""What storing a tensor in float32 may add to its difference in a few steps, as a share of the tensor itself."""


@dataclass(frozen=True)
class Case:
    """`changes` is what is tested, in a run that is `BASE` with `context` otherwise."""

    name: str
    changes: Changes
    context: Changes = field(default_factory=dict)
    base: str = "tiny"
    quick: bool = False


LABELS = {"loop1": False, "loop2": False}
"""The supervised objective alone, which is quicker."""

REGIONS = {"referring": False, "loop2": False, "steps": 1}
"""Loop 1 alone, where the teacher is the student still."""

REWARDED = REGIONS | {
    "bridge": "hard", "denoising": 0.0, "reward": 3.0, "draws": 2, "leash": 0.1,
    "loop1_sources": {"sa1b_subset": {"repeats": 1.0, "max_samples": None}},
}  # fmt: skip
"""Captions with a reward, of images with several objects."""

CAPTIONS = {"loop1": False, "steps": 1}
"""Loop 2 beside the supervised objective."""

LOOPS = {"referring": False, "steps": 1}
"""Both loops in one step."""

SPLIT = {"seed": 5, "lr": 8e-4, "ema_decay": 0.99, "masks_per_image": 3, "denoising": 0.0, "loop2": False, "groups": ["proj"]}
"""Where student and teacher say different captions after one step: found by trying."""

CASES = [
    # the losses
    Case("mask", {"mask": 0.3}, LABELS | {"steps": 1}),
    Case("dice", {"dice": 3.0}, LABELS | {"steps": 1}),
    Case("language", {"language": 0.2}),
    Case("iou", {"iou": 1.5}, LABELS | {"steps": 1}),
    Case("lisa_dice", {"lisa_dice": True}, LABELS | {"steps": 1}),
    Case("mask_points", {"mask_points": 64}, LABELS | {"steps": 1}),
    # two gradients into one
    Case("beta", {"beta": 2.0}, CAPTIONS),
    Case("beta-0", {"beta": 0.0}, CAPTIONS),
    Case("surgery-none", {"surgery": "none"}, CAPTIONS),
    Case("surgery-pcgrad", {"surgery": "pcgrad"}, CAPTIONS),
    # the optimizer
    Case("lr", {"lr": 6e-4}, LABELS),
    Case("lr_sam2_scale", {"lr_sam2_scale": 0.1}, LABELS),
    Case("schedule-constant", {"schedule": "constant"}, LABELS | {"steps": 4}),
    Case("schedule-linear", {"schedule": "linear"}, LABELS | {"steps": 4}, quick=True),
    Case("warmup", {"warmup": 0.5}, LABELS | {"steps": 4}),
    Case("weight_decay", {"weight_decay": 5.0}, LABELS),
    Case("clip", {"clip": 3.0}, LABELS),
    Case("accumulation", {"accumulation": 2}, quick=True),
    Case("steps", {"steps": 5}, LABELS),
    # the teacher
    Case("ema_decay", {"ema_decay": 0.3}, {"loop2": False}),
    Case("ema_decay-0", {"ema_decay": 0.0}, {"loop2": False}),
    Case("ema_warmup", {"ema_warmup": True}, {"loop2": False}),
    # loop 1
    Case("loop1", {"loop1": False}),
    Case("loop1_sources-repeats", {"loop1_sources": {"sav": {"repeats": 3.0, "max_samples": None}}}, REGIONS),
    Case("loop1_sources-max_samples", {"loop1_sources": {"sav": {"repeats": 1.0, "max_samples": 3}}},
         REGIONS | {"loop1_sources": {"sav": {"repeats": 1.0, "max_samples": None}}}),
    Case("bridge-detached", {"bridge": "detached"}, REGIONS),
    Case("bridge-hard", {"bridge": "hard"}, REGIONS),
    Case("bridge-discrete", {"bridge": "discrete"}, SPLIT | {"bridge": "hard"}),
    Case("rescored", {"rescored": "all"}, REGIONS),
    Case("tau", {"tau": 0.2}, REGIONS | {"steps": 2}),
    Case("tau_end", {"tau_end": 2.0}, REGIONS | {"steps": 2}),
    Case("top_k", {"top_k": 2}, REGIONS | {"rescored": "all"}),
    Case("mask_ratio", {"mask_ratio": 0.6}, REGIONS),
    Case("mask_ratio-1", {"mask_ratio": 1.0, "masks_per_image": 2}, REGIONS),
    Case("noise", {"noise": 0.0}, REGIONS | {"rescored": "all"}),
    Case("noise-3", {"noise": 3.0}, REGIONS | {"rescored": "all"}),
    Case("description_prompts", {"description_prompts": 4}, REGIONS),
    Case("denoising-0", {"denoising": 0.0}, REGIONS),
    Case("denoising", {"denoising": 3.0}, REGIONS),
    Case("denoising-hard", {"denoising": 3.0}, REGIONS | {"bridge": "hard"}),
    Case("confidence", {"confidence": True}, REGIONS),
    Case("views", {"views": 5}, REGIONS | {"masks_per_image": 2, "imitation": 0.5}),
    Case("imitation", {"imitation": 0.5}, REGIONS),
    Case("agreement", {"agreement": 0.9}, REGIONS | {"imitation": 0.5, "masks_per_image": 3}),
    Case("distillation", {"distillation": 1.0}, REGIONS | {"steps": 2}),
    Case("reward", {"reward": 3.0}, REWARDED | {"reward": 0.0}),
    Case("draws", {"draws": 4}, REWARDED),
    Case("contrast", {"contrast": True}, REWARDED | {"contrast": False, "masks_per_image": 3}),
    Case("leash", {"leash": 1.0}, REWARDED | {"steps": 2}),
    Case("masks_per_image", {"masks_per_image": 3}, REGIONS),
    # loop 2
    Case("loop2", {"loop2": False}),
    Case("loop2_source", {"loop2_source": "refcocog"}, CAPTIONS),
    Case("loop2_max_samples", {"loop2_max_samples": 3}, CAPTIONS),
    Case("loop2_prompts", {"loop2_prompts": 4}, CAPTIONS),
    Case("soft_region", {"soft_region": True}, CAPTIONS),
    Case("mask_supervision", {"mask_supervision": 0.5}, CAPTIONS),
    Case("referring", {"referring": False}),
    # what is trained, and on what
    Case("seed", {"seed": 7}, {"loop2": False}),
    Case("batch", {"batch": 3}, LOOPS),
    Case("referring_sources", {"referring_sources": ["refcocog"]}, LABELS),
    Case("max_train_samples", {"max_train_samples": 3}, LABELS),
    Case("epochs", {"epochs": 2}, LABELS | {"max_train_samples": 3}),
    Case("objects_per_image", {"objects_per_image": 2}, LABELS),
    Case("objects_per_conversation", {"objects_per_conversation": 3}, LABELS),
    Case("caption_len", {"caption_len": 3}, LOOPS),
    Case("groups-lora", {"groups": ["lora"]}, {"loop2": False}),
    Case("groups-proj", {"groups": ["proj"]}, {"loop2": False}),
    Case("groups-fcs-sam2_decoder", {"groups": ["fcs", "sam2_decoder"]}, CAPTIONS | {"soft_region": True}),
    Case("groups-embed_head", {"groups": ["embed_head", "lora", "fcs"]}, {"loop2": False}),
    Case("lora", {"lora": False}, {"loop2": False}),
    Case("lora_rank", {"lora_rank": 2}, LABELS),
    Case("lora_alpha", {"lora_alpha": 64.0}, LABELS),
    Case("lora_targets", {"lora_targets": ["q_proj", "v_proj"]}, LABELS),
    Case("dropout", {"dropout": 0.3}, quick=True),
    Case("max_tiles", {"max_tiles": 6}, LABELS | {"objects_per_image": 1}, base=TILED),
    # LISA: no loops, a row of its own for [SEG], images padded to a square
    Case("lisa", {"epochs": 2, "max_train_samples": 4}, {"epochs": 1, "max_train_samples": 4}, base="lisa-tiny"),
    Case("lisa-objects", {"objects_per_conversation": 3}, {"epochs": 1, "referring_sources": ["refcoco"], "objects_per_image": 3},
         base="lisa-tiny"),
    Case("lisa-mask_points", {"mask_points": 64}, {"epochs": 1}, base="lisa-tiny"),
]  # fmt: skip


ELSEWHERE = {
    **{
        f"train.captioning.{name}": "its conversation, loss and gradient: tests/tasks/test_captioning.py"
        for name in ("enabled", "sources", "regions_per_conversation", "description_prompts")
    },
    **{
        f"train.clips.{name}": "its samples, loss and gradient: tests/tasks/test_clips.py"
        for name in ("enabled", "sources", "frames", "followed", "expressions")
    },
    **{
        f"train.grounded.{name}": "its answers, targets and loss: tests/tasks/test_grounded.py" for name in ("enabled", "sources")
    },
    **{f"train.loop1.{name}": "its samples and loss: tests/tasks/test_masklets.py" for name in ("videos", "frames")},
    "train.referring.no_target": "its answers, targets and loss: tests/tasks/test_referring.py",
    "train.min_seg_rate": "stops a run: test_hooks.py",
    "train.gallery": "changes nothing: test_not_a_setting_of_the_result",
    "train.save_every": "all runs here save every step",
    "train.keep": "which files stay: test_hooks.py",
    "train.precision": "test_bf16",
    "train.checkpoint_activations": "changes nothing: test_not_a_setting_of_the_result",
    "train.validation": "test_validation.py",
    "train.four_bit": "needs bitsandbytes",
    "train.optimizer": "needs bitsandbytes",
}
"""The settings of a training that have no run of their own, and why."""

KEPT = 6
"""Of how many settings the reference's result stays in memory: cases that follow each other have the same context."""


class Laboratory:
    """Runs both."""

    def __init__(self, folder: Path) -> None:
        self.world = World.prepare(folder)
        self.models: dict[str, tuple[Segmenter, dict[str, Tensor]]] = {}
        self.kept: OrderedDict[str, tuple[dict[str, Tensor], list[State]]] = OrderedDict()

    def reference(self, base: str, changes: Changes, alone: bool = False) -> tuple[dict[str, Tensor], list[State]]:
        """The trained tensors at the start, and the states after each step. `alone`: see `plain.fine_tune`."""
        key = f"{base} {sorted(changes.items())} {alone}"
        if key in self.kept:
            self.kept.move_to_end(key)
        else:
            model = self._model(base, changes)
            steps = self.world.samples(base, changes, model)
            settings = replace(self.world.settings(base, changes), steps=len(steps))  # which epochs may decide
            start = plain.copies(plain.select(model, settings))
            root = Path(self.world.config(base, changes).paths.root)
            facts = json.loads((root / "facts.json").read_text(encoding="utf-8"))
            states = list(plain.fine_tune(model, settings, steps, self.world.seed_step(base, changes), facts, alone))
            self.kept[key] = start, states
            if len(self.kept) > KEPT:
                self.kept.popitem(last=False)
        return self.kept[key]

    def _model(self, base: str, changes: Changes) -> Segmenter:
        """Loading takes longer than a step: one model for all settings that do not change it."""
        parts = ("precision", "lora", "lora_rank", "lora_alpha", "lora_targets", "dropout", "seed", "groups")
        key = f"{base} {[changes.get(name) for name in parts]}"
        if key not in self.models:
            model = self.world.model(base, changes)
            self.models[key] = model, plain.copies(dict(model.named_parameters()))
        model, start = self.models[key]
        for name, parameter in model.named_parameters():
            parameter.data = start[name].clone()
        return model


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("independent"))


def differences(
    start: Mapping[str, Tensor], found: Sequence[State], expected: Sequence[State], slack: float = 1.0, but: Sequence[str] = ()
) -> list[str]:
    """What differs at the first step where anything does, a line each; the tolerances are multiplied by `slack`, and the curves
    `but` are not compared."""
    for step, (one, other) in enumerate(zip(found, expected, strict=False), 1):
        lines = [
            *_curves(one.values, {name: value for name, value in other.values.items() if name not in but}, slack),
            *_tensors("trained", start, one.trained, other.trained, slack),
            *_tensors("teacher's", start, one.teacher, other.teacher, slack),
        ]
        if lines:
            return [f"step {step}: {line}" for line in lines]
    return [f"{len(found)} steps instead of {len(expected)}"] if len(found) != len(expected) else []


def _curves(found: Mapping[str, float], expected: Mapping[str, float], slack: float) -> list[str]:
    lines = [f"{name}: no such curve" for name in sorted(expected.keys() - found.keys())]
    for name in sorted(expected.keys() & found.keys()):
        kind, _, group = name.partition("_")
        of_gradient = kind in ("norm1", "norm2", "cosine", "along")
        tolerance = LONG_SUM if name == "grad_norm" or (of_gradient and group == "all") else GRADIENT if of_gradient else CURVE
        scale = abs(expected[name])
        if kind == "cosine":
            scale = 1.0
        if kind == "along":  # a cosine times this
            scale = expected[f"norm2_{group}"] / (expected[f"norm1_{group}"] or 1.0)
        # a cross-entropy is a difference of logits near 20: it has no more digits than these
        if abs(found[name] - expected[name]) > slack * (tolerance * scale + 2e-6):
            lines.append(f"{name} is {found[name]:.6g}, by the definition {expected[name]:.6g}")
    return lines


def _tensors(
    kind: str, start: Mapping[str, Tensor], found: Mapping[str, Tensor], expected: Mapping[str, Tensor], slack: float
) -> list[str]:
    lines = [f"{kind} tensors are not the same: {name}" for name in sorted(found.keys() ^ expected.keys())[:3]]
    groups: dict[str, list[str]] = {}
    for name in expected.keys() & found.keys():
        groups.setdefault(plain.trained_group(name), []).append(name)
    for group, names in sorted(groups.items()):
        names = [name for name in names if not re.match(plain.NO_GRADIENT, name)]
        if any(found[name].shape != expected[name].shape for name in names):
            lines.append(f"{kind} tensors of {group} have other shapes")
            continue
        distance = {name: float((found[name] - expected[name]).double().norm()) for name in names}
        size = {name: float(expected[name].double().norm()) for name in names}
        change = {name: float((expected[name] - start[name]).double().norm()) for name in names}
        wrong = [name for name in names if distance[name] > slack * (CHANGE * change[name] + ROUNDING * size[name])]
        whole = sum(d**2 for d in distance.values()) ** 0.5 / sum(s**2 for s in size.values()) ** 0.5
        if wrong or whole > slack * TENSOR:
            worst = max(wrong or names, key=lambda name: distance[name] / (change[name] or 1.0))
            lines.append(
                f"{kind} tensors of {group} are off by {whole:.1e} of their norm; {len(wrong)} of {len(names)}, {worst} by "
                f"{distance[worst] / (change[worst] or 1.0):.1e} of its change"
            )
    return lines


def check(laboratory: Laboratory, base: str, changes: Changes, found: Sequence[State], what: str, alone: bool = False) -> None:
    start, expected = laboratory.reference(base, changes, alone)
    wrong = differences(start, found, expected)
    assert not wrong, "\n".join([f"{what}: train() does not do what the method says", *wrong[:20]])


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case.quick else [pytest.mark.slow], id=case.name) for case in CASES]
)
@pytest.mark.second
def test_setting(case: Case, laboratory: Laboratory, tmp_path: Path) -> None:
    context = BASE | case.context
    changes = context | case.changes
    check(laboratory, case.base, changes, laboratory.world.run(case.base, changes, tmp_path), case.name)
    start, expected = laboratory.reference(case.base, changes)
    _, without = laboratory.reference(case.base, context)
    assert differences(start, without, expected, slack=3.0), f"{case.name} makes no difference, so nothing was tested"


def test_every_setting_has_a_run() -> None:
    """A new key of `params.yaml` needs a case here, or a reason."""
    seen = {key_of(name) for case in CASES for name in case.changes}
    keys = training_keys()
    assert len(keys) > 60 and not ELSEWHERE.keys() - keys
    missing = {key for key in keys - ELSEWHERE.keys() if not any(f"{key}.".startswith(f"{name}.") for name in seen)}
    assert not missing, f"no run sees {sorted(missing)}"


def test_random_numbers_of_the_samples(laboratory: Laboratory) -> None:
    """The reference takes the samples' random numbers as they are: noise is Gumbel's, and all else is uniform."""
    changes = BASE | {"steps": 24, "mask_points": 64}
    micros = [micro for step in laboratory.world.samples("tiny", changes, laboratory._model("tiny", BASE)) for micro in step]
    regions = [micro.first for micro in micros if micro.regions]
    noise = torch.cat([batch.noise.flatten() for batch in regions])
    corruption = torch.cat([batch.corruption.flatten() for batch in regions])
    points = torch.cat([micro.second.targets.uniform.flatten() for micro in micros])
    for numbers, share_below in ((noise, torch.exp(-torch.exp(-noise.double()))), (corruption, corruption), (points, points)):
        count = len(numbers)
        ranks = torch.arange(1, count + 1).double() / count
        distance = float((share_below.double().sort().values - ranks).abs().max())
        assert count > 500 and distance < 2 / count**0.5  # Kolmogorov and Smirnov: once in a thousand by chance, for other seeds


@pytest.mark.second
def test_base(laboratory: Laboratory, tmp_path: Path) -> None:
    """What all other runs differ from, for a step more."""
    changes = BASE | {"steps": 3}
    check(laboratory, "tiny", changes, laboratory.world.run("tiny", changes, tmp_path, on_disk=True), "the base")
    kinds = [state.values.keys() & {"ref_mask", "loop1_mask"} for state in laboratory.reference("tiny", changes)[1]]
    assert kinds == [{"ref_mask"}, {"loop1_mask"}, {"loop1_mask"}], "both kinds of step were seen"


@pytest.mark.slow
def test_padding_carries_nothing(laboratory: Laboratory, tmp_path: Path) -> None:
    """Here the reference reads every conversation by itself."""
    changes = BASE | {"masks_per_image": 3}
    check(laboratory, "tiny", changes, laboratory.world.run("tiny", changes, tmp_path), "padding", alone=True)


@pytest.mark.slow
def test_stopped_and_continued(laboratory: Laboratory, tmp_path: Path) -> None:
    changes = BASE | {"dropout": 0.3, "accumulation": 2, "steps": 3}
    found = laboratory.world.run("tiny", changes, tmp_path, on_disk=True, stop_after=1)
    check(laboratory, "tiny", changes, found, "stopped by SIGTERM after a step, and started again")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"checkpoint_activations": True}, {"gallery": 3}], ids=["checkpoint_activations", "gallery"])
def test_not_a_setting_of_the_result(changes: Changes, laboratory: Laboratory, tmp_path: Path) -> None:
    """What saves memory or only looks on changes nothing, not even what dropout draws."""
    context = BASE | {"dropout": 0.3}
    check(laboratory, "tiny", context, laboratory.world.run("tiny", context | changes, tmp_path), str(changes))


@pytest.mark.slow
@pytest.mark.parametrize("shard_frozen", [False, True])
def test_two_processes(shard_frozen: bool, laboratory: Laboratory, tmp_path: Path) -> None:
    """Two with half of each micro-batch do what one does with all of it, also where they share out the frozen layers."""
    changes = BASE | {"batch": 2, "accumulation": 2}
    seen = changes | {
        "batch": 1,
        "gallery": 3 if shard_frozen else 0,
    }  # examples are captions that the first process alone writes
    found = laboratory.world.run_together("tiny", seen, tmp_path, 2, shard_frozen)
    start, expected = laboratory.reference("tiny", changes)
    expected = [State(state.trained, {}, state.values) for state in expected]  # a process alone would show its teacher
    wrong = differences(start, found, expected, but=["loop1_teacher_different"])  # counted within each process
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.slow
def test_bf16(laboratory: Laboratory, tmp_path: Path) -> None:
    """Computed in bf16, whose numbers have three digits; what is trained, and its teacher, are float32 all the same.

    After a step the curves agree to 1e-2 of their value. The sum of a gradient's rounding errors has no such bound, and AdamW
    turns the sign of small elements: the change agrees to 5 % of its norm (measured: 2 %).
    """
    changes = BASE | {"precision": "bf16", "steps": 1}
    found = laboratory.world.run("tiny", changes, tmp_path)[0]
    start, (expected,) = laboratory.reference("tiny", changes)
    assert {tensor.dtype for kind in (found.trained, found.teacher) for tensor in kind.values()} == {torch.float32}
    for name, value in expected.values.items():
        assert found.values[name] == pytest.approx(value, rel=1e-2, abs=1e-4), name
    for kind in ("trained", "teacher"):
        distance, change = 0.0, 0.0
        for name, tensor in getattr(expected, kind).items():
            if not re.match(plain.NO_GRADIENT, name):
                distance += float((getattr(found, kind)[name] - tensor).double().square().sum())
                change += float((tensor - start[name]).double().square().sum())
        assert distance**0.5 < 0.05 * change**0.5, kind
    _, (full,) = laboratory.reference("tiny", BASE | {"steps": 1})
    assert differences(start, [full], [expected], slack=3.0), "bf16 makes a difference"
