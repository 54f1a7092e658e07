"""`params.yaml` is read strictly: every mistake is named by its path, and no value that cannot work is accepted."""

import copy
import datetime
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from ans.config import Config, ConfigError, load
from ans.config.presets import read_presets
from ans.config.schema import Group, StoredGroup
from ans.config.sections import SECTIONS, all_fields, task_names
from ans.groups import TRAINABLE
from tests.config.conftest import put
from tests.pipeline import REPOSITORY

INTERNVL3 = tuple(f"sa2va-internvl3-{size}" for size in ("2b", "8b", "14b"))
QWEN_VL = ("sa2va-qwen2_5-vl-3b", "sa2va-qwen2_5-vl-7b", "sa2va-qwen3-vl-2b", "sa2va-qwen3-vl-4b", "sa2va-qwen3-vl-8b")
ORIGINAL = ("sa2va-1b-original", "sa2va-4b-original")
SA2VA = tuple(f"sa2va-{size}" for size in ("1b", "4b", "8b", "26b", "4b-sft"))
PRESETS = ("tiny", "own", *SA2VA, *ORIGINAL, *INTERNVL3, *QWEN_VL, "lisa-tiny", "lisa-7b")
LABELS_ALONE = ("own", *QWEN_VL, "lisa-tiny", "lisa-7b", "sa2va-4b-sft")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_committed_presets_are_valid(config: Config, preset: str) -> None:
    chosen = config.changed({"preset": preset, "own": {"mine": {"folder": "kitchen"}}})
    assert chosen.tasks and chosen.training_indexes() and chosen.variants["base"] == ()
    if preset.startswith("sa2va"):
        assert chosen.train.effective_batch(processes=8) == (256 if preset in ORIGINAL else 64)
        assert chosen.train.lora.scale() == 2.0
    assert set(chosen.tasks) == ({"referring"} if preset in LABELS_ALONE else {"referring", "loop1", "loop2"})
    assert bool(chosen.evaluate.captions) == (preset not in LABELS_ALONE or preset in ("own", "sa2va-4b-sft"))


def test_there_are_no_other_presets() -> None:
    assert set(read_presets()) == {*PRESETS, "tiny-video"}  # which learns from videos alone


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.stepz", 3, "train.stepz: unknown key; did you mean train.steps?"),
        ("train.tau", 1.0, "train.tau: unknown key; did you mean train.loop1.tau?"),
        ("train.loop1.lr", 1.0, "train.loop1.lr: unknown key; did you mean train.lr?"),
        ("train.refering", {}, "train.refering: unknown key; did you mean train.referring?"),
        ("evaluat", {}, "evaluat: unknown key; did you mean evaluate?"),
        ("train.steps", "many", "train.steps: expected an integer, found 'many'"),
        ("train.steps", True, "train.steps: expected an integer, found True"),
        ("train.steps", 1.5, "train.steps: expected an integer"),
        ("train.steps", 0, "train.steps: must be at least 1, found 0"),
        ("train.lr", "fast", "train.lr: expected a number, found 'fast'"),
        ("train.beta", -1, "train.beta: must be at least 0, found -1"),
        (
            "train.groups",
            ["vision"],
            "train.groups.0: expected 'embed_head', 'seg_row', 'lora', 'proj', 'fcs', 'sam2_decoder' or 'memory', found 'vision'",
        ),
        ("train.groups", ["lora", "lora"], "train.groups: names lora twice"),
        ("train.groups", ["fcs", "memory"], "train.groups: names memory, which no task uses; set train.clips.enabled=true and"),
        ("train.groups", ["seg_row", "embed_head"], "train.groups: names seg_row and embed_head"),
        (
            "train.validation",
            {"split": "refcoco_val"},
            "train.validation: evaluates after epochs; set validation.every",
        ),
        ("presets", {"mine": {}}, "presets: unknown key; known here are preset, paths, "),
        (
            "preset",
            "huge",
            "preset: no preset named 'huge'; there are lisa-7b, lisa-tiny, own, sa2va-1b, sa2va-1b-original, sa2va-26b, ",
        ),
        ("preset", ["tiny"], "preset: no preset named ['tiny']"),
        ("variants.full", ["lora", "nothing"], "variants.full.1: expected"),
        ("variants.full", [], "variants.full: names no group"),
        ("variants.base", ["lora"], "variants.base: is required and must be []"),
        ("launch.scheduler", "pbs", "launch.scheduler: "),
        ("subset_sa1b.min_area_share", 1.0, "subset_sa1b: "),
        ("evaluate.splits", "refcoco_val", "evaluate.splits: expected a list, found 'refcoco_val'"),
        ("evaluate.splits", ["refcoco_val", "refcoco_val"], "evaluate.splits: names refcoco_val twice"),
        ("paths", None, "paths.root: missing"),
        ("train.loop1", 8, "train.loop1: expected a section, found 8"),
        ("train.epochs", 2, "train.epochs: counts passes over one task's samples, but loop1, referring take turns"),
        ("weights.revision", "0" * 40, "weights.revision: only source hub has revisions; must be none for embedded"),
        ("variants.a/b", ["lora"], "variants.a/b: expected a name of letters, digits, _ and -, which begins and ends with"),
        ("train.batch", 2**31, "train.batch: must be below 2^31, found 2147483648"),
    ],
)
def test_mistakes_are_named(config: Config, path: str, value: object, message: str) -> None:
    changes = {path: value}
    if path == "subset_sa1b.min_area_share":  # a rule between two settings
        changes["subset_sa1b.max_area_share"], message = 0.5, "subset_sa1b.min_area_share: must be at most max_area_share"
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        assert config.changed(changes).tasks


