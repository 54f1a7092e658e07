"""The heart of the DAG as users start it: real launch path, a world outside the repository, one and two processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from ans.data.arrow import read_index
from ans.data.images import open_image
from ans.data.samples import Evaluated, training_rows
from ans.formats import shards
from ans.formats.pth import read_pth
from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Segmenter
from tests import pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("pipeline"))


def small_values(work: Path, **changes: object) -> dict:
    """Without dropout, whose noise depends on how a batch is split among the processes."""
    return pipeline.small_values(work.parent / "world", train__lora__dropout=0.0, **changes)


@pytest.fixture(scope="module")
def one_process(work: Path):
    values = small_values(work)
    pipeline.train_to_evaluation(work, values)
    return outcome(work, values)


@pytest.fixture
def elsewhere(work: Path, one_process, tmp_path: Path) -> Path:
    """A copy of the folder by links, for a test that trains or evaluates anew."""
    copy = tmp_path / "work"
    shutil.copytree(work, copy, copy_function=os.link)
    (copy / "params.yaml").unlink()
    return copy


def outcome(work: Path, values: dict):
    splits = values["evaluate"]["splits"]
    return (
        dict(read_pth(work / "models" / "checkpoint").state),
        {split: pipeline.metrics(work, "full", split) for split in splits},
        {split: pd.read_parquet(work / "data" / "eval" / "full" / f"{split}.parquet") for split in splits},
        (work / "reports" / "train" / "plots" / "loss.tsv").read_text(),
    )


def test_the_same_seed_gives_the_same_twice(work: Path, one_process, elsewhere: Path) -> None:
    shutil.rmtree(elsewhere / "models" / "checkpoint")
    shutil.rmtree(elsewhere / "reports")
    pipeline.write_params(elsewhere, small_values(work))
    pipeline.run(elsewhere, "train")
    again = dict(read_pth(elsewhere / "models" / "checkpoint").state)
    assert again.keys() == one_process[0].keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in one_process[0].items())
    assert (elsewhere / "reports" / "train" / "plots" / "loss.tsv").read_text() == one_process[3]


def test_two_processes_agree_with_one(work: Path, one_process, elsewhere: Path) -> None:
    """Two gloo processes with half the batch each: the same global batch, so the same run up to summation order."""
    both = small_values(work, launch__processes=2, train__batch=2)
    pipeline.train_to_evaluation(elsewhere, both)
    together = outcome(elsewhere, both)
    first = [float(text.splitlines()[1].split()[1]) for text in (one_process[3], together[3])]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    manifest = torch.load(elsewhere / "models" / "checkpoint" / "last.pth", weights_only=True)["meta"]
    assert (manifest["processes"], manifest["effective_batch"]) == (2, 4)
    for split, frame in one_process[2].items():
        assert frame[["image_path", "sent_id"]].equals(together[2][split][["image_path", "sent_id"]]), (
            "nothing twice, nothing lost"
        )


def test_evaluation_is_the_same_on_two_processes(work: Path, one_process, elsewhere: Path) -> None:
    """One set of weights, the same batch plan: bit-identical predictions."""
    for made in ("reports/eval", "data/eval"):
        shutil.rmtree(elsewhere / made)
    values = small_values(work, launch__processes=2)
    pipeline.write_params(elsewhere, values)
    pipeline.run(elsewhere, "evaluate", "full")
    _, numbers, predictions, _ = outcome(elsewhere, values)
    assert numbers == one_process[1]
    for split, frame in predictions.items():
        pd.testing.assert_frame_equal(frame, one_process[2][split])


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


def test_the_converted_model_is_the_trained_one(work: Path, one_process) -> None:
    """What is evaluated is a folder, its LoRA merged; the model in memory, LoRA beside its weights, answers the same."""
    lora = pipeline.small_config(work.parent / "world").train.lora
    memory = Segmenter.from_pretrained(work / "models" / "base")
    add_lora(memory, lora.rank, lora.alpha, lora.dropout, 0)
    trained = select_trained(memory, ("lora", "proj", "fcs", "sam2_decoder"))
    state = torch.load(work / "models" / "checkpoint" / "last.pth", weights_only=True)["state_dict"]
    assert {memory.config.keys.trained_name(name) for name in trained} == set(state)
    for name, parameter in trained.items():
        parameter.data.copy_(state[memory.config.keys.trained_name(name)])
    memory.eval()
    converted = Segmenter.from_pretrained(work / "models" / "variants" / "full")
    index = read_index(work / "data" / "index" / "refcoco.arrow")
    records = list(index.records())[:12]
    images = [open_image(work.parent / "world", record.path) for record in records]
    texts = [[e.sent for region in record.regions for e in region.expressions][:4] for record in records]
    answers = [model.segment(model.read(images), texts, max_new_tokens=16) for model in (memory, converted)]
    pairs = [pair for one, two in zip(*answers, strict=True) for pair in zip(one, two, strict=True)]
    assert len(pairs) > 20 and all(one.answer == two.answer for one, two in pairs)
    differing = sum(int((one.mask != two.mask).sum()) for one, two in pairs)
    assert differing <= 1e-4 * sum(one.mask.size for one, _ in pairs), "pixels whose logit is all but zero"


def test_variants_cost_no_disk_under_dvc(work: Path, one_process, tmp_path: Path) -> None:
    """Base n, trained shards m, six variants in workspace and cache: n + m bytes and a little of text, by counting inodes."""
    for name in ("base", "hf"):
        shutil.copytree(work / "models" / name, tmp_path / "models" / name, copy_function=os.link)
    values = pipeline.small_values(work.parent / "world")
    pipeline.write_params(tmp_path, values)
    stages = yaml.safe_load((pipeline.REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages["filter"]["do"]["deps"] = ["models/base", "models/hf"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"filter": stages["filter"]}}), encoding="utf-8")
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(pipeline.REPOSITORY), "PATH": binaries}
    (tmp_path / ".dvc").mkdir()
    shutil.copy(pipeline.REPOSITORY / ".dvc" / "config", tmp_path / ".dvc" / "config")
    for command in (("config", "core.no_scm", "true"), ("add", "models/base", "models/hf"), ("repro",)):
        subprocess.run([sys.executable, "-m", "dvc", "-q", *command], cwd=tmp_path, env=environment, check=True)
    variants = [path for path in (tmp_path / "models" / "variants").iterdir()]
    assert len(variants) == len(values["variants"])
    stored = {path.stat().st_ino: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    base = {path.stat().st_ino: path.stat().st_size for path in shards.files(tmp_path / "models" / "base")}
    both = base | {path.stat().st_ino: path.stat().st_size for path in shards.files(tmp_path / "models" / "hf")}
    assert sum(base.values()) < sum(both.values()) <= sum(stored.values()) < sum(both.values()) + 500_000


def test_evaluated_images_are_left_out(work: Path) -> None:
    indexes = [read_index(work / "data" / "index" / f"{name}.arrow") for name in pipeline.REFERRING]
    kept, left_out = training_rows(indexes, Evaluated(indexes))
    evaluated = {r.path for index in indexes for r in index.records() if {region.split for region in r.regions} - {"train"}}
    assert left_out > 0
    assert not evaluated & {indexes[number].record(row).path for number, row in kept}
