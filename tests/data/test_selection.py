"""What training and evaluation depend on: the indexes that the parameters name, by content, and no other."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from ans.config import Config, load
from ans.data.records import ImageRecord, Region
from ans.data.selection import select
from ans.workspace import Workspace
from tests.indexes import write_records


def write(path: Path, listing: str) -> None:
    write_records(path, [], {"source": "x", "folder": "x", "reader": "sav", "root_listing": listing})


def test_names_and_contents(tmp_path: Path) -> None:
    at = Workspace(tmp_path)
    at.indexes.mkdir(parents=True)
    write(at.index("b"), "two")
    write(at.index("a"), "one")
    out = at.selected("train")
    select(("b", "a"), at, "train")
    first = out.read_text()
    assert json.loads(first) == {name: hashlib.sha256(at.index(name).read_bytes()).hexdigest() for name in ("a", "b")}
    write(at.index("unrelated"), "three")
    select(("a", "b"), at, "train")
    assert out.read_text() == first
    write(at.index("a"), "other")
    select(("a", "b"), at, "train")
    assert out.read_text() != first
    assert [path.name for path in out.parent.iterdir()] == ["train.json"]
    with pytest.raises(FileNotFoundError, match="c.arrow: no such index, but train reads it; name c below `sources` or `own`"):
        select(("c",), at, "train")
    at.index("a").write_bytes(b"no index")
    with pytest.raises(ValueError, match="a.arrow: not an index"):
        select(("a",), at, "train")


def test_what_the_parameters_name() -> None:
    config = load()
    assert sorted(config.training_indexes()) == [
        "describe", "openimages", "refcoco", "refcoco_plus", "refcocog", "sa1b_subset", "sav"
    ]  # fmt: skip
    assert config.evaluation_indexes() == ("refcoco", "refcoco_plus", "refcocog")
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    values["train"]["loop1"]["enabled"] = values["train"]["loop2"]["enabled"] = False
    values["train"]["referring"]["sources"] = ["reasonseg"]
    values["own"] = {"my_own": {"folder": "mine"}}
    values["evaluate"] |= {"splits": ["my_own_val"], "captions": ["refcocog_val"]}
    other = Config(values)
    assert other.training_indexes() == ("reasonseg",) and other.evaluation_indexes() == ("my_own", "refcocog")
    assert other.evaluated_alone() == ("my_own", "refcocog") and config.evaluated_alone() == ()


def test_a_split_that_no_region_has_is_found_before_training(tmp_path: Path) -> None:
    regions = [Region(i, split, "", 1, (0.0, 0.0, 1.0, 1.0), "0") for i, split in enumerate(("train", "val", "testA"))]
    records = [ImageRecord(i, f"{i}.png", 1, 1, (region,)) for i, region in enumerate(regions)]
    metadata = {"source": "refcoco", "folder": "x", "reader": "refcoco", "root_listing": "y"}
    at = Workspace(tmp_path)
    at.indexes.mkdir(parents=True)
    write_records(at.index("refcoco"), records, metadata)
    select(["refcoco"], at, "evaluate", ["refcoco_val", "refcoco_testA"])
    out = at.selected("evaluate")
    out.unlink()
    with pytest.raises(ValueError, match="split refcoco_testB: .* its splits are refcoco_testA, refcoco_train, refcoco_val"):
        select(["refcoco"], at, "evaluate", ["refcoco_val", "refcoco_testB"])
    assert not out.exists()