UNUSABLE: dict[str, tuple[Any, ...]] = {
    "train.batch": (0, -1, 2.5, 10**30, [1], {}, datetime.date(2024, 1, 1)),
    "train.beta": (-1, float("nan")),
    "train.accumulation": (0, -2),
    "train.lr": (0, -3, 1000, float("nan"), float("inf"), 10**400, "1e-5", [1e-5], True, -0.0),
    "train.lr_sam2_scale": (-1,),
    "train.warmup": (7, -0.1, float("nan")),
    "train.clip": (0, -1, float("nan")),
    "train.weight_decay": (-1,),
    "train.lora.dropout": (5, 1, -0.1),
    "train.lora.alpha": (0,),
    "train.lora.targets": ([], ["no name"]),
    "train.max_tiles": (0,),
    "train.caption_len": (0, -1),
    "train.mask_points": (-1,),
    "train.steps": (0, -5),
    "train.epochs": (0,),
    "train.seed": (-1, 2**32),
    "train.precision": ("fp16",),
    "train.four_bit": (["everything"],),
    "train.optimizer": ("sgd",),
    "train.surgery": ("yes",),
    "train.min_seg_rate": (5, -1),
    "train.loss.mask": (-1, float("nan")),
    "train.loss.dice": (-0.5,),
    "train.loss.language": (-1,),
    "train.loss.iou": (-1,),
    "train.loss": ({"mask": 0.0, "dice": 0.0, "language": 1.0, "iou": 0.0, "lisa_dice": False},),
    "train.ema.decay": (1, -0.1),
    "train.save_every": (-1,),
    "train.keep": (0,),
    "train.validation": ({"split": "nothing_val"}, {"split": "refcoco_val", "patience": 0}),
    "train.referring.sources": (["nothing"], ["refcoco", "sa1b"], [], ["refcoco", "refcoco"]),
    "train.referring.objects_per_image": (0,),
    "train.referring.objects_per_conversation": (0,),
    "train.clips.frames": (0,),
    "train.clips.followed": (-1,),
    "train.loop1.frames": (0,),
    "train.clips.expressions": (0,),
    "train.captioning.regions_per_conversation": (0,),
    "train.captioning.description_prompts": (0, 5),
    "train.captioning.sources": ([], ["describe", "describe"]),
    "train.loop1.sources": ({"nothing": {"repeats": 1.0}}, {"sav": {"repeats": -1.0}}, {"sav": {"repeats": 0}}, {}),
    "train.loop1.bridge": ("soft",),
    "train.loop1.tau": (0, -1),
    "train.loop1.top_k": (0,),
    "train.loop1.mask_ratio": (1.5, -0.1, 0.0),
    "train.loop1.denoising": (-1,),
    "train.loop1.description_prompts": (0, 5),
    "train.loop2.source": ("nothing",),
    "train.loop2.mask_supervision": (-1,),
    "evaluate.max_new_tokens": (0,),
    "evaluate.tokens_per_batch": (0,),
    "evaluate.splits": (["nothing_val"], ["refcoco"], []),
    "evaluate.captions": (["nothing_val"],),
    "evaluate.max_samples": (0,),
    "weights.source": ("ftp",),
    "weights.location": ("", " ", "a\nb", "\0"),
    "weights.revision": ("", "main", "0" * 39, "A" * 40, "0" * 40),  # an embedded base has no commit
    "weights.sha256": ({"../a": "0" * 64}, {"": "0" * 64}, {"a": "00"}, {"a": ""}, {1: "0" * 64}, ["a"]),
    "weights.sam2": ({"location": "a", "sha256": "00"}, {"location": "", "sha256": ""}, {"sha256": "0" * 64}, "a"),
    "paths.root": ("", " ", 3),
    "launch.main_address": ("", "a b\n"),
    "evaluate.videos": (
        {"a": {"reader": "mevis", "folder": "..", "split": "b"}},
        {"a": {"reader": "mevis", "folder": "a", "split": ".."}},
    ),
    "train.clips": ({"enabled": True}, 5, "on", [1]),
    "train.loop1": (5, "on", [1], "", [], 0, False),
    "sources": ({"sa1b_subset": {"reader": "sa1b", "folder": "a"}}, [1]),
    "sources.sa1b.folder": ("", ".", "..", "/", "/data", "a/../../b", "${HOME}", " a", "a\nb", 3),
    "convert.source": ("", "\n"),
    "convert.under": ("",),
    "convert.groups": (["seg"], []),
    "convert.code": ("Sa2VA", "a/b/c", "a /b"),
    "launch.workers": (-1,),
    "launch.processes": (0,),
    "launch.main_port": (0, 70000),
    "launch.save_state_seconds": (-1,),
    "index.max_bad_fraction": (-2, 2),
    "subset_sa1b.images": (0,),
    "subset_sa1b.min_predicted_iou": (-1,),
    "variants.lora": ([],),
    "sources.sa1b.reader": ("nothing", "own", "common"),
    "own": (
        {"a": {"folder": " "}},
        {"a": {"folder": ".."}},
        {"": {"folder": "x"}},
        {1: {"folder": "x"}},
        {"refcoco": {"folder": "x"}},
        {"a/b": {"folder": "x"}},
        {"sa1b_subset": {"folder": "x"}},
    ),
    "report.bootstrap": (0,),
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in UNUSABLE.items() for value in values])
@pytest.mark.second
def test_what_cannot_work_is_refused_with_its_path(config: Config, path: str, value: object) -> None:
    changes = {path: value} | ({"train.epochs": 3} if path == "train.validation" else {})
    with pytest.raises(ConfigError) as error:
        assert config.changed(changes).tasks
    assert "regex" not in str(error.value) and "pattern" not in str(error.value) and "\n" not in str(error.value)
    named = str(error.value).split(":")[0]
    part = named.removesuffix(".denoising") if path.endswith("mask_ratio") else named  # the rule is told of either of the two
    assert part == path or named.startswith(f"{path}.") or path.startswith(f"{part}."), error.value


