"""Each family, small and with random weights, through the training: `train()` against fine-tuning written out plainly (`plain.py`), and
what regions, captions and supervised captioning are there."""

import json
from pathlib import Path

import pytest
import torch

from ans.checkpoints.base import shard
from ans.formats.shards import files
from ans.model.segmenter import Segmenter
from tests import small_releases
from tests.training.test_independent_step import BASE, Laboratory, check
from tests.training.reference_case import Changes

pytestmark = pytest.mark.slow

GROUPS = ("lora", "embed_head", "proj", "fcs", "sam2_decoder")
LIMITS = {"min_pixels": 1024, "max_pixels": 24 * 1024}
"""Images of the small world keep their shapes, with few tokens."""


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    folder = tmp_path_factory.mktemp("families")
    made = Laboratory(folder)
    for name in small_releases.TWINS:
        twin = small_releases.twin(name, folder / name)
        values = json.loads((twin / "config.json").read_text(encoding="utf-8"))
        (twin / "config.json").write_text(json.dumps(values | LIMITS | {"regions": True}), encoding="utf-8")
        model = Segmenter.from_pretrained(twin)
        model.vlm.language_model.lm_head.weight.data[model.seg_token] = 0  # the reference takes captions without it
        model.save_pretrained(twin)
        shard(twin, made.world.base(name))
    return made


def settings(laboratory: Laboratory, name: str) -> Changes:
    """What all runs of a family have: every group that it has tensors of."""
    qwen = "qwen" in name
    return BASE | {"groups": [group for group in GROUPS if not (qwen and group == "proj")], "lora_rank": 4}


@pytest.mark.parametrize("name", small_releases.TWINS)
@pytest.mark.parametrize("bridge", ["gumbel", "detached", "hard", "discrete"])
def test_both_loops(laboratory: Laboratory, tmp_path: Path, name: str, bridge: str) -> None:
    """A step on expressions and one on loop 1, loop 2 beside both, its gradient projected, with a teacher that follows."""
    changes = settings(laboratory, name) | {"bridge": bridge}
    check(laboratory, name, changes, laboratory.world.run(name, changes, tmp_path), f"{name}, {bridge}")
    states = laboratory.reference(name, changes)[1]
    assert {"ref_mask", "loop2_caption"} <= states[0].values.keys() and {"loop1_mask", "loop2_caption"} <= states[1].values.keys()
