"""What the presets of Sa2VA-4B train: the figures of the original runs, and the table that compares the presets."""

import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from ans.config import Config, ConfigError, load
from ans.config.presets import BY_PRESET
from ans.config.sections import task_names
from ans.data.validate import PASSES, Validated, steps_of
from tests.config.conftest import PARAMS

PAGE = Path(__file__).parents[2] / "docs" / "real-runs.md"
COMPARED = ("tiny", "sa2va-4b", "sa2va-4b-original", "sa2va-4b-sft")


def effective(config: Config, preset: str) -> dict[str, Any]:
    """Every setting that a preset may set, by its dotted path, as it is in force."""
    chosen = config.changed({"preset": preset})
    sections = {name: getattr(chosen, name).model_dump() for name in BY_PRESET}
    sections["train"] |= {name: chosen.task(name).model_dump() for name in task_names()}
    flat: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict) and path != "train.loop1.sources":
            for key, inner in value.items():
                walk(f"{path}.{key}", inner)
        else:
            flat[path] = value

    for name, values in sections.items():
        walk(name, values)
    return flat


ORIGINAL = {
    # 8 GPUs, batch 16 per GPU, accumulation 2, AdamW with weight decay 0.05, constant 2e-5, clip 1.0, seed 42
    "train.batch": 16,
    "train.accumulation": 2,
    "train.optimizer": "adamw",
    "train.weight_decay": 0.05,
    "train.lr": 2e-5,
    "train.lr_sam2_scale": 1.0,
    "train.schedule": "constant",
    "train.warmup": 0.0,
    "train.clip": 1.0,
    "train.seed": 42,
    # EMA 0.999, tau 0.7, k 512, a quarter of the tokens corrupted, T 256, LoRA 128/256 with dropout 0.05, beta 0.5
    "train.ema.decay": 0.999,
    "train.ema.warmup": False,
    "train.loop1.tau": 0.7,
    "train.loop1.tau_end": 0.7,
    "train.loop1.top_k": 512,
    "train.loop1.mask_ratio": 0.25,
    "train.caption_len": 256,
    "train.lora.rank": 128,
    "train.lora.alpha": 256.0,
    "train.lora.dropout": 0.05,
    "train.groups": ("lora", "proj", "fcs", "sam2_decoder"),
    "train.beta": 0.5,
    "train.surgery": "orthogonal",
    # all positions are re-scored; language weights 1.0, denoising 0.0; mask x 2.0, Dice x 0.5, on 12,544 points
    "train.loop1.bridge": "gumbel",
    "train.loop1.rescored": "all",
    "train.loop1.denoising": 0.0,
    "train.loop1.distillation": 0.0,
    "train.loop1.reward": 0.0,
    "train.loss.language": 1.0,
    "train.loss.mask": 2.0,
    "train.loss.dice": 0.5,
    "train.loss.iou": 0.0,
    "train.mask_points": 12544,
    "train.max_tiles": 1,
    # loop 2 uses neither the mask of the data nor a gradient through the region, and all of Describe Anything
    "train.loop2.mask_supervision": 0.0,
    "train.loop2.soft_region": False,
    "train.loop2.source": "describe",
    "train.loop2.max_samples": None,
    # caps: SA-V 200,000, Open Images 100,000, the first 10,000 files of SA-1B with all their masks
    "train.loop1.sources": {
        "sav": {"repeats": 1.0, "max_samples": 200_000},
        "sa1b_subset": {"repeats": 1.0, "max_samples": None},
        "openimages": {"repeats": 1.0, "max_samples": 100_000},
    },
    "subset_sa1b.images": 10_000,
    "subset_sa1b.order": "name",
    "subset_sa1b.max_masks": None,
    "subset_sa1b.min_area_share": 0.0,
    "subset_sa1b.max_area_share": 1.0,
    "subset_sa1b.min_predicted_iou": 0.0,
    "subset_sa1b.min_stability_score": 0.0,
    # up to 1,500 steps, with a checkpoint every 200 to 500 that is kept
    "train.steps": 1500,
    "train.epochs": None,
    "train.save_every": 500,
    "train.keep": None,
    "train.referring.enabled": True,
    "train.referring.sources": ("refcoco", "refcoco_plus", "refcocog"),
    "evaluate.max_new_tokens": 512,
}
"""The settings of the original dual loop at 4B, as its authors' runs had them."""


