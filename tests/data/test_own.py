import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ans.cli import main
from ans.data import masks, validate
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import common, own
from ans.errors import run as as_command
from ans.toy import scenes, world_more
from tests.data.worlds import SMALLEST
from tests.pipeline import REPOSITORY

MASK = np.zeros((10, 20), np.uint8)
MASK[2:5, 3:9] = 1


def publish(root: Path, lines: list[Any], annotations: dict[str, Any] | None = None) -> Path:
    base = root / "own"
    (base / "images/sub").mkdir(parents=True)
    (base / "masks").mkdir()
    for name in ("a.jpg", "sub/b.png"):
        Image.new("RGB", (20, 10)).save(base / "images" / name)
    Image.fromarray(255 * MASK).save(base / "masks/m.png")
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(base / "masks/empty.png")
    Image.fromarray(MASK.T).save(base / "masks/turned.png")
    (base / "masks/broken.png").write_bytes(b"no PNG")
    if annotations is not None:
        (base / "annotations.json").write_text(json.dumps(annotations))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (base / "expressions.jsonl").write_text(text + "\n")
    return base


def read(root: Path) -> list[ImageRecord | Skipped]:
    return list(common.read(own, root, "own", "kitchen"))


def test_masks_and_texts_of_one_image_come_together(tmp_path: Path) -> None:
    lines = [
        {"image": "sub/b.png", "mask": "m.png", "text": "the red cup"},
        "",
        {"image": "a.jpg", "mask": "m.png"},
        {"image": "sub/b.png", "mask": "m.png", "text": [" left cup ", "cup"], "split": "train"},
        {"image": "sub/b.png", "mask": "m.png", "text": "cup", "split": "val", "category": "cup"},
    ]
    publish(tmp_path, lines)
    one, two = read(tmp_path)
    assert (one.path, one.width, one.height, one.image_id) == ("own/images/sub/b.png", 20, 10, 0)
    assert [(region.split, region.category, [e.sent for e in region.expressions]) for region in one.regions] == [
        ("train", "", ["the red cup", "left cup", "cup"]),
        ("val", "cup", ["cup"]),
    ]
    assert len({e.sent_id for region in one.regions for e in region.expressions}) == 4
    assert (masks.decode(one.regions[0].counts, 10, 20) == MASK).all()
    assert (one.regions[0].area, one.regions[0].bbox, one.regions[0].region_id) == (18, (3.0, 2.0, 6.0, 3.0), 1)
    assert two.regions[0].expressions == ()


@pytest.mark.parametrize("mode", ("1", "L", "P", "RGB", "RGBA", "I;16"))
def test_masks_of_every_kind(tmp_path: Path, mode: str) -> None:
    base = publish(tmp_path, [{"image": "a.jpg", "mask": "m.png"}])
    image = Image.fromarray(MASK.astype(np.uint16) * 300) if mode == "I;16" else Image.fromarray(255 * MASK).convert(mode)
    image.save(base / "masks/m.png")
    (record,) = read(tmp_path)
    assert (masks.decode(record.regions[0].counts, 10, 20) == MASK).all()


def test_annotations_of_coco(tmp_path: Path) -> None:
    listing = {
        "images": [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "sub/b.png"}],
        "categories": [{"id": 2, "name": "cup"}],
        "annotations": [
            {"id": 17, "image_id": 5, "category_id": 2, "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6], [4, 4, 8, 4, 8, 8, 4, 8]]},
            {"id": 18, "image_id": 6, "category_id": None, "segmentation": {"size": [10, 20], "counts": [30, 10, 160]}},
        ],
    }
    lines = [{"image": "a.jpg", "annotation": 17, "text": "it"}, {"image": "sub/b.png", "annotation": 18}]
    lines += [{"image": "a.jpg", "annotation": 18}, {"image": "a.jpg", "annotation": 19}]
    publish(tmp_path, lines, listing)
    *skipped, one, two = read(tmp_path)
    assert (one.regions[0].area, one.regions[0].category) == (16 + 16 - 4, "cup")
    assert (two.regions[0].area, two.regions[0].category) == (10, "")
    assert {item.key: item.reason for item in skipped} == {
        "expressions.jsonl:3": "annotation 18 is of sub/b.png, not of a.jpg",
        "expressions.jsonl:4": "annotation 19 is not in annotations.json",
    }


