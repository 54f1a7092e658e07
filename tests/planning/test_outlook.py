"""`python -m ans plan`: the numbers that it says, computed by hand, and the list of what is missing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ans.cli import main
from ans.config import Config, load
from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from ans.planning import memory
from ans.planning.memory import Micro
from ans.planning.missing import data_sets
from ans.planning.outlook import Outlook, look_ahead, micro_of, text
from ans.planning.published import COCO, PUBLISHED
from ans.planning.released import RELEASED
from ans.training import manifest, setup
from ans.workspace import Workspace
from tests import pipeline

PARAMS = pipeline.REPOSITORY / "params.yaml"
LISA = pipeline.REPOSITORY / "weights" / "lisa-tiny"
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def config() -> Config:
    return load(PARAMS)


@pytest.fixture(scope="module")
def original(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Outlook:
    """Of the original dual loop on 8 GPUs, in a folder without anything."""
    chosen = config.changed({"preset": "sa2va-4b-original", "launch.processes": 8})
    return look_ahead(chosen, Workspace(tmp_path_factory.mktemp("empty")))


@pytest.mark.second
def test_steps_and_samples_of_the_original(original: Outlook) -> None:
    assert (original.effective_batch, original.steps) == (16 * 2 * 8, 1500)
    lines = text(original).splitlines()
    assert "effective batch   256 = 8 process(es) x 16 images x 2 accumulated" in lines
    assert "samples           384,000 images of the primary tasks" in lines


LAYER = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008
"""Weights of the linear layers of a layer of Qwen2.5-3B: q and o, k and v, gate, up and down."""
LORA = 36 * 128 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008))
FCS = 2048 * 2048 + 2048 + 2048 * 256 + 256
PROJ = 2 * 4096 + 4096 * 2048 + 2048 + 2048 * 2048 + 2048
"""The projector's norm and two layers, from 4 x 1024 values of a cell of four."""


def test_parameters_of_the_original(original: Outlook) -> None:
    assert original.groups is not None
    count = {name: of["parameters"] for name, of in original.groups.items()}
    assert count["lora (trained)"] == LORA and count["fcs (trained)"] == FCS and count["proj (trained)"] == PROJ
    assert count["embed_head"] == 2 * 151679 * 2048
    biases_and_norms = 2048 + 2 * 256 + 2 * 2048
    assert count["llm"] == 36 * (LAYER + biases_and_norms) + 2048
    assert {name for name, of in original.groups.items() if of["state"] == "trained"} == {
        f"{name} (trained)" for name in ("lora", "proj", "fcs", "sam2_decoder")
    }


def test_memory_of_the_original(original: Outlook) -> None:
    """Language model in bf16; 24 bytes a trained value; one state a layer for two readings of 16 captions, and one layer again."""
    gigabytes, groups = original.gigabytes, original.groups
    assert groups is not None
    trained = sum(of["parameters"] for of in groups.values() if of["state"] == "trained")
    assert gigabytes["language: weights"] == pytest.approx(2 * groups["llm"]["parameters"] / 1e9)
    assert gigabytes["trained: values, gradient of each loop, AdamW, teacher"] == pytest.approx(24 * trained / 1e9)
    tokens = 16 * 2 * (256 + 256)
    kept, layer, weight = 2 * 36 * tokens * 2048, 2 * tokens * (8 * 2048 + 6 * 11008), 2 * 2048 * 11008
    logits = 16 * (256 + 10) * 151679 * (2 + 4 + 4)
    assert gigabytes["working memory: language model"] == pytest.approx((kept + layer + weight + logits) / 1e9)
    assert gigabytes["sum"] == pytest.approx(sum(value for name, value in gigabytes.items() if name != "sum"))


def test_time_of_the_original(original: Outlook) -> None:
    """A step has a micro-batch of loop 2 and at least one of labelled images: 256 tokens of the image, five turns of 40."""
    tokens = 16 * (256 + 5 * 40) + 16 * 2 * (256 + 256)
    flop = 1500 * 2 * 8 * 6 * (36 * LAYER) * tokens
    assert original.flop == pytest.approx(flop)
    assert f"  at least {flop / (8 * 989e12) / 3600:.2f} hours on 8 H100 at their data sheet's 989 TFLOP/s" in text(original)


def test_disk_of_the_original(original: Outlook) -> None:
    """Three step checkpoints and the last; a state has the values, AdamW's moments and the teacher, and is replaced by a new one."""
    assert original.groups is not None
    count = {name: of["parameters"] for name, of in original.groups.items()}
    trained = sum(number for name, number in count.items() if "(trained)" in name)
    assert original.disk == pytest.approx(
        {
            "base (2 bytes a parameter)": 2 * (sum(count.values()) - LORA) / 1e9,
            "trained model, shards that change (float32)": 4
            * (count["llm"] + PROJ + FCS + count["sam2_decoder (trained)"] + count["sam2_decoder"])
            / 1e9,
            "checkpoints, 4": 4 * 4 * trained / 1e9,
            "state to resume from, the old one and the new": 2 * 16 * trained / 1e9,
        }
    )


