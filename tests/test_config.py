"""`params.yaml` is read strictly: every mistake is named by its path."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from ans.config import Config, ConfigError, load


@pytest.fixture
def values():
    with open("params.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file)


def test_the_committed_file_is_valid() -> None:
    config = load()
    assert set(config.presets) == {"tiny", "sa2va-1b", "sa2va-4b", "lisa-tiny", "lisa-7b"}
    assert config.variants["base"] == ()
    assert config.presets["sa2va-4b"].train.effective_batch(processes=8) == 64
    assert config.presets["sa2va-4b"].train.lora.scale() == 2.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.stepz", 3, "train.stepz: unknown key"),
        ("train.steps", "many", "train.steps: expected int, found 'many'"),
        ("train.steps", True, "train.steps: expected int, found True"),
        ("train.steps", 0, "train.steps: must be at least 1"),
        ("train.beta", -1, "train.beta: must be at least 0, is -1"),
        ("presets.tiny.train.groups", ["vision"], "presets.tiny.train.groups[0]: expected one of"),
        ("presets.tiny.train.groups", [], "presets.<preset>.train.groups: names no group"),
        ("presets.tiny.train.lr", "1e-4", "presets.tiny.train.lr: expected float, found '1e-4' (YAML reads 1e-4 as text"),
        ("presets.tiny.train.lora.rank", 1.5, "presets.tiny.train.lora.rank: expected int"),
        ("presets.tiny.train.schedule", "step", "presets.tiny.train.schedule: expected one of constant, cosine, linear"),
        ("preset", "huge", "preset: no preset named 'huge'; there are lisa-7b, lisa-tiny, sa2va-1b, sa2va-4b, tiny"),
        ("variants.full", ["lora", "nothing"], "variants.full[1]: expected one of"),
        ("variants.base", ["lora"], "variants.base: must be there and be []"),
        ("launch.machine_rank", 3, "launch.machine_rank: must be below"),
        ("presets.tiny.evaluate.splits", "refcoco_val", "presets.tiny.evaluate.splits: expected a list"),
        ("paths", None, "paths: expected a section"),
    ],
)
def test_mistakes_are_named(values, path, value, message) -> None:
    node = values
    *parents, key = path.split(".")
    for parent in parents:
        node = node[parent]
    node[key] = value
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        Config(values)


UNUSABLE = {
    "presets.tiny.train.batch": (0, -1),
    "presets.tiny.train.accumulation": (0, -2),
    "presets.tiny.train.lr": (0, -3, float("nan"), float("inf")),
    "presets.tiny.train.lr_sam2_scale": (-1,),
    "presets.tiny.train.warmup": (7, -0.1, float("nan")),
    "presets.tiny.train.clip": (0, -1, float("nan")),
    "presets.tiny.train.weight_decay": (-1,),
    "presets.tiny.train.lora.dropout": (5, 1, -0.1),
    "presets.tiny.train.lora.alpha": (0,),
    "presets.tiny.train.max_tiles": (0,),
    "presets.tiny.train.caption_len": (0, -1),
    "presets.tiny.train.objects_per_image": (0,),
    "presets.tiny.train.objects_per_conversation": (0,),
    "presets.tiny.train.mask_points": (-1,),
    "presets.tiny.evaluate.max_new_tokens": (0,),
    "presets.tiny.evaluate.tokens_per_batch": (0,),
    "train.steps": (0, -5),
    "train.seed": (-1,),
    "train.min_seg_rate": (5, -1),
    "train.loss.mask": (-1, float("nan")),
    "train.loss.dice": (-0.5,),
    "train.loss.language": (-1,),
    "train.loss.iou": (-1,),
    "train.loop1.tau": (0, -1),
    "train.loop1.denoising": (-1,),
    "train.loop2.mask_supervision": (-1,),
    "train.ema.decay": (1, -0.1),
    "launch.workers": (-1,),
    "launch.processes": (0,),
    "launch.main_port": (0, 70000),
    "launch.save_state_seconds": (-1,),
    "index.max_bad_fraction": (-2, 2),
    "subset_sa1b.images": (0,),
    "subset_sa1b.min_predicted_iou": (-1,),
    "presets.tiny.train.referring": (["nothing"], ["refcoco", "sa1b"], []),
    "presets.tiny.evaluate.splits": (["nothing_val"], ["refcoco"], []),
    "presets.tiny.evaluate.captions": (["nothing_val"],),
    "train.loop1.sources": ({"nothing": {"repeats": 1.0, "max_samples": None}}, {}),
    "train.loop2.source": ("nothing",),
    "variants.lora": ([],),
    "sources.sa1b.reader": ("nothing", "own", "common"),
    "own": ({"refcoco": {"folder": "x"}}, {"a/b": {"folder": "x"}}, {"sa1b_subset": {"folder": "x"}}),
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in UNUSABLE.items() for value in values])
def test_what_cannot_work_is_refused_with_its_path(values, path: str, value: object) -> None:
    node = values
    *parents, key = path.split(".")
    for parent in parents:
        node = node[parent]
    node[key] = value
    with pytest.raises(ConfigError) as error:
        Config(values)
    named = str(error.value).split(":")[0].replace("<preset>", "tiny").replace("sources.*", "sources.sa1b")
    assert named in path or named.startswith(path), error.value


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train: {steps: [}")
    with pytest.raises(ConfigError, match="params.yaml: not YAML: "):
        load(tmp_path / "params.yaml")


def test_every_missing_key_is_named(values) -> None:
    """Each key of each section, removed alone, is named by its path."""

    def paths(node, prefix=()):
        for key, child in node.items():
            free = (
                prefix
                and prefix[0] in ("sources", "own", "variants")
                or prefix[-1:] == ("presets",)
                or prefix[-1:] in (("sha256",), ("sources",))
            )
            if not free:
                yield (*prefix, key)
            if isinstance(child, dict):
                yield from paths(child, (*prefix, key))

    for path in paths(values):
        broken = copy.deepcopy(values)
        node = broken
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        with pytest.raises(ConfigError, match="^" + re.escape(f"{'.'.join(path)}: missing")):
            Config(broken)


def test_the_pipeline_tracks_every_section(values) -> None:
    """What a stage reads is declared in dvc.yaml, so that a change re-runs it; `launch` alone is left out, on purpose."""
    with open("dvc.yaml", encoding="utf-8") as file:
        stages = yaml.safe_load(file)["stages"]
    declared = {param for stage in stages.values() for param in (stage.get("do") or stage).get("params", [])}
    for section in set(values) - {"launch", "presets", "sources"}:
        assert any(param.split(".")[0] == section for param in declared), section
    assert {"presets.${preset}.weights", "presets.${preset}.train", "presets.${preset}.evaluate"} <= declared


def test_a_change_reruns_only_what_reads_it() -> None:
    """`train:` is read by `train`, and by `select` for the sources it names; `evaluate:` by evaluation and report; `launch:` by
    nothing that DVC tracks."""
    with open("dvc.yaml", encoding="utf-8") as file:
        stages = yaml.safe_load(file)["stages"]
    readers: dict[str, set[str]] = {}
    for name, stage in stages.items():
        for param in (stage.get("do") or stage).get("params", []):
            readers.setdefault(param.split(".")[0], set()).add(name)
    assert readers["train"] == {"select", "train"}
    assert readers["evaluate"] == {"evaluate", "report"}
    assert readers["world"] == {"world"}
    assert "launch" not in readers
