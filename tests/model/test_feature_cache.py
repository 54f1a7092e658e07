"""The cache of encoder features changes no bit, serves every variant with the same encoders, and knows when it is damaged."""

import copy
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from sam2.modeling.backbones.image_encoder import ImageEncoder
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ans.config import Config
from ans.evaluation.evaluate import evaluate
from ans.model.feature_cache import FeatureCache
from ans.model.segmenter import Features, Segmenter
from ans.workspace import Workspace
from tests import pipeline

TINY = pipeline.REPOSITORY / "weights" / "tiny"


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return Segmenter.from_pretrained(TINY)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "features"


def cache(model: Segmenter, runs: Path, precision: str = "float32", limit: float = 1e9) -> FeatureCache:
    return FeatureCache(model, precision, limit, runs.parent)


@pytest.fixture
def encoded() -> Iterator[list[int]]:
    """The numbers of images that went through SAM2's encoder, of any model, call by call."""
    counts: list[int] = []

    def count(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, ImageEncoder):
            counts.append(len(arguments[0]))

    handle = register_module_forward_pre_hook(count)
    yield counts
    handle.remove()


def pictures(*colours: int) -> list[Image.Image]:
    return [Image.effect_mandelbrot((150, 110), (-2, -1.5, 1, 1.5), 20 + colour).convert("RGB") for colour in colours]


def same(first: Features, second: Features) -> bool:
    """Also in how they lie in memory: kernels are chosen by that."""
    tensors = [[*(one.tokens for one in features.visual), *features.levels] for features in (first, second)]
    grids = [[one.grid for one in features.visual] for features in (first, second)]
    return (
        first.sizes == second.sizes
        and grids[0] == grids[1]
        and all(torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride() for a, b in zip(*tensors, strict=True))
    )


def test_what_is_kept_is_what_was_encoded(model: Segmenter, runs: Path, encoded: list[int]) -> None:
    images = pictures(0, 1, 2)
    expected = model.encode_images(images)
    for _ in range(2):
        assert same(cache(model, runs).encode(images), expected)
    assert encoded == [3, 3], "the second cache finds what the first has left"
    model.read(images, cache(model, runs).encode)
    assert encoded == [3, 3]
    for others in (images[:2], images[::-1], pictures(0, 1, 3)):
        cache(model, runs).encode(others)
    cache(model, runs, "bf16").encode(images)
    assert encoded == [3, 3, 2, 3, 3, 3] and len(list(runs.iterdir())) == 5


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        ("vlm.mlp1.1.weight", True),
        ("vlm.language_model.lm_head.weight", True),
        ("sam.model.sam_mask_decoder.conv_s0.weight", True),
        ("text_hidden_fcs.0.weight", True),
        ("vlm.vision_model.embeddings.cls_token", False),
        ("sam.model.image_encoder.neck.convs.0.conv.bias", False),
    ],
)
@pytest.mark.second
def test_variants_share_it_and_other_encoders_do_not(
    model: Segmenter, runs: Path, encoded: list[int], tensor: str, found: bool
) -> None:
    images = pictures(0)
    cache(model, runs).encode(images)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(tensor).view(-1)[0] += 1e-3
    cached = cache(other, runs).encode(images)
    assert len(encoded) == (1 if found else 2)
    assert same(cached, other.encode_images(images))


def test_what_conversion_adds_to_the_config_makes_no_difference(model: Segmenter, runs: Path, encoded: list[int]) -> None:
    other = copy.deepcopy(model)
    added = {"auto_map": {"AutoModel": "a--b.C"}, "architectures": ["C"]}
    added["vision_config"] = {**model.config.values["vision_config"], "architectures": ["D"]}
    for changes, number in ((added, 1), ({"min_dynamic_patch": 2}, 2)):
        cache(model, runs).encode(pictures(0))
        other.config = dataclasses.replace(model.config, values=model.config.values | changes)
        cache(other, runs).encode(pictures(0))
        assert len(encoded) == number


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:500] + b"x" + b[501:], lambda b: b"", lambda b: b + b"\0"])
def test_a_damaged_file_is_named_and_made_again(model: Segmenter, runs: Path, encoded: list[int], capsys, damage) -> None:
    images = pictures(0)
    expected = cache(model, runs).encode(images)
    (path,) = runs.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert same(cache(model, runs).encode(images), expected)
    assert len(encoded) == 2 and path.read_bytes() == whole
    assert f"{path}: damaged; its images are encoded again" in capsys.readouterr().out


def test_it_stays_within_its_limit(model: Segmenter, runs: Path, encoded: list[int]) -> None:
    """Room for two files: the third is not kept; a later run drives out what it does not use, and nothing that it does."""
    cache(model, runs).encode(pictures(0))
    (path,) = runs.iterdir()
    limit = 2.5 * path.stat().st_size
    first = cache(model, runs, limit=limit)
    for colour in (1, 2):
        first.encode(pictures(colour))
    assert len(list(runs.iterdir())) == 2 and not path.exists(), "the one of an earlier run makes room"
    first.encode(pictures(3))
    kept = set(runs.iterdir())
    assert len(kept) == 2
    for file in kept:  # as if an hour ago
        os.utime(file, (1, 1))
    later, before = cache(model, runs, limit=limit), len(encoded)
    later.encode(pictures(1))
    later.encode(pictures(4))
    later.encode(pictures(5))
    assert len(encoded) == before + 2 and len(kept & set(runs.iterdir())) == 1
    cache(model, runs, limit=1.0).encode(pictures(6))
    assert sum(file.stat().st_size for file in runs.iterdir()) <= limit


@pytest.mark.slow
def test_an_evaluation_has_the_same_bytes_with_it(tmp_path: Path, monkeypatch, encoded: list[int]) -> None:
    """Off, on and empty, on and full: every file that is left is the same; the third time no image is encoded."""
    work = pipeline.prepare(tmp_path)
    monkeypatch.setenv("ANS_RUNS", str(tmp_path / "runs"))
    found, counts = [], []
    for gigabytes in (0, 1, 1):
        values = pipeline.small_values(
            tmp_path / "world", evaluate__captions=["refcocog_val"], launch__feature_cache_gb=gigabytes
        )
        workspace = Workspace(tmp_path / f"out{len(found)}")
        shutil.copytree(work / "data" / "index", workspace.indexes)
        shutil.copytree(work / "models" / "base", workspace.variant("base"))
        evaluate(Config(values), "base", workspace)
        written = [workspace.results("base"), workspace.predictions("base")]
        found.append({path.name: path.read_bytes() for folder in written for path in folder.iterdir()})
        counts.append(sum(encoded))
    assert found[0] == found[1] == found[2] and len(found[0]) > 5
    assert counts[0] > 0 and counts[1:] == [2 * counts[0]] * 2
