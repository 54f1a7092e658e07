"""A small twin of each family through the stages: a release with random weights and SAM2, put together, trained, converted, evaluated."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from ans.checkpoints.export import export_adapter, export_hub
from ans.formats.shards import entries, sha256
from ans.model.loading import read_tensors
from ans.model.segmenter import Segmenter
from tests import pipeline, small_releases

pytestmark = pytest.mark.slow

RELEASES = {
    "sa2va-qwen3-vl-8b": (small_releases.qwen3vl, "Sa2VA on Qwen3-VL"),
    "sa2va-qwen2_5-vl-3b": (small_releases.qwen25vl, "Sa2VA on Qwen2.5-VL"),
    "sa2va-8b": (small_releases.internlm2, "Sa2VA on InternVL with InternLM2"),
}
"""Preset -> the release in small, and what messages call the family."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("preset", RELEASES)
def test_a_small_release_through_the_stages(world: Path, tmp_path: Path, preset: str) -> None:
    make, name = RELEASES[preset]
    work, released = tmp_path / "work", tmp_path / "released"
    (work / "data").mkdir(parents=True)
    (work / "data" / "index").symlink_to(world / "data" / "index")
    torch.manual_seed(3)
    make(released)
    small_releases.add_sam2_section(released)
    small_releases.sam2(work / "sam2_hiera_large.pt")
    sam2 = {"location": "sam2_hiera_large.pt", "sha256": sha256(work / "sam2_hiera_large.pt")}
    groups = ["lora", "embed_head", "fcs", "sam2_decoder"]
    values = pipeline.small_values(
        world.parent / "world", preset=preset, weights={"source": "path", "location": str(released), "sam2": sam2},
        launch__workers=0, train__steps=2, train__batch=4, train__accumulation=1, train__precision="float32", train__groups=groups,
        train__lora={"rank": 4, "alpha": 8.0}, train__mask_points=0, train__caption_len=8, train__referring__sources=["refcoco"],
        variants__full=groups, evaluate__precision="float32", evaluate__splits=["refcoco_val"], evaluate__max_new_tokens=4,
        evaluate__tokens_per_batch=4096,
    )  # fmt: skip
    pipeline.write_params(work, values)
    pipeline.run(work, "weights")
    pipeline.train_to_evaluation(work, values)

    base, out = work / "models" / "base", work / "models" / "hf"
    model = Segmenter.from_pretrained(out)
    assert model.config.family.name == name
    embedding, output = model.config.family.tables
    before, after = read_tensors(base), read_tensors(out)
    assert before.keys() == after.keys() and len(before[embedding]) == len(before[output]) == len(model.tokenizer) < 440
    keys = model.config.keys
    changed = {keys.shard_of(key) for key in before if not torch.equal(before[key].float(), after[key].float())}
    assert changed == {"embed_head", "llm", "fcs", "sam2_decoder"}
    adapted = {key.split(".")[-2] for key in before if keys.shard_of(key) == "llm" and not torch.equal(before[key], after[key])}
    assert adapted == set(model.config.family.lora_targets)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "sa2va_chat" and config["auto_map"]["AutoModel"].startswith("ByteDance/Sa2VA-")

    table = pd.read_parquet(work / "data" / "eval" / "full" / "refcoco_val.parquet")
    assert len(table) == pipeline.metrics(work, "full", "refcoco_val")["n"] > 0
    pipeline.run(work, "filter", "proj")
    assert entries(work / "models" / "variants" / "proj").keys() == before.keys()
    full = work / "models" / "variants" / "full"
    export_adapter(full, work / "models" / "checkpoint" / "last.pth", tmp_path / "adapter")
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(adapter["target_modules"]) == set(model.config.family.lora_targets)
    export_hub(full, tmp_path / "hub", work / "reports")
    assert Segmenter.from_pretrained(tmp_path / "hub").config.family.title in (tmp_path / "hub" / "README.md").read_text()

    if not model.config.family.regions:
        values["train"]["loop2"]["enabled"] = True
        pipeline.write_params(work, values)
        with pytest.raises(
            AssertionError, match=f"train.loop2: {name} was not trained to describe regions; train it on captions first"
        ):
            pipeline.run(work, "train")
