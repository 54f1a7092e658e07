"""The heart of the DAG as users start it: real launch path, a world outside the repository, one and two processes."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from ans.checkpoints.convert import read_checkpoint
from ans.data.dataset import training_rows
from ans.data.index import read_index
from tests import pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def one_process(work: Path):
    values = pipeline.small_values(work.parent / "world")
    pipeline.train_to_evaluation(work, values)
    return outcome(work, values)


def outcome(work: Path, values: dict):
    splits = values["presets"]["tiny"]["evaluate"]["splits"]
    return (
        dict(read_checkpoint(work / "models" / "checkpoint")),
        {split: pipeline.metrics(work, "full", split) for split in splits},
        {split: pd.read_parquet(work / "data" / "eval" / "full" / f"{split}.parquet") for split in splits},
        (work / "reports" / "train" / "plots" / "loss.tsv").read_text(),
    )


def test_the_same_seed_gives_the_same_twice(work: Path, one_process) -> None:
    values = pipeline.small_values(work.parent / "world")
    pipeline.train_to_evaluation(work, values)
    again = outcome(work, values)
    assert all(torch.equal(again[0][key], tensor) for key, tensor in one_process[0].items())
    assert again[1] == one_process[1] and again[3] == one_process[3]


def test_two_processes_agree_with_one(work: Path, one_process) -> None:
    """Two gloo processes with half the batch each: the same global batch, so the same run up to summation order."""
    changes = {"launch__processes": 2, "presets__tiny__train__batch": 2, "presets__tiny__train__lora__dropout": 0.0}
    single = pipeline.small_values(work.parent / "world", presets__tiny__train__lora__dropout=0.0)
    pipeline.train_to_evaluation(work, single)
    alone = outcome(work, single)
    both = pipeline.small_values(work.parent / "world", **changes)
    pipeline.train_to_evaluation(work, both)
    together = outcome(work, both)
    first = [float(text.splitlines()[1].split()[1]) for text in (alone[3], together[3])]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    manifest = torch.load(work / "models" / "checkpoint" / "last.pth", weights_only=True)["meta"]
    assert (manifest["processes"], manifest["effective_batch"]) == (2, 4)
    for split, frame in alone[2].items():
        assert frame[["image_path", "sent_id"]].equals(together[2][split][["image_path", "sent_id"]]), (
            "nothing twice, nothing lost"
        )


def test_evaluation_is_the_same_on_two_processes(work: Path, one_process) -> None:
    """One set of weights, the same batch plan: bit-identical predictions."""
    values = pipeline.small_values(work.parent / "world")
    pipeline.train_to_evaluation(work, values)
    alone = outcome(work, values)[2]
    pipeline.write_params(work, pipeline.small_values(work.parent / "world", launch__processes=2))
    pipeline.run(work, "evaluate", "full")
    for split, frame in outcome(work, values)[2].items():
        pd.testing.assert_frame_equal(frame, alone[split])


def test_what_is_left(work: Path, one_process) -> None:
    for split, numbers in one_process[1].items():
        assert numbers["n"] == len(one_process[2][split]) > 0
        assert 0 <= numbers["ciou"] <= 1
    protocol = json.loads((work / "data" / "eval" / "full" / "protocol.json").read_text())
    assert protocol["prompt"] == " Please segment {} in this image." and len(protocol["weights_sha256"]) == 64
    manifest = torch.load(work / "models" / "checkpoint" / "last.pth", weights_only=True)["meta"]
    states = {name: entry["state"] for name, entry in manifest["groups"].items()}
    assert {name for name, state in states.items() if state == "trained"} == {
        f"{group} (trained)" for group in ("lora", "proj", "fcs", "sam2_decoder")
    }


def test_evaluated_images_are_left_out(work: Path) -> None:
    indexes = [read_index(work / "data" / "index" / f"{name}.arrow") for name in pipeline.REFERRING]
    kept, left_out = training_rows(indexes)
    evaluated = {r.path for index in indexes for r in index.records() if {region.split for region in r.regions} - {"train"}}
    assert left_out > 0
    assert not evaluated & {indexes[number].record(row).path for number, row in kept}