def test_a_labelled_image_has_its_tiles_and_objects(config: Config) -> None:
    """640 x 480 in at most 12 tiles of 448: 4 x 3 and the thumbnail, 256 tokens each."""
    chosen = config.changed({"preset": "sa2va-4b-sft"})
    model = ModelConfig.from_dict(RELEASED["ByteDance/Sa2VA-4B"])
    assert micro_of(model, chosen, chosen.tasks["referring"]) == Micro(2 * (13 * 256 + 5 * 40), 2 * 5 * 10)


def test_it_counts_as_the_manifest_does(config: Config, tmp_path: Path) -> None:
    """The parameters of the embedded base, by what a training says of it."""
    model = Segmenter.from_pretrained(pipeline.REPOSITORY / "weights" / "tiny")
    trained = setup.make_trainable(model, config.train)
    said = manifest.describe(config, model, trained, {}, 1, "", 1)["groups"]
    absolute = config.changed({"weights.location": str(pipeline.REPOSITORY / "weights" / "tiny")})
    assert look_ahead(absolute, Workspace(tmp_path)).groups == said


def test_shares_are_planned(config: Config, tmp_path: Path) -> None:
    chosen = config.changed({"weights.location": str(pipeline.REPOSITORY / "weights" / "tiny"), "launch.processes": 2})
    whole, shared = (
        look_ahead(chosen.changed({"launch.shard_frozen": on}), Workspace(tmp_path)).gigabytes for on in (False, True)
    )
    gathered = "layers gathered: one that runs, and the next"
    assert {name for name in whole if shared[name] < whole[name]} >= {"language: weights", "vision: weights", "sam: weights"}
    assert shared[gathered] > 0 and gathered not in whole


@pytest.mark.slow
def test_the_working_memory_is_a_lower_bound(config: Config) -> None:
    """Of a step of loop 2 as it is, by PyTorch's allocator; what the formula leaves out comes on top."""
    from tests.bench import sizes
    from tests.bench.trainer import Trainer, preset

    torch.manual_seed(0)
    tiny, chosen = ModelConfig.from_folder(pipeline.REPOSITORY / "weights" / "tiny"), preset("tiny", caption_len=64)
    trainer = Trainer.of_size(tiny, chosen)
    batch = sizes.caption_batch(trainer.model, chosen.train.batch, 64, 0)
    trainer.step([("loop2", batch)])
    peak = sizes.peak_bytes(lambda: trainer.step([("loop2", batch)])) / 1e9
    micro = micro_of(tiny, chosen, chosen.tasks["loop2"])
    model = memory.empty_model(tiny)
    setup.make_trainable(model, chosen.train)
    working = memory.estimate(model, chosen.train, micro, True, True)["working memory: language model"]
    assert peak / 4 < working < peak


# ------------------------------------------------------------------------------------------------------------ what is missing


def start_of(missing: list[str]) -> list[str]:
    return [one.split(":")[0] for one in missing]


DATA = ["sav", "sa1b", "openimages", "describe", "refcoco", "refcoco_plus", "refcocog"]


def test_all_that_is_missing_is_in_one_list(original: Outlook) -> None:
    """The root, the revision and the data sets, with where they are; nothing else."""
    assert start_of(original.missing) == [
        "weights.revision", "paths.root", *(f"data set {name}" for name in DATA),
        f"COCO's images, train2014, for RefCOCO and the like ({COCO.size}; http",
    ]  # fmt: skip
    assert "https://huggingface.co/ByteDance/Sa2VA-4B/commits/main" in original.missing[0]
    assert all(
        PUBLISHED[reader].link in "\n".join(original.missing) for reader in ("sa1b", "sav", "refcoco", "describe_anything")
    )
    assert original.command == (
        "dvc exp run -S preset=sa2va-4b-original -S paths.root=/data -S weights.revision=$COMMIT -S launch.processes=8"
    )


def test_what_is_there_is_not_missing(config: Config, tmp_path: Path) -> None:
    """One folder of a data set after the other, and the revision."""
    changes = {"preset": "sa2va-4b", "paths.root": str(tmp_path / "data"), "weights.revision": COMMIT, "launch.processes": 2}
    chosen = config.changed(changes)
    assert data_sets(chosen, Workspace(tmp_path))[0] == f"paths.root: there is no folder {tmp_path / 'data'}"
    for source in chosen.sources.values():
        (tmp_path / "data" / source.folder).mkdir(parents=True)
    found = look_ahead(chosen, Workspace(tmp_path))
    assert found.missing == [] and "nothing is missing" in text(found)
    assert found.command == (
        f"dvc exp run -S preset=sa2va-4b -S paths.root={tmp_path / 'data'} -S weights.revision={COMMIT} -S launch.processes=2"
    )
    (tmp_path / "data" / chosen.sources["sav"].folder).rmdir()
    assert start_of(data_sets(chosen, Workspace(tmp_path))) == ["data set sav"]


