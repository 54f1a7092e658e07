"""`make docs`: the pages as a site, strict, and whole without the internet; the code and the notebook in the pages run.

The site needs the extra: pip install '.[docs]'. Without it that test is skipped; the others always run.
"""

import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ans.checkpoints.base import shard
from ans.checkpoints.convert import convert
from ans.checkpoints.save import save_trained
from ans.checkpoints.variants import make_variant
from ans.cli import main
from ans.config.schema import Convert
from ans.data.videos import VideoWriter
from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Segmenter
from ans.painting import paint
from tests.test_docs import FENCE, ROOT, blocks


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


REMOTE = """
from transformers import PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

class Sa2VAChatConfig(PretrainedConfig):
    model_type = "sa2va_chat"

class Sa2VAChatModel(PreTrainedModel):
    config_class = Sa2VAChatConfig

    def __init__(self, config):
        super().__init__(config)
        self.language_model = Qwen2ForCausalLM(Qwen2Config(**config.llm_config))
        self.post_init()
"""
"""In the place of Sa2VA's code, which is not ours: the language model, as transformers has it."""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photo.jpg, clip.mp4, and models/ as after a run that moved every trained tensor of the tiny base a little."""
    folder = tmp_path_factory.mktemp("examples")
    rows, columns = np.mgrid[:90, :120]
    pixels = np.full((90, 120, 3), 128, np.uint8)
    pixels[(rows - 30) ** 2 + (columns - 60) ** 2 < 20**2] = (230, 20, 20)
    image = Image.fromarray(pixels)
    image.save(folder / "photo.jpg", quality=95)
    with VideoWriter(folder / "clip.mp4") as writer:
        for number in range(2):
            writer.add(image, Fraction(number, 24))
    models, groups = folder / "models", ("lora", "proj", "fcs", "sam2_decoder")
    shard(ROOT / "weights" / "tiny", models / "base")
    model = Segmenter.from_pretrained(models / "base")
    add_lora(model, rank=4, alpha=6.0, dropout=0.0, generator_seed=0)
    trained = select_trained(model, groups)
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.values():
        parameter.data += 0.002 * torch.randn(parameter.shape, generator=generator)
    size = {"rank": 4, "alpha": 6.0, "dropout": 0.0}
    meta = {"trained": list(groups), "train": {"lora": size}, "step": 1}
    save_trained(models / "checkpoint" / "last.pth", model.config.keys, trained, meta)
    convert(Convert(source=str(models / "checkpoint"), precision="float32"), models / "base", models / "hf")
    make_variant(models / "base", models / "hf", groups, models / "variants" / "full")
    return folder


def python_of(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [code for language, code in FENCE.findall(text) if language == "python"]


def test_every_block_of_python_is_run_by_a_test() -> None:
    """Those of extending.md by test_extending.py, the others below."""
    pages = {page.name for page, language, _ in blocks() if language == "python"}
    assert pages == {"python.md", "report.md", "video.md", "extending.md"}


@pytest.mark.slow
def test_the_lines_of_python_run(
    examples: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page, after the commands that it names. What they load is what was exported, to the last tensor."""
    monkeypatch.chdir(examples)
    first, adapter, exported = python_of("python.md")
    assert len(first.splitlines()) <= 11
    space: dict[str, Any] = {}
    exec(first, space)
    assert "(90, 120)" in capsys.readouterr().out
    full = space["model"].state_dict()
    for code in (*python_of("report.md"), *python_of("video.md")):
        exec(code, space)
    assert space["answer"].mask.shape == (90, 120)

    for command in re.findall(r"^`python -m (ans export [^`]+)`", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE):
        main(command.split()[1:])
    exec(adapter, space)
    loaded = space["model"].state_dict()
    assert loaded.keys() == full.keys() and {"lora_A", "lora_B"}.isdisjoint(".".join(loaded).split("."))
    for name, tensor in full.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=1e-6, msg=name)

    cached = tmp_path / "snapshots" / ("0" * 40)
    cached.mkdir(parents=True)
    for name in ("modeling", "configuration"):
        (cached / f"{name}_sa2va_chat.py").write_text(REMOTE, encoding="utf-8")
    asked = []

    def code_of(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, options["revision"]))
        return str(cached / file)

    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("nothing may be asked"))
    monkeypatch.setattr("transformers.dynamic_module_utils.cached_file", code_of)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    ours = space["model"].vlm.language_model
    exec(exported, space)
    assert set(asked) == {("ByteDance/Sa2VA-4B", "40 digits: a commit of the code that config.json names")}
    theirs = space["model"].language_model
    assert type(theirs).__module__.startswith("transformers.models.qwen2")
    for name, tensor in theirs.state_dict().items():  # in the type that transformers chooses
        assert torch.equal(tensor, full[f"vlm.language_model.{name}"].to(tensor.dtype)), name
    ids = torch.tensor([space["tokenizer"].encode("the red circle [SEG]")])
    with torch.no_grad():
        torch.testing.assert_close(theirs.float()(ids).logits, ours(ids).logits, rtol=0, atol=0.05)


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
