"""docs/extending.md, done: each of its files put into a copy of the repository, and the whole pipeline run with them by DVC."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
from ans.formats.shards import sha256
from ans.model.config import ModelConfig
from ans.model.loading import read_tensors
from ans.model.tokens import load_tokenizer
from ans.toy.world import write_world
from tests import pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # DVC over all stages

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(ans/[\w/]+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
LINES = dict(re.findall(r"^In `params.yaml`, below `(\w+)`:\n\n```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


FAMILY, READER, TASK = "ans/model/families/lighton_ocr.py", "ans/data/sources/cards.py", "ans/tasks/describing.py"
DECODER = "ans/model/decoders/dot.py"
TINY = ROOT / "weights" / "tiny"

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
LANGUAGE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
"""Of a LightOnOCR that is small enough for a test: cells of 16 x 16 pixels, of which the longer edge has six at most."""

SMALL_WORLD = dict.fromkeys(World.model_fields, 1) | {
    "videos": 0, "captioned_images": 0, "grounded_images": 0, "new_colours": False, "shift": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a file for each example."""
    copy = tmp_path_factory.mktemp("extending") / "copy"
    for name in ("ans", "stages"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, copy)
    for file in FILES:
        assert not (copy / file).exists(), f"{file} is there already; the page needs another example"
        (copy / file).write_text(FILES[file], encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def copy(written: Path) -> Path:
    """That copy, with two lines more of params.yaml, in which `dvc repro` has been run: a small world, its data set of cards, and both
    tasks on a new base of the family, put together of a released model with random weights and of SAM2. Few images, four steps."""
    folder, copy, released = written.parent, written, written.parent / "released"
    (copy / "weights").mkdir()  # the stage `weights` watches those that are embedded
    (copy / ".dvc").mkdir()
    (copy / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    for section in LINES:
        add_line(copy / "params.yaml", section)
    sets = folder / "sets"
    write_world(sets, World(seed=5, train_images=6, describe_images=6, sav_pairs=2, shift=1.0, **FEW))
    write_cards(sets / "cards")
    write_release(released, copy / "sam2_hiera_large.pt")
    sam2 = {"location": "sam2_hiera_large.pt", "sha256": sha256(copy / "sam2_hiera_large.pt")}
    override(
        copy / "params.yaml", preset="sa2va-1b", paths__root=str(sets), launch__workers=0, index__max_bad_fraction=0.5,
        launch__log_with=[], world=SMALL_WORLD, variants__base=[],
        weights__source="path", weights__location=str(released), weights__sam2=sam2,
        train__steps=4, train__batch=4, train__accumulation=1, train__precision="float32", train__mask_points=0,
        train__lora__rank=4, train__checkpoint_activations=False, train__min_seg_rate=0.0,
        train__referring__sources=["cards"], train__loop1__enabled=False, train__loop2__enabled=False,
        evaluate__precision="float32", evaluate__splits=["refcoco_val"], evaluate__captions=[], evaluate__max_new_tokens=4,
        evaluate__tokens_per_batch=2048, report__bootstrap=20, subset_sa1b__images=2,
    )  # fmt: skip
    keep(copy / "params.yaml", sources=("refcoco", "sa1b", "describe", "cards"), variants=("base", "full"))
    dvc(copy, "repro", "-q")
    return copy


FEW = {f"{name}_images": 2 for name in ("val", "test", "sa1b", "openimages", "reasonseg")}


def write_cards(base: Path) -> None:
    """Two images of 40 x 30 pixels, a label that has no pixel, and an image whose label map is of another size."""
    labels = np.zeros((30, 40), np.uint8)
    labels[5:15, 10:20], labels[20:25, 5:35] = 1, 2
    for name, size in (("a", (40, 30)), ("b", (40, 30)), ("c", (20, 20))):
        for kind in ("images", "labels"):
            (base / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(base / "images" / f"{name}.png")
        Image.fromarray(labels).save(base / "labels" / f"{name}.png")
    texts = {"1": "the red card", "2": "the long card"}
    (base / "texts.json").write_text(json.dumps({"a": texts, "b": texts | {"3": "no card"}, "c": texts}), encoding="utf-8")


def write_release(folder: Path, sam2: Path) -> None:
    """A released model of the family with small random weights, and SAM2's own file."""
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
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    tiny = ModelConfig.from_folder(TINY)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config[tiny.decoder.section] = tiny.values[tiny.decoder.section]  # a released model has SAM2's own size
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    masks = {name: tensor for name, tensor in read_tensors(TINY).items() if tiny.keys.shard_of(name).startswith("sam2")}
    torch.save({"model": tiny.keys.from_hf(masks, "sam2")}, sam2)


def add_line(params: Path, section: str) -> None:
    """Add the page's one line of a section."""
    (line,) = LINES[section].splitlines()
    text, added = re.subn(
        rf"^{section}:.*$", lambda match: f"{match[0]}\n{line}", params.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert added == 1
    params.write_text(text, encoding="utf-8")


def override(params: Path, **changes: object) -> None:
    """Set values of params.yaml; `__` stands for the dot of a path."""
    yaml = YAML()
    values = yaml.load(params)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    yaml.dump(values, params)


def keep(params: Path, **names: tuple[str, ...]) -> None:
    """Leave only these entries of a section."""
    yaml = YAML()
    values = yaml.load(params)
    for section, kept in names.items():
        for name in [name for name in values[section] if name not in kept]:
            del values[section][name]
    yaml.dump(values, params)


def dvc(copy: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANS_", "DVC_"))}
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment |= {"PATH": binaries, "PYTHONPATH": str(copy), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"dvc {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def manifest(copy: Path) -> Any:
    return json.loads((copy / "models" / "checkpoint" / "manifest.json").read_text(encoding="utf-8"))


def imported(copy: Path, file: str) -> ModuleType:
    """A file of the page as a module, outside of the package."""
    spec = importlib.util.spec_from_file_location(f"page_{Path(file).stem}", copy / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tried() -> None:
    assert set(FILES) == {READER, TASK, FAMILY, DECODER} and set(LINES) == {"sources", "train"}


def test_a_data_set(copy: Path) -> None:
    """It is read, and learnt from."""
    records = list(read_index(copy / "data" / "index" / "cards.arrow").records())
    assert [record.path for record in records] == ["cards/images/a.png", "cards/images/b.png"]
    assert [(region.area, region.expressions[0].sent) for region in records[0].regions] == [
        (100, "the red card"),
        (150, "the long card"),
    ]
    report = json.loads((copy / "reports" / "data" / "cards.json").read_text(encoding="utf-8"))
    assert set(report["skipped"]) == {"label without a pixel", "label map of another size than the image"}
    assert manifest(copy)["samples"] == {"describe (captions)": 12, "images with expressions": 2}


def test_an_objective(copy: Path) -> None:
    """It takes turns with the labelled expressions; its curve, the manifest and the report have it."""
    curves = {name: (copy / "reports" / "train" / "plots" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
              for name in ("describing_language", "ref_mask")}  # fmt: skip
    values = [float(line.split("\t")[1]) for line in curves["describing_language"]]
    assert len(values) == 3 and len(curves["ref_mask"]) == 1 and all(0 < value < 10 for value in values)
    assert set(manifest(copy)["tasks"]) == {"referring", "describing"}
    assert manifest(copy)["tasks"]["describing"]["settings"] == {"enabled": True, "source": "describe"}
    (panel,) = [panel for panel in manifest(copy)["panels"] if "describing_language" in panel["curves"]]
    assert panel["title"] == "language loss on the answer"
    assert "describing" in (copy / "reports" / "report.html").read_text(encoding="utf-8")


def test_a_family(copy: Path) -> None:
    """Trained, converted and evaluated; `[SEG]` need not come from random weights."""
    assert manifest(copy)["trained"] == ["lora", "proj", "fcs", "sam2_decoder"]
    before, after = (read_tensors(copy / "models" / name) for name in ("base", "hf"))
    assert before.keys() == after.keys()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {"vision_projection", "language_model", "text_hidden_fcs", "grounding_encoder"}
    for variant in ("base", "full"):
        table = pd.read_parquet(copy / "data" / "eval" / variant / "refcoco_val.parquet")
        assert len(table) == pipeline.metrics(copy, variant, "refcoco_val")["n"] > 0


SEGMENTS = """
import json, sys, torch
from pathlib import Path
from PIL import Image
from ans import Segmenter
from ans.config.training import TrainSettings
from ans.model.config import ModelConfig
from ans.model.tokens import load_tokenizer
from ans.training.setup import make_trainable

tiny, out = Path(sys.argv[1]), Path(sys.argv[2])
values = json.loads((tiny / "config.json").read_text())
del values["sam2_config"]
config = ModelConfig.from_dict(values | {"dot_config": {"image_size": 64, "channels": 8}})
torch.manual_seed(0)
model = Segmenter(config, load_tokenizer(tiny, config.language)).eval()
image, text = Image.new("RGB", (40, 30), "red"), "[SEG]"
model.save_pretrained(out)
again = Segmenter.from_pretrained(out)
(one,), (two,) = (m.segment_given([image], [["a card"]], "It is [SEG].")[0] for m in (model, again))
assert one.mask.shape == (30, 40) and one.mask.any() and (one.mask == two.mask).all()
trained = make_trainable(again, TrainSettings(groups=("fcs", "sam2_decoder")))
features = again.encode_images([image, image.rotate(90)])
again.masks(features, torch.tensor([1]), again.text_hidden_fcs(torch.ones(1, 96))).low_res.square().mean().backward()
moved = {name for name, tensor in trained.items() if tensor.grad is not None and tensor.grad.any()}
print(json.dumps(sorted(moved)))
"""


def test_a_mask_decoder(written: Path, tmp_path: Path) -> None:
    """A model with random weights, whose `config.json` has the section: it is stored and loaded, segments, and learns by its head alone."""
    environment = os.environ | {"PYTHONPATH": str(written), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SEGMENTS, str(TINY), str(tmp_path / "model")]
    done = subprocess.run(command, cwd=written, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moved = json.loads(done.stdout)
    assert {name for name in moved if name.startswith("sam.")} == {f"sam.head.1.{kind}" for kind in ("weight", "bias")}
    shards = {path.name.split("-")[1] for path in (tmp_path / "model").glob("*.safetensors")}
    assert {"sam2_decoder", "sam2_encoder"} <= shards


def test_dvc_knows_the_files(copy: Path) -> None:
    """Nothing is left to do; a change of the new reader makes its index stale and no other, of the new task the training."""
    assert not json.loads(dvc(copy, "status", "--json"))
    for file in (READER, TASK):
        (copy / file).write_text(FILES[file] + "\n# changed\n", encoding="utf-8")
    stale = json.loads(dvc(copy, "status", "--json"))
    for file in (READER, TASK):
        (copy / file).write_text(FILES[file], encoding="utf-8")
    assert {stage for stage in stale if stage.startswith("index@")} == {"index@cards"}
    assert "train" in stale and not {"weights", "convert", "filter@full", "subset_sa1b"} & set(stale)


def test_the_familys_image_tokens_are_transformers_own(copy: Path) -> None:
    """Images of three shapes, encoded together, against each by itself in `LightOnOcrForConditionalGeneration`."""
    module = imported(copy, FAMILY)
    values = json.loads((copy / "models" / "base" / "config.json").read_text(encoding="utf-8"))
    made = module.Family.read({key: value for key, value in values.items() if key != "sam2_config"})
    vlm, reference = made.build().eval(), LightOnOcrForConditionalGeneration.from_pretrained(copy.parent / "released").eval()
    released = load_file(copy.parent / "released" / "model.safetensors")
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
