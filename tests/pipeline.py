"""The heart of the pipeline on a small world, for tests: world, indexes, base in shards."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import yaml

from ans.checkpoints.base import shard
from ans.config import Config
from ans.config.schema import World
from ans.data.index import build
from ans.data.subset_sa1b import subset_sa1b
from ans.toy.world import write_world
from ans.workspace import Workspace
from tests import forked

REPOSITORY = Path(__file__).parent.parent
REFERRING = ("refcoco", "refcoco_plus", "refcocog")


def small_values(root: Path, **changes: object) -> dict:
    """`params.yaml` with a data root outside the repository and a short run; `changes` are dotted keys with `__` for a dot."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    values["paths"]["root"] = str(root)
    values["launch"]["log_with"] = []
    values["train"]["steps"] = 3
    values["train"]["min_seg_rate"] = 0.0
    values["subset_sa1b"]["images"] = 5
    values["train"]["batch"] = 4
    values["evaluate"]["tokens_per_batch"] = 1000
    values["evaluate"]["splits"] = ["refcoco_val", "refcoco_plus_testA", "refcocog_test"]
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = values
        for parent in parents:
            node[parent] = node = node.get(parent) or {}
        node[last] = value
    return values


def small_config(root: Path, **changes: object) -> Config:
    """The configuration of `small_values`."""
    return Config(small_values(root, **changes))


def prepare(folder: Path) -> Path:
    """World, indexes and base; returns the folder that a run works in. The world lies beside it, not in it."""
    root, work = folder / "world", folder / "work"
    config = small_config(root)
    loops = {"sa1b_images": 6, "sav_pairs": 8, "openimages_images": 4, "describe_images": 8, "reasonseg_images": 4}
    world = World(seed=5, train_images=16, val_images=6, test_images=4, **loops, shift=1.0)
    write_world(root, world)
    for name in config.sources:
        build(name, config, Workspace(work))
    subset_sa1b(config, Workspace(work))
    shard(REPOSITORY / "weights" / "tiny", Workspace(work).base)
    return work


def beside(work: Path, folder: Path) -> Workspace:
    """A workspace in `folder` with the indexes and the base of `work`, which is the variant `base` too; what a run leaves is its
    own."""
    here = Workspace(folder)
    for made, there in ((here.indexes, "data/index"), (here.base, "models/base"), (here.variant("base"), "models/base")):
        made.parent.mkdir(parents=True, exist_ok=True)
        made.symlink_to(work / there)
    return here


def write_params(work: Path, values: dict) -> Config:
    once = json.loads(json.dumps(values))  # what stands there twice would become an alias, which no params.yaml may have
    (work / "params.yaml").write_text(yaml.safe_dump(once), encoding="utf-8")
    return Config(values)


def run(work: Path, stage: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m stages.<stage>` in `work`, as DVC runs it. Raises on failure, with its output."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    done = forked.run(f"stages.{stage}", *arguments, cwd=work, env=environment)
    if done.returncode:
        raise AssertionError(f"{stage} failed:\n{done.stdout}\n{done.stderr}")
    return done


def train_to_evaluation(work: Path, values: dict, variant: str = "full") -> None:
    """train, convert, filter and evaluate one variant, from scratch."""
    for made in ("models/checkpoint", "models/hf", "models/variants", "reports", "data/eval"):
        shutil.rmtree(work / made, ignore_errors=True)
    write_params(work, values)
    run(work, "train")
    run(work, "convert")
    run(work, "filter", variant)
    run(work, "evaluate", variant)


def metrics(work: Path, variant: str, split: str) -> dict[str, float]:
    return json.loads((work / "reports" / "eval" / variant / f"{split}.json").read_text(encoding="utf-8"))
