"""What only opening an image finds: by the index where `index.decode` says so, and by the validator."""

import shutil
from pathlib import Path

import pytest

from ans.data import index
from ans.data.arrow import read_index
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import refcoco
from ans.data.sources.common import read
from ans.data.subset_sa1b import subset_sa1b
from ans.data.validate import decode
from ans.workspace import Workspace
from tests.data.test_cases import CASES, settings
from tests.indexes import write_records


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])


@pytest.mark.parametrize("opened", (False, True))
@pytest.mark.parametrize(
    ("case", "reason"), [("ref_off_by_one", "image of another size than the record"), ("", "cannot be read")]
)
def test_damaged_images_are_found_when_asked_for(tmp_path: Path, case: str, reason: str, opened: bool) -> None:
    shutil.copytree(CASES / (case or "ref_degenerate_second"), tmp_path / "data")
    if not case:
        cut(next((tmp_path / "data").rglob("COCO_*.jpg")))
    config = settings(tmp_path / "data", index={"max_bad_fraction": 0.5, "decode": opened})
    if opened:
        with pytest.raises(ValueError, match=rf"1 of 1 records cannot be used.*{reason} \(coco2014/.*, region 5"):
            index.build("refcoco", config, Workspace(tmp_path))
    else:
        assert index.build("refcoco", config, Workspace(tmp_path))["regions"] == 1


def test_those_of_sa1b_are_opened_with_their_masks(tmp_path: Path) -> None:
    shutil.copytree(CASES / "sa1b_tar_and_extracted", tmp_path / "data")
    cut(tmp_path / "data/sa1b/sa_12.jpg")
    for opened, images in ((False, 3), (True, 2)):
        config = settings(tmp_path / "data", index={"max_bad_fraction": 0.5, "decode": opened}, subset_sa1b={"images": 3})
        index.build("sa1b", config, Workspace(tmp_path))
        report = subset_sa1b(config, Workspace(tmp_path))
        assert report["images"] == images
    assert report["skipped"] == {"image that cannot be read": {"count": 1, "examples": ["sa_12"]}}


def test_the_validator_opens_every_image_of_an_index(tmp_path: Path, runs: Path) -> None:
    shutil.copytree(CASES / "ref_degenerate_second", tmp_path / "data")
    (record,) = [item for item in read(refcoco, tmp_path / "data", "ref_seg/refcoco", "refcoco") if not isinstance(item, Skipped)]
    records = [record] * 150 + [ImageRecord(1, "none.jpg", 4, 4)] + [record] * 150
    metadata = {"source": "x", "folder": "x", "reader": "refcoco", "root_listing": "x"}
    write_records(tmp_path / "x.arrow", records, metadata)
    assert len(read_index(tmp_path / "x.arrow")) == 301
    for workers in (1, 2):
        assert decode(tmp_path / "x.arrow", tmp_path / "data", runs, workers) == (301, [Skipped("none.jpg", "no such image")])
    assert not list(runs.iterdir()), "nothing is left when it is done"
    cut(next((tmp_path / "data").rglob("COCO_*.jpg")))
    assert len(decode(tmp_path / "x.arrow", tmp_path / "data", runs)[1]) == 301
