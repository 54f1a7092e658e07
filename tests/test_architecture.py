"""What docs/architecture.md promises: imports in one direction, thin stages, and light stages that load no framework."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"


def rooms() -> list[tuple[list[str], list[str]]]:
    """The rows of the page's table: rooms, and those that they do not import although they stand above."""
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\|[^|]*\|([^|]*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [(re.findall(r"\w+", names), re.findall(r"\w+", apart)) for names, apart in rows]


def room_of(name: str) -> str:
    """The part below `ans` that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def imported(path: Path) -> set[str]:
    """Modules of this repository that a file imports, anywhere in it; those for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"ans.{alias.name}" for alias in node.names} if node.module == "ans" else {node.module}
    return {name for name in names if name.split(".")[0] in ("ans", "stages", "studies", "tests")}


FILES = sorted(path for path in (ROOT / "ans").rglob("*.py") if path != ROOT / "ans" / "__init__.py")


def upward(path: Path) -> set[str]:
    """What a file imports although its room may not."""
    own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    below: set[str] = set()
    for names, apart in rooms():
        if own in names:
            allowed = below - set(apart) | {own}
            return {name for name in imported(path) if name.split(".")[0] != "ans" or room_of(name) not in allowed}
        below |= set(names)
    raise AssertionError(f"{path}: the room {own} is not in {PAGE}")


@pytest.mark.second
def test_imports_go_one_way() -> None:
    assert not {(path.relative_to(ROOT).as_posix(), name) for path in FILES for name in upward(path)}


def test_the_page_names_every_room_once() -> None:
    named = [room for names, _ in rooms() for room in names]
    there = {path.stem for path in (ROOT / "ans").glob("*.py")} | {
        path.parent.name for path in (ROOT / "ans").glob("*/__init__.py")
    }
    assert sorted(named) == sorted(there - {"__init__"})


def test_the_package_names_its_parts_lazily() -> None:
    """`ans/__init__.py` is run by every import: what it names is imported for type checkers, and else when it is used."""
    tree = ast.parse((ROOT / "ans" / "__init__.py").read_text(encoding="utf-8"))
    at_once = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ans")]
    assert not at_once


@pytest.mark.parametrize("plugs", ["decoders", "families"])
@pytest.mark.second
def test_no_module_names_a_plug(plugs: str) -> None:
    """They are found by listing their folder; the recipes of the embedded weights alone are of one."""
    names = {path.stem for path in (ROOT / "ans" / "model" / plugs).glob("*.py")} - {"__init__"}
    for path in FILES:
        if "toy" not in path.relative_to(ROOT).parts:
            assert not {f"ans.model.{plugs}.{name}" for name in names} & imported(path), path


def test_stages_are_thin() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path


@pytest.mark.parametrize("stage", ["world", "index", "subset_sa1b", "select", "filter", "report"])
@pytest.mark.slow
def test_light_stages_load_no_framework(stage: str) -> None:
    code = f"import sys, stages.{stage}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"stages.{stage} imports {done.stdout}"
