"""docs/extending.md, done: each of its files put into a copy of the repository, and the part of the pipeline that uses it run."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import LightOnOcrConfig, LightOnOcrForConditionalGeneration

from ans.config.schema import World
from ans.data.arrow import read_index
from ans.data.index import build
from ans.formats.shards import sha256
from ans.model.config import ModelConfig
from ans.model.loading import read_tensors
from ans.model.tokens import load_tokenizer
from ans.toy.world import write_world
from ans.workspace import Workspace
from tests import pipeline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(ans/[\w/]+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
LINES = dict(re.findall(r"^In `params.yaml`, below `(\w+)`:\n\n```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


FAMILY, READER, TASK = "ans/model/families/lighton_ocr.py", "ans/data/sources/cards.py", "ans/tasks/describing.py"
TINY = ROOT / "weights" / "tiny"

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
LANGUAGE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
"""Of a LightOnOCR that is small enough for a test: cells of 16 x 16 pixels, of which the longer edge has six at most."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small world, `world`, and the indexes of two of its sets, as a run has them."""
    folder = tmp_path_factory.mktemp("extending")
    few = {f"{name}_images": 2 for name in ("val", "test", "sa1b", "openimages", "reasonseg")}
    write_world(folder / "world", World(seed=5, train_images=6, describe_images=6, sav_pairs=2, shift=1.0, **few))
    config = pipeline.small_config(folder / "world")
    for name in ("refcoco", "describe"):
        build(name, config, Workspace(folder))
    return folder


