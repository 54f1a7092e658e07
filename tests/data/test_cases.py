"""Small inputs after faults that users of such tools reported (tests/cases), each with what is right."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ans import config
from ans.data import index, masks
from ans.data.arrow import read_index
from ans.data.images import read_frame
from ans.data.records import ImageRecord, Noted, Skipped
from ans.data.samples import Evaluated, Regions, training_rows
from ans.data.sources import open_images, own, reason_seg, refcoco
from ans.data.sources.common import read
from ans.data.subset_sa1b import subset_sa1b
from ans.data.validate import validate
from ans.workspace import Workspace
from tests.pipeline import REPOSITORY

CASES = REPOSITORY / "tests" / "cases"
VALUES = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))


def settings(root: Path, **changes: Any) -> config.Config:
    values = {"paths": {"root": str(root)}, "own": {"kitchen": {"folder": "kitchen"}}}
    values |= {"index": {"max_bad_fraction": 0.95, "decode": False}} | changes
    return config.Config(VALUES | {name: (VALUES[name] or {}) | change for name, change in values.items()})


def areas(found: list[ImageRecord | Skipped]) -> dict[str, int]:
    """Text -> area, of what is used."""
    regions = [region for record in found if isinstance(record, ImageRecord) for region in record.regions]
    return {expression.sent: region.area for region in regions for expression in region.expressions}


def lines_of(said: list[Any]) -> dict[int, str]:
    return {int(item.key.rpartition(":")[2]): item.reason for item in said}


def test_every_form_of_a_segmentation_is_understood_or_has_its_own_reason(tmp_path: Path) -> None:
    """25 of the list says that it begins with the ones, but is the same as 17."""
    found = validate(CASES / "coco_segmentations/kitchen")
    refused, noted = lines_of(found.problems), lines_of(found.notes)
    understood = {1, 5, 6, 7, 8, 12, 14, 16, 17, 18, 22, 25}
    assert set(refused) == set(range(1, 36)) - understood
    assert [line for line, n in Counter(refused.values()).items() if n > 1] == [refused[33]], "null and absent are the same"
    assert set(noted) == {6, 7, 8, 12} and all("outline of fewer than three points" in noted[line] for line in (6, 7, 8))
    for line, reason in {10: "outside", 11: "shares", 13: "area of 16", 24: "the bbox [4, 2, 4, 4]"}.items():
        assert reason in refused[line]
    used = areas(list(read(own, CASES / "coco_segmentations", "kitchen", "kitchen")))
    assert used.pop(_text_of(12)) == 32, "8 x 4 of 12 x 4 are in the image"
    assert set(used.values()) == {16} and len(used) == len(understood) - 1
    report = index.build("kitchen", settings(CASES / "coco_segmentations"), Workspace(tmp_path))
    assert sum(reason["count"] for reason in report["skipped"].values()) == len(refused)
    assert sum(reason["count"] for reason in report["noted"].values()) == len(noted)


def _text_of(line: int) -> str:
    lines = (CASES / "coco_segmentations/kitchen/expressions.jsonl").read_text().splitlines()
    return json.loads(lines[line - 1])["text"]


@pytest.mark.parametrize(("case", "reader"), [("duplicate_ids_same_image", own), ("ref_duplicate_annotation", refcoco)])
def test_ids_that_are_there_twice_are_refused(case: str, reader: Any) -> None:
    folder, name = ("kitchen", "kitchen") if reader is own else ("ref_seg/refcoco", "refcoco")
    with pytest.raises(ValueError, match=r"json: .*id [57] occurs twice: annotations\[0\] and annotations\[1\]"):
        list(read(reader, CASES / case, folder, name))


@pytest.mark.parametrize("kind", ("images", "categories", "annotations", "refs"))
def test_other_ids_too(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").symlink_to(CASES / "ref_degenerate_second/coco2014")
    (tmp_path / "coco2014").symlink_to(CASES / "ref_degenerate_second/coco2014")
    folder = tmp_path / "ref_seg/refcoco"
    folder.mkdir(parents=True)
    listing = json.loads((CASES / "ref_degenerate_second/ref_seg/refcoco/instances.json").read_text())
    refs = refcoco.load_refs(CASES / "ref_degenerate_second/ref_seg/refcoco/refs(unc).p")
    if kind != "refs":
        listing[kind] *= 2
    (folder / "instances.json").write_text(json.dumps(listing))
    (folder / "grefs(unc).json").write_text(json.dumps(refs * (1 + (kind == "refs"))))
    with pytest.raises(ValueError, match=rf"occurs twice: {kind}\[0\] and {kind}\[1\]"):
        list(read(refcoco, tmp_path, "ref_seg/refcoco", "grefcoco"))


def test_one_photograph_under_two_paths_is_not_trained_on(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    report = index.build("kitchen", settings(CASES / "one_image_two_paths"), workspace)
    assert report["images"] == 2 and report["skipped"] == {}
    found = read_index(workspace.index("kitchen"))
    assert training_rows([found], Evaluated([found])) == ([], 2)
    assert Regions("kitchen", found, Evaluated([found]), None).count == 0, "nor without its text"


def test_a_photograph_in_a_tar_and_extracted_is_one(tmp_path: Path) -> None:
    workspace, root = Workspace(tmp_path), CASES / "sa1b_tar_and_extracted"
    report = index.build("sa1b", settings(root), workspace)
    assert report["images"] == 3
    ((reason, noted),) = report["noted"].items()
    assert "twice" in reason and noted["count"] == 3 and noted["examples"] == ["sa_11"]
    assert subset_sa1b(settings(root, subset_sa1b={"images": 3}), workspace)["images"] == 3
    with pytest.raises(ValueError, match="4 asked for, but the index has 3"):
        subset_sa1b(settings(root, subset_sa1b={"images": 4}), workspace)


def test_masks_of_other_kinds_are_read_or_refused() -> None:
    found = list(read(own, CASES / "mask_kinds", "kitchen", "kitchen"))
    assert areas(found) == {"cutout alpha": 256, "antialiased": 256, "ids16": 256}
    (refused,) = [item for item in found if isinstance(item, Skipped) and not isinstance(item, Noted)]
    assert refused.key.endswith(":1") and "masks/jpeg_circle.jpg is a JPEG" in refused.reason
    notes = lines_of([item for item in found if isinstance(item, Noted)])
    assert "alpha" in notes[2] and "soft edge" in notes[3] and len(notes) == 2


def test_shapes_of_labelme_are_drawn_as_it_draws_them() -> None:
    found = list(read(reason_seg, CASES / "labelme_shapes", "reason", "reasonseg"))
    drawn = {Path(record.path).name: record.regions[0].area for record in found if isinstance(record, ImageRecord)}
    # 21 x 11 pixels with their outline; a circle of radius 5 as Pillow's ellipse in a box of 11 x 11, which labelme calls
    assert drawn == {"polygon.jpg": 231, "rectangle.jpg": 231, "circle.jpg": 97, "upper.JPG": 231}
    assert len(found) == 4


def test_a_sound_outline_beside_a_degenerate_one_counts() -> None:
    found = list(read(refcoco, CASES / "ref_degenerate_second", "ref_seg/refcoco", "refcoco"))
    assert [record.regions[0].area for record in found if isinstance(record, ImageRecord)] == [64]
    (noted,) = [item for item in found if isinstance(item, Skipped)]
    assert isinstance(noted, Noted) and "outline of fewer than three points" in noted.reason


def test_a_class_file_may_have_further_columns(tmp_path: Path) -> None:
    (record,) = read(open_images, CASES / "oi_class_three_columns", "openimages", "openimages")
    assert isinstance(record, ImageRecord) and record.regions[0].category == "Man"


@pytest.mark.parametrize("mark", ("", "\ufeff"))
def test_a_class_file_may_begin_with_a_mark(tmp_path: Path, mark: str) -> None:
    (tmp_path / "classes.csv").write_text(f'{mark}/m/1,Man\r\n/m/2,"Salt, and pepper"\n', encoding="utf-8")
    assert open_images._read_classes(tmp_path / "classes.csv") == {"/m/1": "Man", "/m/2": "Salt, and pepper"}


@pytest.mark.parametrize(
    "text",
    (
        "/m/1,Salt\n/m/2,Salt, and pepper\n",
        "a,b\n/m/1,Man\nnone,Man\n",
        "LabelName\n/m/1\n",
        "/m/1,Man\n/m/1,Woman\n",
        "/m/1,\n",
        "/m/1,M\0an\n",
    ),
)
def test_a_class_that_would_be_lost_names_its_line(tmp_path: Path, text: str) -> None:
    shutil.copytree(CASES / "oi_class_three_columns/openimages", tmp_path / "openimages")
    (tmp_path / "openimages" / open_images.CLASSES).write_text(text)
    with pytest.raises(ValueError, match=r"class-descriptions.csv, row [123]: "):
        list(read(open_images, tmp_path, "openimages", "openimages"))


def test_damaged_images_and_masks_are_named(tmp_path: Path) -> None:
    found = validate(CASES / "truncated_image/kitchen")
    reasons = lines_of(found.problems)
    assert set(reasons) == {2, 3, 4} and all("not a readable image" in reason for reason in reasons.values())
    assert found.images == 1
    with pytest.raises(ValueError, match="3 of 4 records cannot be used"):
        index.build("kitchen", settings(CASES / "truncated_image", index={"max_bad_fraction": 0.5}), Workspace(tmp_path))


@pytest.mark.parametrize(("case", "token"), [("text_image_token", "<IMG_CONTEXT>"), ("text_seg_token", "[SEG]")])
def test_texts_are_words(case: str, token: str) -> None:
    """What becomes of them in a prompt: tests/model/test_prompts.py."""
    found = areas(list(read(own, CASES / case, "kitchen", "kitchen")))
    assert len(found) == 2 and sum(token in text for text in found) == 1


@pytest.mark.parametrize("video", ("cfr24", "vfr_phone"))
def test_frames_are_counted_whatever_the_rate(video: str) -> None:
    """Frame n is 8 n + 4 grey below its bar."""
    for number in range(0, 25, 4):
        pixels = np.asarray(read_frame(CASES / f"videos/{video}.mp4", number), float)
        assert abs(pixels[-4:].mean() - (8 * number + 4)) < 3


def test_masks_lie_where_the_image_is() -> None:
    """What is left of the table: the object of the turned photograph is refused at first use, see test_matching.py."""
    (record,) = [
        item for item in read(refcoco, CASES / "ref_exif_turned", "ref_seg/refcoco", "refcoco") if isinstance(item, ImageRecord)
    ]
    assert masks.measure(record.regions[0].counts, record.height, record.width)[0] == record.regions[0].area
