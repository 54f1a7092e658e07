"""An image and its record of different sizes are named wherever they meet, and sound images are never lost to their metadata."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ans import cli
from ans.data.images import TURNS, open_image
from ans.data.matching import check_size, record_image, region_mask
from ans.data.records import ImageRecord, Region, Skipped
from ans.data.sources import own, refcoco
from ans.data.sources.common import read
from ans.evaluation.plan import Item, Question
from ans.evaluation.predict import predict
from tests.pipeline import REPOSITORY

CASES = REPOSITORY / "tests" / "cases"


def test_a_coco_listing_of_another_size_is_refused_for_own_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(read(own, CASES / "exif_size_swapped", "kitchen", "kitchen"))
    assert [(item.key, "masks would lie in the wrong place" in item.reason) for item in found if isinstance(item, Skipped)] == [
        (f"expressions.jsonl:{line}", True) for line in (1, 2, 3)
    ]
    reasons = [item.reason for item in found]
    assert "images/phone.jpg is 100 x 200 pixels, but" in reasons[0] and "says 200 x 100 (sides swapped" in reasons[0]
    assert "images/resized.jpg is 100 x 50 pixels, but annotations.json says 400 x 200" in reasons[1]
    with pytest.raises(SystemExit):
        cli.main(["validate", str(CASES / "exif_size_swapped" / "kitchen")])
    assert capsys.readouterr().out.count("masks would lie in the wrong place") == 3


@pytest.mark.parametrize(
    ("case", "size"), [("ref_exif_turned", "20 x 40 pixels, but"), ("ref_off_by_one", "39 x 20 pixels, but")]
)
def test_a_published_listing_of_another_size_is_named_at_first_use(case: str, size: str) -> None:
    root = CASES / case
    (record,) = [item for item in read(refcoco, root, "ref_seg/refcoco", "refcoco") if isinstance(item, ImageRecord)]
    wanted = rf"COCO_train2014_000000000009\.jpg is {size}.*its record says 40 x 20"
    with pytest.raises(ValueError, match=wanted):
        record_image(root, record)
    region = record.regions[0]
    with pytest.raises(ValueError, match=wanted):  # before the model is asked for anything
        predict(SimpleNamespace(read=None), root, [Item(record, (Question("refcoco_val", region, region.expressions[0]),))], 8)


def test_a_second_frame_is_compared_too(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 5)).save(tmp_path / "b.png")
    record = ImageRecord(0, "a.png", 8, 4, second="b.png")
    assert record_image(tmp_path, record).size == (8, 4)
    with pytest.raises(ValueError, match=r"b\.png is 8 x 5 pixels, but its record says 8 x 4"):
        record_image(tmp_path, record, second=True)


def test_run_lengths_that_do_not_fill_the_image_are_named() -> None:
    record = ImageRecord(0, "some/a.jpg", 5, 4, (Region(7, "", "", 5, (0, 0, 1, 1), "050?"),))
    with pytest.raises(ValueError, match="some/a.jpg, region 7: RLE that does not fill the image"):
        region_mask(record, record.regions[0])


def test_squares_say_nothing_of_turning() -> None:
    with pytest.raises(ValueError, match="^x is 4 x 4 pixels, but its record says 5 x 5"):
        check_size("x", (4, 4), (5, 5), "its record")


def test_damaged_metadata_costs_no_image() -> None:
    found = list(read(own, CASES / "exif_damaged", "kitchen", "kitchen"))
    assert len(found) == 2 and all(isinstance(record, ImageRecord) for record in found), found
    for record in found:
        assert record_image(CASES / "exif_damaged", record).size == (record.width, record.height)


@pytest.mark.parametrize("orientation", (*TURNS, 1, 0, 9, 77))
def test_images_are_turned_as_the_standard_says(tmp_path: Path, orientation: int) -> None:
    """Against a table of where the first row and the first column lie (EXIF 2.32, Orientation)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    upright = {
        2: stored[:, ::-1],  # first row at the top, first column on the right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: stored.T,  # first row on the left, first column at the top
        6: stored.T[:, ::-1],  # right, top
        7: stored.T[::-1, ::-1],  # right, bottom
        8: stored.T[::-1],  # left, bottom
    }.get(orientation, stored)
    assert np.array_equal(np.asarray(open_image(tmp_path, "x.png"))[..., 0], upright)


def test_own_data_that_is_edited_is_another_listing(tmp_path: Path) -> None:
    (tmp_path / "kitchen" / "images").mkdir(parents=True)
    (tmp_path / "kitchen" / "masks").mkdir()
    Image.new("RGB", (8, 4)).save(tmp_path / "kitchen/images/a.png")
    mask, line = np.zeros((4, 8), np.uint8), {"image": "a.png", "mask": "m.png", "text": "it"}
    mask[1, 1] = 255
    Image.fromarray(mask).save(tmp_path / "kitchen/masks/m.png")
    (tmp_path / "kitchen/expressions.jsonl").write_text(json.dumps(line))
    seen = [own.fingerprint(tmp_path, "kitchen", "kitchen")]
    edits = (
        lambda: Image.fromarray(mask[::-1].copy()).save(tmp_path / "kitchen/masks/m.png"),  # as large in bytes, or nearly
        lambda: (tmp_path / "kitchen/expressions.jsonl").write_text(json.dumps(line | {"text": "at"})),
        lambda: Image.new("RGB", (8, 4), "red").save(tmp_path / "kitchen/images/a.png"),
    )
    for edit in edits:
        edit()
        seen.append(own.fingerprint(tmp_path, "kitchen", "kitchen"))
    assert len(set(map(tuple, seen))) == 4
