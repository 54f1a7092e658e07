"""`make docs`: the pages as a site, strict, and whole without the internet; the code and the notebook in the pages run.

The site needs the extra: pip install '.[docs]'. Without it that test is skipped; the others always run.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ans.painting import paint
from tests.test_docs import FENCE, ROOT


def test_every_page_is_in_the_site() -> None:
    def pages(node: Any) -> list[str]:
        return (
            [node]
            if isinstance(node, str)
            else [page for one in (node.values() if isinstance(node, dict) else node) for page in pages(one)]
        )

    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra `docs` is not installed: pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("Segmenter.from_pretrained", "Segmenter.segment", "Segmenter.describe", "Segmenter.segment_video", "Place"):
        assert re.search(rf'id="[\w.]*\.{re.escape(name)}"', api), name
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?https?://", page.read_text(encoding="utf-8")), page


def example(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """`folder` with photo.jpg and the tiny model as models/variants/full, to be in."""
    rows, columns = np.mgrid[:90, :120]
    pixels = np.full((90, 120, 3), 128, np.uint8)
    pixels[(rows - 30) ** 2 + (columns - 60) ** 2 < 20**2] = (230, 20, 20)
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    (folder / "models" / "variants").mkdir(parents=True)
    (folder / "models" / "variants" / "full").symlink_to(ROOT / "weights" / "tiny")
    monkeypatch.chdir(folder)


def test_the_lines_of_python_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example(monkeypatch, tmp_path)
    (first, *_) = [
        text
        for language, text in FENCE.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
        if language == "python"
    ]
    assert len(first.splitlines()) <= 11
    exec(first, {})
    assert "(90, 120)" in capsys.readouterr().out


def test_the_notebook_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its cells but those that install or download, which are tagged `host`."""
    book = json.loads((ROOT / "notebooks" / "try.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5) and len({cell["id"] for cell in book["cells"]}) == len(
        book["cells"]
    )
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in book["cells"] if cell["cell_type"] == "code")
    monkeypatch.chdir(ROOT)
    space: dict[str, Any] = {"display": lambda *shown: space.setdefault("shown", []).extend(shown)}
    ran = 0
    for cell in book["cells"]:
        if cell["cell_type"] == "code" and "host" not in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), space)
            ran += 1
    assert ran >= 3 and all(isinstance(one, Image.Image) for one in space["shown"]) and len(space["shown"]) == 2
    mask = np.zeros((8, 8), bool)
    assert paint(Image.new("RGB", (8, 8)), [mask], ["a"]).width > 8


def test_the_notebook_is_valid() -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install nbformat")
    nbformat.validate(nbformat.read(ROOT / "notebooks" / "try.ipynb", as_version=4))