def copy_of_the_repository(folder: Path, world: Path) -> Path:
    """Its code and settings, with the indexes and the data of `world`."""
    for name in ("ans", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(world / "data", folder / "data")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(text.replace("root: data/world", f"root: {world / 'world'}"), encoding="utf-8")
    return folder


@pytest.fixture
def copy(tmp_path: Path, world: Path) -> Path:
    return copy_of_the_repository(tmp_path / "copy", world)


@pytest.fixture(scope="module")
def family(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that has the family, and its base, made by stage `weights` of a released model with random weights and of SAM2."""
    copy = copy_of_the_repository(tmp_path_factory.mktemp("family") / "copy", world)
    extend(copy, FAMILY, "presets")
    released = copy.parent / "released"
    words = load_tokenizer(TINY, ModelConfig.from_folder(TINY).language)
    words.add_tokens(["<|image_pad|>"], special_tokens=True)
    values = {
        "vision_config": {"model_type": "pixtral", "image_size": 96, "patch_size": 8, **VISION},
        "text_config": {"model_type": "qwen3", "vocab_size": len(words), **LANGUAGE},
        "image_token_id": words.convert_tokens_to_ids("<|image_pad|>"),
    }
    torch.manual_seed(3)
    model = LightOnOcrForConditionalGeneration(LightOnOcrConfig(**values))
    for parameter in model.parameters():  # the defaults are too small for anything to matter
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(released)
    words.save_pretrained(released)
    tiny = ModelConfig.from_folder(TINY)
    config = json.loads((released / "config.json").read_text(encoding="utf-8"))
    config[tiny.decoder.section] = tiny.values[tiny.decoder.section]  # a released model has SAM2's own size
    (released / "config.json").write_text(json.dumps(config), encoding="utf-8")
    masks = {name: tensor for name, tensor in read_tensors(TINY).items() if tiny.keys.shard_of(name).startswith("sam2")}
    torch.save({"model": tiny.keys.from_hf(masks, "sam2")}, copy / "sam2_hiera_large.pt")

    override(
        copy, preset="lighton-ocr", weights__source="path", weights__location=str(released),
        weights__sam2={"location": "sam2_hiera_large.pt", "sha256": sha256(copy / "sam2_hiera_large.pt")},
    )  # fmt: skip
    small(copy)
    run(copy, "stages.weights")
    return copy


def small(copy: Path, *tasks: str, steps: int = 2) -> None:
    """Settings of a run that takes seconds: `tasks` alone, `steps` of four images, so many that grids of several shapes meet."""
    on = {f"train__{task}__enabled": task in tasks for task in ("referring", "loop1", "loop2")}
    override(
        copy, launch__workers=0, train__steps=steps, train__batch=4, train__accumulation=1, train__precision="float32",
        train__mask_points=0, train__lora__rank=4, train__checkpoint_activations=False, train__min_seg_rate=0.0,
        train__referring__sources=["refcoco"], evaluate__precision="float32", evaluate__splits=["refcoco_val"],
        evaluate__captions=[], evaluate__max_new_tokens=4, evaluate__tokens_per_batch=2048, **on,
    )  # fmt: skip


def imported(copy: Path, file: str) -> ModuleType:
    """A file of the page as a module, outside of the package."""
    spec = importlib.util.spec_from_file_location(f"page_{Path(file).stem}", copy / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


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
    assert set(FILES) == {READER, TASK, FAMILY} and set(LINES) == {"sources", "train", "presets"}


def test_a_data_set(copy: Path, world: Path) -> None:
    """Two images of 40 x 30 pixels, a label that has no pixel, and an image whose label map is of another size."""
    extend(copy, READER, "sources")
    base = world / "world" / "cards"
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


def test_an_objective(copy: Path, family: Path) -> None:
    """Three steps of it alone, on the page's family, whose images have grids of their own; then its curve and the manifest."""
    for name in (FAMILY, "params.yaml", "models"):
        (shutil.copytree if (family / name).is_dir() else shutil.copy)(family / name, copy / name)
    extend(copy, TASK, "train")
    small(copy, steps=3)
    run(copy, "stages.train")
    curve = (copy / "reports" / "train" / "plots" / "describing_language.tsv").read_text(encoding="utf-8").splitlines()
    values = [float(line.split("\t")[1]) for line in curve[1:]]
    assert len(values) == 3 and all(0 < value < 10 for value in values)
    manifest = json.loads((copy / "models" / "checkpoint" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["tasks"]["describing"]["settings"] == {"enabled": True, "source": "describe"}
    assert list(manifest["tasks"]) == ["describing"] and list(manifest["samples"]) == ["describe (captions)"]
    (panel,) = [panel for panel in manifest["panels"] if "describing_language" in panel["curves"]]
    assert panel["title"] == "language loss on the answer"


def test_a_family(family: Path) -> None:
    """Two steps, conversion, and an evaluation; `[SEG]` need not come from random weights."""
    small(family, "referring")
    run(family, "stages.train")
    run(family, "stages.convert")
    run(family, "stages.filter", "full")
    run(family, "stages.evaluate", "full")
    manifest = json.loads((family / "models" / "checkpoint" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["trained"] == ["lora", "proj", "fcs", "sam2_decoder"]
    before, after = (read_tensors(family / "models" / name) for name in ("base", "hf"))
    assert before.keys() == after.keys()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {"vision_projection", "language_model", "text_hidden_fcs", "grounding_encoder"}
    table = pd.read_parquet(family / "data" / "eval" / "full" / "refcoco_val.parquet")
    assert len(table) == pipeline.metrics(family, "full", "refcoco_val")["n"] > 0


def test_the_familys_image_tokens_are_transformers_own(family: Path) -> None:
    """Images of three shapes, encoded together, against each by itself in `LightOnOcrForConditionalGeneration`."""
    module = imported(family, FAMILY)
    values = json.loads((family / "models" / "base" / "config.json").read_text(encoding="utf-8"))
    made = module.Family.read({key: value for key, value in values.items() if key != "sam2_config"})
    vlm, reference = made.build().eval(), LightOnOcrForConditionalGeneration.from_pretrained(family.parent / "released").eval()
    released = load_file(family.parent / "released" / "model.safetensors")
    state = {made.released_name(name): tensor for name, tensor in released.items()}
    missing, unexpected = vlm.load_state_dict(
        {n: t for n, t in state.items() if not n.startswith("language_model.")}, strict=False
    )
    assert not unexpected and all(name.startswith("language_model.") for name in missing)
    rng = np.random.default_rng(0)
    shapes = {(96, 64): (6, 4), (33, 80): (3, 5), (300, 200): (6, 4)}
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in shapes]
    pixels = [made.pixels(image) for image in images]
    assert [one.grid.region for one in pixels] == list(shapes.values())
    with torch.no_grad():
        features = vlm.encode(torch.cat([one.values for one in pixels]), [one.grid for one in pixels])
        ours = [vlm.project(one.tokens.flatten(0, 1)) for one in features]
        for image, one, tokens in zip(images, pixels, ours, strict=True):
            size = (16 * one.grid.rows, 16 * one.grid.columns)
            small = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC), np.float32) / 255
            whole = torch.from_numpy((small - module.preprocess.CLIP_MEAN) / module.preprocess.CLIP_STD).float().permute(2, 0, 1)
            expected = reference.get_image_features(pixel_values=whole[None], image_sizes=[size]).pooler_output[0]
            torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