WRONG = {
    "{": "not JSON: Expecting property name",
    "[]": "expected a record with 'image'",
    '{"mask": "m.png"}': "no 'image'",
    '{"image": "a.jpg"}': "needs either a mask .* or an annotation",
    '{"image": "a.jpg", "mask": "m.png", "annotation": 1}': "needs either a mask",
    '{"image": "a.jpg", "mask": "m.png", "txt": "x"}': "unknown key txt; known are",
    '{"image": "a.jpg", "mask": "m.png", "text": 3}': "text is neither a text nor a list of texts",
    '{"image": "a.jpg", "mask": "m.png", "text": ["a", " "]}': "or one is empty",
    '{"image": "a.jpg", "mask": "m.png", "split": 3}': "split is 3, expected str",
    '{"image": "a.jpg", "mask": "m.png", "split": "hard_val"}': "split hard_val: a split's name has no `_`, "
    "which parts it from the source's",
    '{"image": "../own/images/a.jpg", "mask": "m.png"}': "leaves paths.root",
    '{"image": "a.jpg", "mask": "/etc/passwd"}': "leaves paths.root",
    '{"image": "c.jpg", "mask": "m.png"}': "no such image: images/c.jpg",
    '{"image": "a.jpg", "mask": "n.png"}': "no such mask: masks/n.png",
    '{"image": "a.jpg", "mask": "broken.png"}': "masks/broken.png: not a readable image: cannot identify image file",
    '{"image": "a.jpg", "mask": "turned.png"}': "masks/turned.png is 10 x 20, its image 20 x 10",
    '{"image": "a.jpg", "mask": "empty.png"}': "mask without a pixel",
}


def validate_status(folder: Path) -> int | str | None:
    """The command's exit status, in this process."""
    with pytest.raises(SystemExit) as ended:
        as_command(main, ["validate", str(folder)])  # pyrefly: ignore[bad-argument-type]
    return ended.value.code


def test_every_wrong_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = publish(tmp_path, [*WRONG, {"image": "a.jpg", "mask": "m.png", "text": "a cup"}])
    assert validate_status(base) == 1
    out, wrong = capsys.readouterr()
    assert wrong == ""
    *lines, split, note, steps, last = out.splitlines()
    assert split == "train: 1 images, 1 objects, 1 expressions" and "nothing can be evaluated" in note
    assert steps.startswith("to learn from: 1 images")
    assert last == f"1 images, 1 objects, 1 expressions; {len(WRONG)} lines cannot be used"
    for number, (line, reason) in enumerate(zip(lines, WRONG.values(), strict=True), start=1):
        assert re.search(rf"expressions.jsonl:{number}: .*{reason}", line), line


def test_what_is_no_such_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        FileNotFoundError, match="expressions.jsonl and images/ must both be there; sources.kitchen .*your-data.md"
    ):
        (tmp_path / "own").mkdir()
        read(tmp_path)
    assert validate_status(tmp_path) == 1 and "expressions.jsonl" in capsys.readouterr().err


def test_the_worlds_folder_is_read_back(smallest_world: Path) -> None:
    records = read(smallest_world)
    assert len(records) == world_more.OWN_IMAGES and all(isinstance(record, ImageRecord) for record in records)
    for index, record in enumerate(records):
        scene, rng = scenes.make_scene(SMALLEST.seed, "own", index, SMALLEST.shift)
        drawn = scenes.render(scene, SMALLEST.shift, rng)[1]
        assert len(record.regions) == len(drawn)
        for region, mask, shape in zip(record.regions, drawn, scene.shapes, strict=True):
            found = masks.decode(region.counts, record.height, record.width).astype(bool)
            assert (found & mask).sum() / (found | mask).sum() > 0.97
            assert all(expression.sent in (shape.caption, f"the {shape.caption}") for expression in region.expressions)
            assert region.split == ("val" if index == world_more.OWN_IMAGES - 1 else "train")


