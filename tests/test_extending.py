"""docs/extending.md, done: each of its files put into a copy of the repository, and the part of the pipeline that uses it run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from ans.checkpoints.base import shard
from ans.config.schema import World
from ans.data.arrow import read_index
from ans.toy.world import write_world

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(ans/[\w/]+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
LINES = dict(re.findall(r"^In `params.yaml`, below `(\w+)`:\n\n```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository's code and settings, on a world that is beside it."""
    for name in ("ans", "stages"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "copy" / "params.yaml").write_text(
        text.replace("root: data/world", f"root: {tmp_path / 'world'}"), encoding="utf-8"
    )
    (tmp_path / "world").mkdir()
    return tmp_path / "copy"


def extend(copy: Path, file: str, section: str) -> None:
    """Add a file of the page, and its one line of params.yaml."""
    assert not (copy / file).exists(), f"{file} is there already; the page needs another example"
    (copy / file).write_text(FILES[file], encoding="utf-8")
    (line,) = LINES[section].splitlines()
    params = copy / "params.yaml"
    text, added = re.subn(
        rf"^{section}:.*$", lambda match: f"{match[0]}\n{line}", params.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert added == 1
    params.write_text(text, encoding="utf-8")


def override(copy: Path, **changes: object) -> None:
    """Set values of params.yaml; `__` stands for the dot of a path."""
    yaml, params = YAML(), copy / "params.yaml"
    values = yaml.load(params)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    yaml.dump(values, params)


def run(copy: Path, *module: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANS_")}
    environment |= {"PYTHONPATH": str(copy), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *module], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(module)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_example_is_tried() -> None:
    assert set(FILES) == {"ans/data/sources/cards.py", "ans/tasks/describing.py"} and set(LINES) == {"sources", "train"}


def test_a_data_set(copy: Path) -> None:
    """Two images of 40 x 30 pixels, a label that has no pixel, and an image whose label map is of another size."""
    extend(copy, "ans/data/sources/cards.py", "sources")
    base = copy.parent / "world" / "cards"
    labels = np.zeros((30, 40), np.uint8)
    labels[5:15, 10:20], labels[20:25, 5:35] = 1, 2
    for name, size in (("a", (40, 30)), ("b", (40, 30)), ("c", (20, 20))):
        for kind in ("images", "labels"):
            (base / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(base / "images" / f"{name}.png")
        Image.fromarray(labels).save(base / "labels" / f"{name}.png")
    texts = {"1": "the red card", "2": "the long card"}
    (base / "texts.json").write_text(json.dumps({"a": texts, "b": texts | {"3": "no card"}, "c": texts}), encoding="utf-8")

    override(copy, index__max_bad_fraction=0.5)
    assert run(copy, "stages.index", "cards") == "cards: 2 images, 2 records skipped\n"
    records = list(read_index(copy / "data" / "index" / "cards.arrow").records())
    assert [record.path for record in records] == ["cards/images/a.png", "cards/images/b.png"]
    assert [(region.area, region.expressions[0].sent) for region in records[0].regions] == [
        (100, "the red card"),
        (150, "the long card"),
    ]
    report = json.loads((copy / "reports" / "data" / "cards.json").read_text(encoding="utf-8"))
    assert set(report["skipped"]) == {"label without a pixel", "label map of another size than the image"}


def test_an_objective(copy: Path) -> None:
    """Three steps of it alone, then its curve and the manifest."""
    extend(copy, "ans/tasks/describing.py", "train")
    counts = dict.fromkeys(("train", "val", "test", "sa1b", "openimages", "reasonseg"), 2)
    world = World(seed=5, **{f"{name}_images": n for name, n in counts.items()}, describe_images=6, sav_pairs=2, shift=1.0)
    write_world(copy.parent / "world", world)
    others = {f"train__{task}__enabled": False for task in ("referring", "loop1", "loop2")}
    override(copy, train__steps=3, train__batch=2, train__min_seg_rate=0.0, **others)
    shard(ROOT / "weights" / "tiny", copy / "models" / "base")
    assert "source: describe " in run(copy, "ans", "config", "train.describing")
    run(copy, "stages.index", "describe")
    run(copy, "stages.train")
    curve = (copy / "reports" / "train" / "plots" / "describing_language.tsv").read_text(encoding="utf-8").splitlines()
    values = [float(line.split("\t")[1]) for line in curve[1:]]
    assert len(values) == 3 and all(0 < value < 10 for value in values)
    manifest = json.loads((copy / "models" / "checkpoint" / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest["tasks"]) == ["describing"] and list(manifest["samples"]) == ["describe (captions)"]
    (panel,) = [panel for panel in manifest["panels"] if "describing_language" in panel["curves"]]
    assert panel["title"] == "language loss on the answer"
