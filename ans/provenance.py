"""Which code decides a result: the files of this repository that a module imports, directly or through others."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the package `ans` and, in a checkout, `stages`."""

PACKAGES = ("ans", "stages")

LISTED = ("ans.data.video_sources", "ans.model.decoders", "ans.model.families")
"""Packages whose modules are found by listing the folder: who imports the package uses them all."""


def closure(*modules: str) -> set[Path]:
    """Return files, relative to `ROOT`, of `modules` and of all that they import from `PACKAGES`, at the top or inside a function; what is
    imported for type checkers alone decides nothing.

    The `__init__.py` of every package on the way counts, since Python runs it. Raises `ModuleNotFoundError` for a module without
    a file.
    """
    found: set[Path] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        if (path := _file(name)) is None:
            raise ModuleNotFoundError(f"{name}: no such module below {ROOT}", name=name)
        if path in found:
            continue
        found.add(path)
        todo += _imports(path)
        if parent := name.rpartition(".")[0]:
            todo.append(parent)
    return found


def digest(*modules: str) -> str:
    """Return sha256 over names and contents of `closure(*modules)`."""
    total = hashlib.sha256()
    for path in sorted(closure(*modules)):
        total.update(path.as_posix().encode() + b"\0" + (ROOT / path).read_bytes() + b"\0")
    return total.hexdigest()


@cache
def _imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in _executed(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]  # those that are modules
    for package in set(names) & set(LISTED):
        names += [f"{package}.{found.stem}" for found in sorted((ROOT / Path(*package.split("."))).glob("*.py"))]
    return tuple(_ours(names))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below `node` that can run: not those in `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from _executed(other)
            continue
        yield child
        yield from _executed(child)


def _ours(names: Iterable[str]) -> Iterable[str]:
    return (name for name in names if name.partition(".")[0] in PACKAGES and _file(name) is not None)


@cache
def _file(name: str) -> Path | None:
    path = Path(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if (ROOT / candidate).is_file():
            return candidate
    return None