def test_checksums_packages_and_settings_are_in_the_list(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ans.planning.missing.find_spec", lambda name: None)
    here = Workspace(tmp_path)
    changes: dict[str, Any] = {"preset": "lisa-7b", "weights.revision": COMMIT, "train.referring.sources": ["nothing"]}
    found = look_ahead(config.changed(changes), here)
    assert start_of(found.missing)[:3] == ["train.referring", "weights.sam2.sha256", "bitsandbytes"]
    layer = {"preset": "lisa-tiny", "weights.location": str(LISA), "train.lora.targets": ["up"]}
    assert start_of(look_ahead(config.changed(layer), here).missing) == ["train.lora.targets"]
    url = {"weights.source": "url", "weights.location": "https://example.org"}
    assert start_of(look_ahead(config.changed(url), here).missing)[0] == "weights.sha256"
    gone = {"weights.source": "path", "weights.location": str(tmp_path / "gone")}
    assert start_of(look_ahead(config.changed(gone), here).missing)[0] == "weights.location"


@pytest.mark.second
def test_a_full_disk_is_told(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    found = look_ahead(config.changed({"preset": "sa2va-1b"}), Workspace(tmp_path))
    needed = sum(found.disk.values())
    assert needed > 1 and f"disk: the run needs {needed:.0f} GB here, 1 GB are free" in found.missing


def test_a_model_of_unknown_size_is_told(config: Config, tmp_path: Path) -> None:
    found = look_ahead(config.changed({"preset": "sa2va-4b", "weights.location": "somebody/Sa2VA-7B"}), Workspace(tmp_path))
    assert found.groups is None and "not known before the base is fetched" in text(found)


def test_every_reader_says_where_its_data_is(config: Config) -> None:
    assert {source.reader for source in config.sources.values()} | {"sav_video", "refcoco_m", "grand_f"} == set(PUBLISHED)


# --------------------------------------------------------------------------------------------------------- what is indexed


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("plan"))


@pytest.mark.slow
def test_what_is_indexed_is_counted(work: Path) -> None:
    """16 images with labels: in two passes of 4 images on two processes, 2 x 2 steps. RefCOCO's three sets share them."""
    world = work.parent / "world"
    location = str(pipeline.REPOSITORY / "weights" / "tiny")
    chosen = pipeline.small_config(world, launch__processes=2, weights__location=location, evaluate__splits=["refcoco_val"])
    found = look_ahead(chosen, Workspace(work))
    assert found.steps == 3 and {"sav", "sa1b_subset", "openimages", "describe"} < set(found.samples)
    assert found.samples["sav"] == 8 and found.splits == {"refcoco_val": "present", "refcocog_val": "present"}
    assert found.missing == []
    labels = chosen.changed({"train.epochs": 2, "train.loop1.enabled": False, "train.referring.sources": ["refcoco"]})
    found = look_ahead(labels, Workspace(work))
    images = found.samples["images with expressions"]
    assert images == 16 and found.steps == 2 * -(-images // (4 * 2)) == 4
    assert "steps             4 (passes over the labelled images: 2)" in text(found)


@pytest.mark.second
def test_a_split_is_compared_with_its_index(work: Path, tmp_path: Path) -> None:
    location = str(pipeline.REPOSITORY / "weights" / "tiny")
    changes: dict[str, Any] = {"weights__location": location, "evaluate__splits": ["refcoco_val", "refcoco_trial"]}
    chosen = pipeline.small_config(work.parent / "world", **changes, evaluate__captions=[])
    found = look_ahead(chosen, Workspace(work))
    assert found.splits == {"refcoco_val": "present", "refcoco_trial": "missing"}
    assert found.missing == [
        "split refcoco_trial: refcoco has no region of it; its splits are refcoco_testA, refcoco_testB, refcoco_train, refcoco_val"
    ]
    other = chosen.changed({"paths.root": str(tmp_path)})
    assert set(look_ahead(other, Workspace(work)).splits.values()) == {"indexed from other data"}


# ------------------------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_exit_status_says_whether_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").symlink_to(pipeline.REPOSITORY / "weights")
    monkeypatch.chdir(tmp_path)
    main(["plan", "--params", str(PARAMS)])
    assert "nothing is missing" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "sa2va-internvl3-2b", "--params", str(PARAMS)])
    assert stopped.value.code == 1 and "weights.revision" in capsys.readouterr().out.partition("\nmissing\n")[2]
