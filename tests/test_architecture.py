"""What the folder tree promises: thin stages, imports in one direction, and light stages that load no framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = sorted(path for folder in ("ans", "stages") for path in Path(folder).rglob("*.py"))

FORMATS = ("ans/checkpoints/pth.py", "ans/checkpoints/shards.py")
"""How files are read and written: all that the model knows of the checkpoints, which know the model."""
OTHERS = tuple(".".join(path.with_suffix("").parts) for path in MODULES if path.parts[:2] == ("ans", "checkpoints"))

# Layer -> what it must not import.
FORBIDDEN = {
    "ans/model": (
        *("ans.config", "ans.data", "ans.evaluation", "ans.objectives", "ans.report", "ans.tasks", "ans.toy", "ans.training"),
        *("stages", *(name for name in OTHERS if name.replace(".", "/") + ".py" not in FORMATS and "__init__" not in name)),
    ),
    "ans/objectives": ("ans.data", "ans.training", "ans.evaluation", "ans.report", "stages"),
    "ans/data": ("ans.training", "ans.evaluation", "ans.report", "stages"),
    "ans/report": ("ans.model", "ans.training", "stages"),
    "ans/checkpoints": ("ans.data", "ans.evaluation", "ans.objectives", "ans.report", "ans.tasks", "ans.training", "stages"),
    "ans": ("stages",),
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_imports_go_one_way(layer: str) -> None:
    for path in MODULES:
        if path.as_posix().startswith(layer + "/"):
            for name in imported(path):
                assert not any(name == f or name.startswith(f + ".") for f in FORBIDDEN[layer]), f"{path} imports {name}"


@pytest.mark.parametrize("path", FORMATS)
def test_file_formats_know_no_model(path: str) -> None:
    assert not any(name.startswith("ans.model") for name in imported(Path(path)))


@pytest.mark.parametrize("plugs", ["decoders", "families"])
def test_no_module_names_a_plug(plugs: str) -> None:
    """They are found by listing their folder; the recipes of the embedded weights alone are of one."""
    names = {path.stem for path in Path(f"ans/model/{plugs}").glob("*.py")} - {"__init__"}
    for path in MODULES:
        if "toy" not in path.parts and "stages" not in path.parts:
            assert not {f"ans.model.{plugs}.{name}" for name in names} & imported(path), path


def test_stages_are_thin() -> None:
    for path in Path("stages").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path


@pytest.mark.parametrize("stage", ["world", "index", "subset_sa1b", "select", "filter", "report"])
def test_light_stages_load_no_framework(stage: str) -> None:
    code = f"import sys, stages.{stage}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"stages.{stage} imports {done.stdout}"
