"""What training and evaluation depend on: the indexes that the parameters name, by content, and no other."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from ans.config import Config, load, parse
from ans.data.selection import select


def test_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "b.arrow").write_bytes(b"two")
    (tmp_path / "a.arrow").write_bytes(b"one")
    out = tmp_path / "selected" / "train.json"
    select(("b", "a"), tmp_path, out)
    first = out.read_text()
    assert json.loads(first) == {name: hashlib.sha256(data).hexdigest() for name, data in (("a", b"one"), ("b", b"two"))}
    (tmp_path / "unrelated.arrow").write_bytes(b"three")
    select(("a", "b"), tmp_path, out)
    assert out.read_text() == first
    (tmp_path / "a.arrow").write_bytes(b"other")
    select(("a", "b"), tmp_path, out)
    assert out.read_text() != first
    assert [path.name for path in out.parent.iterdir()] == ["train.json"]
    with pytest.raises(FileNotFoundError, match="c.arrow: no such index, though train is to read it; name c under `sources`"):
        select(("c",), tmp_path, out)


def test_what_the_parameters_name() -> None:
    config = load()
    assert config.training_indexes() == (
        "refcoco", "refcoco_plus", "refcocog", "sav", "sa1b_subset", "openimages", "describe"
    )  # fmt: skip
    assert config.evaluation_indexes() == ("refcoco", "refcoco_plus", "refcocog")
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    values["train"]["loop1"]["enabled"] = values["train"]["loop2"]["enabled"] = False
    values["presets"]["tiny"]["train"]["referring"] = ["reasonseg"]
    values["presets"]["tiny"]["evaluate"] |= {"splits": ["my_own_val"], "captions": ["refcocog_val"]}
    other = parse(Config, values)
    assert other.training_indexes() == ("reasonseg",) and other.evaluation_indexes() == ("my_own", "refcocog")
