"""What dvc.yaml says each stage depends on, against the imports of its code."""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ans.config import load
from ans.config.load import task_names
from ans.provenance import ROOT, closure

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

TASKS = tuple(f"ans.tasks.{name}" for name in task_names())
STARTED = {"train": ("ans.training.__main__", *TASKS), "evaluate": ("ans.evaluation.__main__",)}
"""Modules that a stage starts in processes of their own, and what these import by name."""

SETTINGS = {"select": {f"ans/tasks/{name}.py" for name in ("__init__", "base", *task_names())}}
"""Files of which a stage needs the settings alone, not what they import."""

NEVER = {
    "ans/__init__.py", "ans/errors.py", "ans/files.py", "ans/launch.py", "ans/logs.py", "ans/progress.py", "ans/provenance.py",
    "ans/record.py", "ans/stage.py", "ans/workspace.py",
}  # fmt: skip
"""How stages start, end and put files in place, not what is in them; and the names of the package."""

HANDED_ON = {"world", "index", "own", "subset_sa1b", "weights"}
"""Stages that use settings as they stand in params.yaml, which DVC compares itself: ans/config decides nothing there. A set of
eleven million images is not indexed anew because a check of the learning rate changed."""


def code(stage: str, reader: str) -> set[str]:
    """The files that decide what the stage makes, without empty ones."""
    modules = [f"stages.{'index' if stage == 'own' else stage}", *STARTED.get(stage, ())]
    if stage in ("index", "own"):
        modules.append(f"ans.data.sources.{reader}")
    paths = {path.as_posix() for path in closure(*modules) if (ROOT / path).stat().st_size} | SETTINGS.get(stage, set())
    return {path for path in paths - NEVER if not (stage in HANDED_ON and path.startswith(("ans/config/", "ans/groups.py")))}


def declared(stage: str, reader: str) -> set[str]:
    """The code among the stage's `deps`, a folder standing for all that is in it."""
    entry = STAGES[stage].get("do", STAGES[stage])
    paths = [Path(dep.replace("${item.reader}", reader)) for dep in entry["deps"] if dep.startswith(("ans/", "stages/"))]
    for path in paths:
        assert (ROOT / path).exists(), f"{stage}: {path}"
    files = [ROOT / file for path in paths for file in ([path] if path.suffix else (ROOT / path).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix() for file in files if file.stat().st_size}


CASES = [(stage, "own" if stage == "own" else "") for stage in STAGES if stage != "index"]
CASES += sorted({("index", source.reader) for source in load(ROOT / "params.yaml").sources.values()})


@pytest.mark.parametrize(("stage", "reader"), CASES)
def test_deps_are_what_the_stage_imports(stage: str, reader: str) -> None:
    lacks, idle = code(stage, reader) - declared(stage, reader), declared(stage, reader) - code(stage, reader)
    assert not lacks, f"{stage} {reader}: a change of these would leave stale results: {sorted(lacks)}"
    assert not idle, f"{stage} {reader}: a change of these would run it for nothing: {sorted(idle)}"


def test_a_reader_concerns_its_own_sets_alone() -> None:
    readers = {path.name for path in (ROOT / "ans/data/sources").glob("*.py")}
    for reader in ("sa1b", "refcoco"):
        assert {path.name for path in closure("stages.index", f"ans.data.sources.{reader}")} & readers == {
            "__init__.py", "common.py", f"{reader}.py",
        }  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> tuple[Path, ModuleType]:
    """A checkout with its own `ans/provenance.py`."""
    for name, text in {
        "ans/__init__.py": "",
        "ans/a.py": "import json\nfrom ans.b import thing\n",
        "ans/b/__init__.py": "from ans.b.c import thing\n",
        "ans/b/c.py": "def thing():\n    from ans import d\n",
        "ans/d.py": "from typing import TYPE_CHECKING\nimport ans.a\nif TYPE_CHECKING:\n    import ans.e\n",
        "ans/e.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    spec = spec_from_file_location("own_provenance", shutil.copy(ROOT / "ans/provenance.py", tmp_path / "ans"))
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(own := module_from_spec(spec))
    return tmp_path, own


def test_the_closure_follows_every_import(package: tuple[Path, ModuleType]) -> None:
    """Circles, imports inside functions, names that are modules, and packages that only lie on the way."""
    closure = package[1].closure
    assert {path.as_posix() for path in closure("ans.a")} == {
        "ans/__init__.py", "ans/a.py", "ans/b/__init__.py", "ans/b/c.py", "ans/d.py",
    }  # fmt: skip
    assert {path.as_posix() for path in closure("ans.e")} == {"ans/__init__.py", "ans/e.py"}
    with pytest.raises(ModuleNotFoundError, match="ans.nothing: no such module"):
        closure("ans.nothing")


def test_a_package_whose_folder_is_listed_is_used_whole(package: tuple[Path, ModuleType]) -> None:
    folder, own = package
    own.LISTED = ("ans.b",)
    (folder / "ans/b/f.py").write_text("import ans.e\n")
    found = {path.as_posix() for path in own.closure("ans.a")}
    assert {"ans/b/f.py", "ans/e.py"} <= found


def test_the_digest_is_of_the_closure_alone(package: tuple[Path, ModuleType]) -> None:
    folder, own = package
    digest = own.digest
    before = digest("ans.a")
    (folder / "ans/e.py").write_text("1\n")
    assert digest("ans.a") == before
    (folder / "ans/d.py").write_text("import ans.a  # changed\n")
    assert digest("ans.a") != before