@pytest.mark.parametrize("size", ["1b", "4b"])
def test_the_original_dual_loop_to_the_letter(config: Config, size: str) -> None:
    found = effective(config, f"sa2va-{size}-original")
    assert {path: found[path] for path in ORIGINAL} == ORIGINAL
    assert found["weights.location"] == f"ByteDance/Sa2VA-{size.upper()}"
    assert config.changed({"preset": f"sa2va-{size}-original"}).train.effective_batch(processes=8) == 256


def test_the_supervised_recipe(config: Config) -> None:
    """lr 1e-5, 5 % warm-up, cosine, 2 x 4 x 8 = 64 images a step, one epoch over the labels, nothing else."""
    chosen = config.changed({"preset": "sa2va-4b-sft"})
    train = chosen.train
    assert (train.lr, train.warmup, train.schedule, train.epochs) == (1e-5, 0.05, "cosine", 1)
    assert (train.batch, train.accumulation, train.effective_batch(processes=8)) == (2, 4, 64)
    assert list(chosen.tasks) == ["referring"] and chosen.training_indexes() == ("refcoco", "refcoco_plus", "refcocog")


def test_what_this_project_recommends(config: Config) -> None:
    """It is the defaults: nothing of the toy is in it."""
    values = config.changed({"preset": "sa2va-4b"})
    assert (values.subset_sa1b.images, values.train.steps, values.train.ema.decay) == (10_000, 1500, 0.999)
    assert not {origin for origin in (values.origin("train", key) for key in type(values.train).model_fields)} - {"default"}


def shown(value: Any) -> str:
    """A value as the table has it."""
    if isinstance(value, dict):
        caps = {name: of["max_samples"] for name, of in value.items()}
        return ", ".join(f"{name} {cap:,}" if cap else name for name, cap in caps.items())
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def test_the_page_has_what_differs(config: Config) -> None:
    """Each setting in which the compared presets differ, with their values, and no other."""
    lines = re.findall(r"^\| `([a-z0-9_.]+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    rows = {path: [cell.strip() for cell in cells.split("|")][:4] for path, cells in lines}
    settings = [effective(config, preset) for preset in COMPARED]
    paths = {path for of in settings for path in of if not path.startswith("weights.")}
    different = {path for path in paths if len({repr(of.get(path)) for of in settings}) > 1}
    assert rows == {path: [shown(of[path]) for of in settings] for path in different}


def test_own_data_takes_three_settings(tmp_path: Path, config: Config) -> None:
    """As docs/your-data.md has them, by DVC's own writer; nothing published is read then. And what the validator says of steps is so."""
    page = (PAGE.parent / "your-data.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^dvc exp run .*preset=own.*$", page, re.MULTILINE)
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    words = shlex.split(command)
    changes = [words[place + 1].replace("COMMIT", "0" * 40) for place, word in enumerate(words) if word == "-S"]
    apply_overrides(tmp_path / "params.yaml", changes)
    chosen = load(tmp_path / "params.yaml")
    assert chosen.preset == "own" and chosen.own["mine"].folder == "my_kitchen" and chosen.paths.root == "/data"
    assert chosen.training_indexes() == chosen.evaluation_indexes() == ("mine",) and chosen.evaluated_alone() == ()
    looped = chosen.changed({"train.loop1.enabled": True, "train.epochs": "none", "train.steps": 50})
    assert list(looped.tasks) == ["loop1", "referring"] and looped.training_indexes() == ("mine",)
    assert chosen.train.epochs == PASSES
    with pytest.raises(ConfigError, match=r"own\.yaml: evaluate\.splits: no index named 'mine'.* `own`"):
        config.changed({"preset": "own"})


def test_steps_follow_from_the_images() -> None:
    splits = {"train": Counter(images=20, objects=30, expressions=40), "val": Counter(images=4, objects=4, expressions=4)}
    said = steps_of(Validated([], [], 24, 34, 44, splits, []))
    assert "20 images" in said and "3 steps of 8 images" in said and "10 passes, 30 steps" in said
    assert steps_of(Validated([], [], 4, 4, 4, {"val": splits["val"]}, [])) == ""