def test_every_range_is_tried() -> None:
    """A setting with a range, or a few values to choose from, has one that is refused."""
    bounded = {
        path for path, of in all_fields().items() if any(hasattr(m, n) for m in of.metadata for n in ("ge", "gt", "lt", "le"))
    }
    tried = set(UNUSABLE)
    alike = ("world.", "report.", "subset_sa1b.", "launch.", "train.loop1.", "train.loop2.", "train.lora.", "train.gallery")
    missing = {path for path in bounded - tried if not path.startswith(alike)}
    assert not missing, f"no unusable value of {sorted(missing)} is tried"


def test_a_list_of_the_project_is_the_models() -> None:
    assert set(get_args(Group)) == set(TRAINABLE)
    assert set(get_args(Group)) - {"seg_row"} <= set(get_args(StoredGroup))


@pytest.mark.parametrize("text", ["train: {steps: [}", "a: 1\na: 2\n", "\x00"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match="params.yaml: not YAML: "):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "- a\n", "text"])
def test_a_file_without_sections_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match="params.yaml: expected sections, found "):
        load(tmp_path / "params.yaml")


def test_a_missing_key_is_named(values: dict[str, Any]) -> None:
    """Each section, and each setting that has no default, removed alone."""
    required = [
        path
        for path, of in all_fields().items()
        if of.is_required() and not path.startswith(("weights.sam2", "train.validation", "convert.lora"))
    ]
    for path in ["preset", *SECTIONS, *required]:
        broken, preset = copy.deepcopy(values), copy.deepcopy(dict(read_presets()["tiny"]))
        for top in (broken,) if path in SECTIONS else (broken, preset):
            node: Any = top
            *parents, last = path.split(".")
            for parent in parents:
                node = node.get(parent, {})
            node.pop(last, None)
        with pytest.raises(ConfigError, match="^" + re.escape(f"{path}: missing")):
            assert Config(broken, {"tiny": preset}).tasks


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.steppes", 3, "train.steppes: unknown key; did you mean train.steps?"),
        ("train.groups", [], "train.groups: must not be empty, found []"),
        ("train.lora.rank", 1.5, "train.lora.rank: expected an integer, found 1.5"),
        ("train.lora", 8, "train.lora: expected a section, found 8"),
        ("train.schedule", "step", "train.schedule: expected 'constant', 'cosine' or 'linear', found 'step'"),
        ("train.loop1.tau", 0, "train.loop1.tau: must be above 0, found 0"),
        ("train.loop1", 8, "train.loop1: expected a section, found 8"),
        ("train.lr", float("nan"), "train.lr: must be finite, found nan"),
        ("weights.source", "ftp", "weights.source: expected 'embedded', 'hub', 'url' or 'path', found 'ftp'"),
        ("train", None, "train: missing; an empty section is {}"),
        ("train", 3, "train: expected a section, found 3"),
        ("launch", {}, "launch: a preset sets weights, subset_sa1b, train, evaluate, world, nothing else"),
    ],
)
@pytest.mark.parametrize("preset", ["tiny", "sa2va-4b"])
@pytest.mark.second
def test_mistakes_of_every_preset_are_named(
    values: dict[str, Any], presets: dict[str, Any], preset: str, path: str, value: object, message: str
) -> None:
    """Of the chosen one and of one that nobody chose, also where params.yaml has another value."""
    put(presets[preset], path, value)
    for changes in ({}, {"train.lora.rank": 4, "train.schedule": "linear", "train.lr": 1e-3}):
        for changed, other in changes.items():
            put(values, changed, other)
        with pytest.raises(ConfigError, match="^" + re.escape(f"ans/presets/{preset}.yaml: {message}")):
            assert Config(values, presets).tasks


