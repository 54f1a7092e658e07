"""LISA through the same stages: the tiny model of its recipe, not trained yet, on the synthetic ReasonSeg."""

import json
from pathlib import Path

import pandas as pd
import pytest

from ans.checkpoints.base import shard
from ans.formats.shards import entries
from ans.toy import lisa
from ans.toy.recipe import write_model
from ans.workspace import Workspace
from tests import pipeline

pytestmark = pytest.mark.slow

VALUES = {
    "preset": "lisa-tiny",
    "train__epochs": 2,
    "train__batch": 4,
    "train__lr": 1e-3,
    "evaluate__splits": ["reasonseg_val", "reasonseg_test"],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for two epochs, converted, two variants made and evaluated."""
    work = pipeline.prepare(tmp_path_factory.mktemp("lisa"))
    write_model(lisa.new_model(), work / "plain")
    shard(work / "plain", Workspace(work).base)
    values = pipeline.small_values(work.parent / "world", **VALUES)
    pipeline.train_to_evaluation(work, values)
    for variant in ("base", "proj"):
        pipeline.run(work, "filter", variant)
    return work


def test_the_whole_way(work: Path) -> None:
    history = json.loads((work / "reports" / "train" / "history.json").read_text())
    assert [row["number"] for row in history] == [1, 2] and history[1]["loss"] < history[0]["loss"]
    manifest = json.loads((work / "models" / "checkpoint" / "manifest.json").read_text())
    assert manifest["trained"] == ["lora", "seg_row", "fcs", "sam2_decoder"]
    rows = [entry for name, entry in manifest["groups"].items() if name == "seg_row (trained)"]
    assert [(entry["tensors"], entry["parameters"]) for entry in rows] == [(2, 2 * 96)]
    assert manifest["samples"] == {"images with expressions": 8, "different images among them": 4}, "two queries an image"
    for split, queries in (("reasonseg_val", 3), ("reasonseg_test", 3)):
        table = pd.read_parquet(work / "data" / "eval" / "full" / f"{split}.parquet")
        assert len(table) == queries == pipeline.metrics(work, "full", split)["n"]
    protocol = json.loads((work / "data" / "eval" / "full" / "protocol.json").read_text())
    assert protocol["prompt"] == "What is {} in this image? Please output segmentation mask."


def test_a_variant_of_what_is_not_trained_is_the_base(work: Path) -> None:
    inodes = {}
    for variant in ("base", "proj", "full"):
        shards = {entry.path for entry in entries(work / "models" / "variants" / variant).values()}
        inodes[variant] = {path.name.split("-")[1]: path.stat().st_ino for path in shards}
    assert inodes["proj"] == inodes["base"]
    changed = {group for group, inode in inodes["full"].items() if inode != inodes["base"][group]}
    assert changed == {"llm", "embed_head", "fcs", "sam2_decoder"}