def test_the_page_says_what_the_reader_takes(tmp_path: Path) -> None:
    """Its examples are lines that the reader understands, and it names every key."""
    page = (REPOSITORY / "docs/your-data.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith('{"image"')]
    assert len(lines) >= 3
    base = publish(tmp_path, lines)
    images, annotations = {}, []
    for number, line in enumerate(map(json.loads, lines)):
        images.setdefault(line["image"], len(images))
        (base / "images" / line["image"]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(base / "images" / line["image"])
        if "mask" in line:
            Image.fromarray(255 * np.roll(MASK, number, 1)).save(base / "masks" / line["mask"])
        else:
            polygon = [[3, 2, 9, 2, 9, 5, 3, 5]]
            annotations.append({"id": line["annotation"], "image_id": images[line["image"]], "segmentation": polygon})
    listed = [{"id": number, "file_name": name} for name, number in images.items()]
    (base / "annotations.json").write_text(json.dumps({"images": listed, "annotations": annotations}))
    found = read(tmp_path)
    assert all(isinstance(record, ImageRecord) for record in found), found
    assert sum(len(record.regions) for record in found) == len(lines)
    assert all(f"`{key}`" in page for key in own.KEYS)
    assert "python -m ans validate" in page


def test_a_picture_shows_masks_over_images(tmp_path: Path) -> None:
    base = publish(tmp_path, [{"image": "a.jpg", "mask": "m.png", "text": "\u676f"}, {"image": "sub/b.png", "mask": "m.png"}])
    main(["validate", str(base), "--sheet", str(tmp_path / "sheet.png")])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for left in (0, validate.TILE):  # of both tiles the object is tinted, and the black image around it is not
        tile = sheet[2:12, left + 2 : left + 22]
        assert ((tile[..., 0] > 100) == (MASK > 0)).all() and tile[..., 1:].max() < 10
    publish(tmp_path / "more", [{"image": "a.jpg", "mask": "m.png", "split": f"s{number}"} for number in range(100)])
    found = validate.validate(tmp_path / "more/own")
    assert found.objects == 100 and validate.contact_sheet(found, tmp_path / "more").height <= validate.ROWS * (
        validate.TILE + 16
    )


@pytest.mark.slow
def test_dvc_notices_every_edit(tmp_path: Path) -> None:
    """By the pipeline's own stage, alone in a scratch repository."""
    base = publish(tmp_path / "data", [{"image": "a.jpg", "mask": "m.png", "text": "it"}])
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    own_stage = {"foreach": "${own}", "do": stages["own"]["do"]}
    own_stage["do"]["deps"] = [dep for dep in own_stage["do"]["deps"] if dep.startswith("$")]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"own": own_stage}}))
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    values |= {"own": {"kitchen": {"folder": "own"}}, "paths": {"root": str(tmp_path / "data")}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def runs() -> bool:
        command = [sys.executable, "-m", "dvc", "repro"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return "Running stage 'own@kitchen'" in done.stdout

    assert runs() and not runs()
    Image.fromarray(255 * MASK[::-1].copy()).save(base / "masks/m.png")
    assert runs() and not runs()
    with (base / "expressions.jsonl").open("a") as file:
        file.write('{"image": "sub/b.png", "mask": "m.png", "text": "at"}\n')
    assert runs() and not runs()
    report = json.loads((tmp_path / "reports/data/kitchen.json").read_text())
    assert (report["images"], report["expressions"]) == (2, 2)
