"""`params.yaml` as a file: each setting with its documentation, in the form in which `dvc exp run -S` rewrites it."""

import difflib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from ans.cli.document import doc_of
from ans.config import load
from ans.config.presets import BY_PRESET, FOLDER, read_presets
from ans.config.sections import SECTIONS, all_fields, task_names, task_settings
from tests.config.conftest import PARAMS

OF_PRESETS = ("weights.sam2.", "train.validation.", "convert.lora.")
"""Sections that are not there unless a preset, or the user, gives them as a whole."""

LINE = re.compile(r"( *)([\w-]+):(?: +(?!#)(.*?))?(?: +# (.*))?")


def comments() -> dict[str, str]:
    """The comment of every setting and section, by dotted path: behind it, or on the line before."""
    found: dict[str, str] = {}
    path: list[str] = []
    above = ""
    for line in PARAMS.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("#"):
            above = line.strip().removeprefix("# ")
        elif match := LINE.fullmatch(line):
            indent, key, _, comment = match.groups()
            path = [*path[: len(indent) // 2], key]
            found[".".join(path)] = comment or above
            above = ""
    return found


def test_each_comment_is_the_settings_documentation() -> None:
    expected = {name: doc_of(kind) for name, kind in SECTIONS.items()}
    expected |= {f"train.{name}": doc_of(task_settings(name)) for name in task_names()}
    expected |= {path: of.description for path, of in all_fields().items() if not path.startswith(OF_PRESETS)}
    for section, kind in SECTIONS.items():  # sections on one line have one comment
        if isinstance(kind, type) and len(kind.model_fields) == 1:
            expected[section] = expected.pop(f"{section}.{next(iter(kind.model_fields))}")
    shown = comments()
    by_name = {path for path in shown if path.startswith(("sources.", "own.", "variants."))}
    assert {path: doc for path, doc in shown.items() if path not in {"preset", *by_name}} == expected
    assert not any(shown[path] for path in by_name)


def test_every_setting_is_documented() -> None:
    for path, of in all_fields().items():
        assert of.description and 5 <= len(of.description) < 200 and of.description == of.description.strip(), path


def test_what_presets_may_set_is_left_to_them(values: dict[str, Any]) -> None:
    """A value in params.yaml wins over every preset, so that a preset could not set it."""

    def said(node: object) -> bool:
        return any(map(said, node.values())) if isinstance(node, dict) else node is not None

    assert not [f"{section}.{key}" for section in BY_PRESET for key, value in values[section].items() if said(value)]


def test_it_is_short() -> None:
    assert len(PARAMS.read_text(encoding="utf-8").splitlines()) <= 220


def test_dvc_and_the_pipelines_templates_read_the_same(values: dict[str, Any]) -> None:
    """PyYAML reads the committed file as DVC does, so that tools that use it see the same."""
    assert yaml.safe_load(PARAMS.read_text(encoding="utf-8")) == values


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.lr=1e-5", "train.lr", 1e-5),
        ("train.beta=0.25", "train.beta", 0.25),
        ("train.seed=43", "train.seed", 43),
        ("train.lora.rank=4", "train.lora.rank", 4),
        ("train.loss.dice=1", "train.loss.dice", 1.0),
        ("train.loop1.bridge=hard", None, None),
        ("train.loop2.enabled=false", None, None),
        ("evaluate.max_samples=50", "evaluate.max_samples", 50),
        ("preset=lisa-7b", "preset", "lisa-7b"),
        ("paths.root=/data", "paths.root", "/data"),
        ("convert.source=models/checkpoint/step_000100.pth", "convert.source", "models/checkpoint/step_000100.pth"),
        ("index.max_bad_fraction=0.5", "index.max_bad_fraction", 0.5),
    ],
)
@pytest.mark.second
def test_an_override_changes_one_line_and_has_effect(tmp_path: Path, override: str, path: str | None, value: object) -> None:
    """By DVC's own writer. What it writes is read as meant: `1e-05` is a number."""
    file = tmp_path / "params.yaml"
    shutil.copy(PARAMS, file)
    apply_overrides(file, [override])
    before, after = (of.read_text(encoding="utf-8").splitlines() for of in (PARAMS, file))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert [line[0] for line in changed] == ["-", "+"], "\n".join(changed)
    config = load(file)
    if path is not None:
        found: Any = config
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value
        assert config.origin(*path.split(".")) == "params.yaml"
    else:
        assert "loop2" not in config.tasks or config.task("loop1").model_dump()["bridge"] == "hard"


def test_both_kinds_of_setting_win_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    shutil.copy(PARAMS, file)
    apply_overrides(file, ["train.lr=1e-5", "train.beta=0.25", "train.groups=[lora,fcs]"])
    train = load(file).train
    assert (train.lr, train.beta, train.groups, train.steps) == (1e-5, 0.25, ("lora", "fcs"), 200)


STAGES = yaml.safe_load((PARAMS.parent / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def readers(section: str) -> set[str]:
    """The stages that declare a section, or a part of it, as a parameter."""
    declared = {
        name: [
            f"{file}: {key}" if file else key
            for param in (stage.get("do") or stage).get("params", [])
            for file, keys in (param.items() if isinstance(param, dict) else [("", [param])])
            for key in keys
        ]
        for name, stage in STAGES.items()
    }
    return {
        name for name, params in declared.items() if any(param == section or param.startswith(f"{section}.") for param in params)
    }


def test_the_pipeline_tracks_every_section() -> None:
    """What a stage reads is declared in dvc.yaml, so that a change re-runs it; `launch` alone is left out, on purpose."""
    assert not readers("launch")
    for section in set(SECTIONS) - {"launch"}:
        assert readers(section), section
    for section in BY_PRESET:
        assert readers(section) == readers(f"ans/presets/${{preset}}.yaml: {section}") <= readers("preset"), section


def test_a_change_reruns_only_what_reads_it() -> None:
    assert readers("train") == {"select", "train"}
    assert readers("evaluate") == {"select", "evaluate", "report"}
    assert readers("world") == {"world"}
    assert readers("weights") == {"weights"}
    assert readers("report") == {"report"}


def test_a_preset_is_as_it_is_read_and_says_what_it_is() -> None:
    for name, values in read_presets().items():
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# ") and list(values) == list(BY_PRESET), name
        assert yaml.safe_load(text) == values, name
