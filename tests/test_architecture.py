"""What the folder tree promises: thin stages, imports in one direction, and light stages that load no framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = sorted(path for folder in ("ans", "stages") for path in Path(folder).rglob("*.py"))

# Layer -> what it must not import.
FORBIDDEN = {
    "ans/model": ("ans.data", "ans.training", "ans.evaluation", "ans.report", "ans.objectives", "stages"),
    "ans/objectives": ("ans.data", "ans.training", "ans.evaluation", "ans.report", "stages"),
    "ans/data": ("ans.training", "ans.evaluation", "ans.report", "stages"),
    "ans/report": ("ans.model", "ans.training", "stages"),
    "ans/checkpoints": ("ans.model", "ans.data", "ans.training", "ans.evaluation", "stages"),
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


def test_stages_are_thin() -> None:
    for path in Path("stages").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path


@pytest.mark.parametrize("stage", ["world", "index", "subset_sa1b", "select", "filter", "report"])
def test_light_stages_load_no_framework(stage: str) -> None:
    code = f"import sys, stages.{stage}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"stages.{stage} imports {done.stdout}"