def test_what_a_preset_names_has_to_be_there_when_it_is_chosen(values: dict[str, Any], presets: dict[str, Any]) -> None:
    put(presets["lisa-tiny"], "evaluate.splits", ["nothing_val"])
    assert Config(values, presets).tasks
    with pytest.raises(ConfigError, match="^ans/presets/lisa-tiny.yaml: evaluate.splits: no index named 'nothing'"):
        Config(values | {"preset": "lisa-tiny"}, presets)


def test_a_file_of_a_preset_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {steps: [}")
    with pytest.raises(ConfigError, match="mine.yaml: not YAML: "):
        read_presets(tmp_path)


def test_a_value_of_params_yaml_wins_over_the_preset(config: Config) -> None:
    """Also within a section, of which the preset keeps the rest; and `none` says that there is none."""
    assert (config.train.lr, config.train.lora.rank, config.origin("train", "lr")) == (6e-4, 8, "preset tiny")
    changed = config.changed({"train.lr": 1e-5, "train.lora.rank": 4, "train.beta": 0.25, "train.referring.objects_per_image": 2})
    assert (changed.train.lr, changed.train.lora.rank, changed.train.lora.alpha, changed.train.beta) == (1e-5, 4, 16, 0.25)
    referring = changed.tasks["referring"]
    assert (referring.objects_per_image, referring.objects_per_conversation) == (2, 1)
    assert [changed.origin("train", *of) for of in (("lr",), ("lora", "rank"), ("lora", "alpha"), ("schedule",))] == [
        "params.yaml", "params.yaml", "preset tiny", "default",
    ]  # fmt: skip
    lisa = config.changed({"preset": "lisa-tiny"})
    assert lisa.train.validation is not None and lisa.changed({"train.validation": "none"}).train.validation is None
    assert lisa.changed({"train.validation": None}).train.validation == lisa.train.validation
    assert config.changed({"subset_sa1b.max_masks": "none", "convert.under": "none"}).convert.under is None


def test_a_users_collection_takes_the_place_of_the_presets(config: Config) -> None:
    """Whoever has no SA-V must be able to leave it out."""
    original = config.changed({"preset": "sa2va-4b-original"})
    assert list(original.task("loop1").model_dump()["sources"]) == ["sav", "sa1b_subset", "openimages"]
    chosen = original.changed({"train.loop1.sources": {"sa1b_subset": {}}})
    assert chosen.tasks["loop1"].model_dump()["sources"] == {"sa1b_subset": {"repeats": 1.0, "max_samples": None}}
    assert chosen.training_indexes() == ("sa1b_subset", "describe", "refcoco", "refcoco_plus", "refcocog")


def test_tasks_are_turned_off_and_not_all(config: Config) -> None:
    assert list(config.changed({"train.loop2.enabled": False}).tasks) == ["loop1", "referring"]
    with pytest.raises(ConfigError, match="^train: every task is off"):
        assert config.changed({f"train.{name}.enabled": False for name in task_names()}).tasks


def test_an_auxiliary_task_alone_is_refused(config: Config) -> None:
    off = {f"train.{name}.enabled": False for name in task_names() if name != "loop2"}
    with pytest.raises(ConfigError, match="^train: loop2 only helps other tasks; turn on a primary task too"):
        assert config.changed(off).tasks


def test_an_unused_task_may_name_what_is_not_there(config: Config) -> None:
    assert "loop2" not in config.changed({"train.loop2.enabled": False, "train.loop2.source": "nothing"}).tasks


def test_loading_needs_no_framework() -> None:
    """All that light stages read: only the tasks' own settings, which `Config.tasks` reads, come with PyTorch."""
    code = (
        "import sys; from ans.config import load; c = load(); c.train.trained, c.evaluate.scope, c.evaluation_indexes(); "
        "from ans.cli.document import document; document(c, 'evaluate'); print(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.parametrize("folder", ("", ".", "/data/kitchen", "../kitchen", "a/../../b", "${HOME}", "a\nb"))
def test_a_folder_that_dvc_would_look_for_elsewhere_is_refused(folder: str) -> None:
    config = load(REPOSITORY / "params.yaml")
    with pytest.raises(ConfigError, match="own.kitchen.folder: must be the path of a folder below paths.root"):
        config.changed({"own": {"kitchen": {"folder": folder}}})
    assert config.changed({"own": {"kitchen": {"folder": "my data/kitchen.2"}}}).own["kitchen"].folder == "my data/kitchen.2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: !!python/object:os.system ls", "line 1: a tag"),
        ("a: 1\nb: !!int 2", "line 2: a tag"),
        ("a: &x [1]\nb: 1", "line 1: an anchor"),
        ("a: 1\nb: *x", "line 2: an anchor or alias"),
        ("[" * 100_000, "nested more than 30 deep"),
        ("a: 1\nb: {c: 1, c: 2}", 'not YAML: (?s:.*)duplicate key "c"'),
        ("a: {b: 1}\n<<: {b: 2}", "unknown key"),
        ("a: 1\na: 1", "duplicate key"),
        ("a: 2024-13-45", "not YAML: month"),
        ("a: " + "9" * 5000, "not YAML: "),
    ],
)
def test_what_stands_for_something_else_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load(tmp_path / "params.yaml")
