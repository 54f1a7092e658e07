"""What annotation tools export becomes a folder of own data that the validator has nothing to say against."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ans.cli import main
from ans.data import masks
from ans.data.records import ImageRecord
from ans.data.sources import own
from ans.data.sources.common import read
from ans.data.validate import validate

MASK = np.zeros((10, 20), np.uint8)
MASK[2:5, 3:9] = 1
CORNERS = [[3, 2], [8, 2], [8, 4], [3, 4]]


def photographs(place: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (10 * number, 0, 0)).save(place / name)


def run(source: Path, out: Path, *more: str) -> list[ImageRecord]:
    main(["import", str(source), str(out), *more])
    found = validate(out)
    assert not found.problems and not found.notes
    return [record for record in read(own, out.parent, out.name, "kitchen") if isinstance(record, ImageRecord)]


def objects(records: list[ImageRecord]) -> dict[str, tuple[str, np.ndarray]]:
    """Image -> class and mask of its one object."""
    return {
        record.path.rpartition("/")[2]: (record.regions[0].category, masks.decode(record.regions[0].counts, 10, 20))
        for record in records
    }


def coco(**changes: Any) -> dict[str, Any]:
    listing = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}, {"id": 2, "file_name": "sub\\b.png"}],
        "categories": [{"id": 7, "name": "cup"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 7,
                "segmentation": [[3, 2, 9, 2, 9, 5, 3, 5]],
                "area": 18,
                "bbox": [3, 2, 6, 3],
            },
            {"id": 2, "image_id": 2, "category_id": 8, "segmentation": {"size": [10, 20], "counts": [32, 3, 165]}},
            {"id": 3, "image_id": 1, "category_id": 7, "bbox": [3, 2, 6, 3], "segmentation": []},
            {"id": 4, "image_id": 3, "category_id": 7, "segmentation": [[3, 2, 9, 2, 9, 5, 3, 5]]},
        ],
    }
    return listing | changes


def test_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "export/images", "a.jpg", "sub/b.png")
    (tmp_path / "export/c.json").write_text(json.dumps(coco()))
    found = objects(run(tmp_path / "export/c.json", tmp_path / "kitchen", "--category-as-text"))
    assert {name: of[0] for name, of in found.items()} == {"a.jpg": "cup", "b.png": ""}
    assert (found["a.jpg"][1] == MASK).all() and found["b.png"][1].sum() == 3
    said = capsys.readouterr().out
    assert "left out: annotation 3: a box without a mask" in said and "left out: annotation 4: image_id that is not" in said
    assert "2 images of train, 2 objects; 2 left out" in said
    lines = [json.loads(line) for line in (tmp_path / "kitchen/expressions.jsonl").read_text().splitlines()]
    assert [line.get("text") for line in lines] == ["cup", None]


def test_labelme(tmp_path: Path) -> None:
    place = tmp_path / "export"
    photographs(place, "a.jpg", "b.jpg")
    shape = {"label": "cup", "points": CORNERS, "shape_type": "polygon", "group_id": 3}
    second = shape | {"points": [[12, 2], [14, 2], [14, 4], [12, 4]]}
    flat = {"label": "line", "points": [[1, 1], [5, 5]], "shape_type": "line"}
    for name, shapes in {"a": [shape, second, flat], "b": [shape | {"shape_type": "rectangle", "points": CORNERS[::2]}]}.items():
        (place / f"{name}.json").write_text(json.dumps({"shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}))
    found = objects(run(place, tmp_path / "kitchen"))
    assert (found["b.jpg"][1] == MASK).all() and found["b.jpg"][0] == "cup"
    assert found["a.jpg"][1].sum() == 18 + 9 and (found["a.jpg"][1][:, :10] == MASK[:, :10]).all(), "two pieces of one object"


def test_voc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "VOC2012"
    photographs(place / "JPEGImages", "a.jpg", "b.jpg")
    (place / "SegmentationObject").mkdir()
    (place / "Annotations").mkdir()
    numbers = MASK * 2
    numbers[0, 0] = 255
    for name in ("a", "b", "c"):
        Image.fromarray(numbers).save(place / f"SegmentationObject/{name}.png")
    entries = "".join(f"<object><name>{name}</name></object>" for name in ("table", "cup"))
    (place / "Annotations/a.xml").write_text(f"<annotation>{entries}</annotation>")
    (place / "Annotations/b.xml").write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>')
    found = objects(run(place, tmp_path / "kitchen"))
    assert list(found) == ["a.jpg"] and found["a.jpg"][0] == "cup" and (found["a.jpg"][1] == MASK).all()
    said = capsys.readouterr().out
    assert "b.xml: XML with declarations of its own" in said and "c.png: no such image: c" in said


def test_a_folder_of_masks(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", "001.jpg", "0012.jpg", "003.jpg")
    (tmp_path / "photos/masks").mkdir()
    for name in ("001_red_cup", "0012", "003_mask"):
        Image.fromarray(255 * MASK).save(tmp_path / f"photos/masks/{name}.png")
    found = objects(run(tmp_path / "photos", tmp_path / "kitchen", "--masks", str(tmp_path / "photos/masks")))
    assert {name: of[0] for name, of in found.items()} == {"001.jpg": "red cup", "0012.jpg": "", "003.jpg": ""}
    assert all((mask == MASK).all() for _, mask in found.values())


def test_a_share_is_for_evaluation_and_groups_stay_together(tmp_path: Path) -> None:
    names = [f"day{day}_{number}.png" for day in range(5) for number in range(4)]
    photographs(tmp_path / "photos", *names)
    Image.open(tmp_path / "photos" / names[0]).save(tmp_path / "photos/copy.png")
    (tmp_path / "masks").mkdir()
    for name in (*names, "copy.png"):
        Image.fromarray(255 * MASK).save(tmp_path / "masks" / name)
    more = ("--masks", str(tmp_path / "masks"), "--val", "0.4")

    def splits(out: Path, *others: str) -> dict[str, str]:
        return {
            record.path.rpartition("/")[2]: record.regions[0].split for record in run(tmp_path / "photos", out, *more, *others)
        }

    single = splits(tmp_path / "one")
    assert list(single.values()).count("val") in (8, 9) and single["copy.png"] == single[names[0]]
    assert single == splits(tmp_path / "again")
    by_day = splits(tmp_path / "days", "--group", r"(day\d)_")
    days = {day: {by_day[name] for name in names if name.startswith(day)} for day in ("day0", "day1", "day2", "day3", "day4")}
    assert all(len(of) == 1 for of in days.values()) and "val" in by_day.values()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--val", "1.5"), "--val: a share"),
        (("--group", "("), "is not a regular expression"),
        (("--group", r"day(\d)"), r"--group: 'day.*' is found in no name of an image, such as a.jpg"),
        (("--masks", "none"), "no such folder of masks"),
        ((), "neither COCO's JSON"),
    ],
)
def test_what_cannot_be_imported_says_why(tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    photographs(tmp_path / "photos", "a.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(255 * MASK).save(tmp_path / "masks/a.png")
    more = ("--masks", str(tmp_path / "masks"), *more) if more and more[0] != "--masks" else more
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["import", str(tmp_path / "photos"), str(tmp_path / "kitchen"), *more])
    assert not (tmp_path / "kitchen").exists()
    (tmp_path / "kitchen").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        main(["import", str(tmp_path / "photos"), str(tmp_path / "kitchen")])
