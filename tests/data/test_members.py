"""Members of the kinds of tests/cases as tools, cameras and file systems would write them: read as they mean it, or refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ans.data.importing import bring
from ans.data.records import ImageRecord, Noted, Skipped
from ans.data.sources import own
from ans.data.sources.common import read

WIDTH, HEIGHT = 20, 10
OUTLINE = [4, 2, 8, 2, 8, 6, 4, 6]
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[2:6, 4:8] = 255


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def brought(source: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of expressions.jsonl, and the reasons that were said."""
    found = bring(source, source.parent / "out", None, None, 0, "", True)
    lines = (source.parent / "out/expressions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], [item.reason for item in found.said]


def coco(place: Path, changes: dict[str, Any], encoding: str, name: str) -> Path:
    picture(place / "images" / name)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [OUTLINE], "area": 16, "bbox": [4, 2, 4, 4]}
    image = {"id": 1, "file_name": name, "width": WIDTH, "height": HEIGHT}
    category = {"id": 1, "name": "cup"}
    listing = {
        "images": [image | changes.get("image", {})],
        "annotations": [annotation | changes.get("annotation", {})],
        "categories": changes.get("categories", [category]),
    }
    (place / "in.json").write_bytes(json.dumps(listing, ensure_ascii=False).encode(encoding))
    return place / "in.json"


@pytest.mark.parametrize(
    ("changes", "encoding", "name"),
    (
        ({}, "utf-8-sig", "a.png"),
        ({}, "utf-16", "a.png"),
        (
            {"categories": [{"id": 0, "name": "all", "supercategory": "none"}, {"id": 1, "name": "cup"}]},
            "utf-8",
            "a.png",
        ),  # Roboflow
        ({"image": {"file_name": "images\\1/a.png"}}, "utf-8", "a.png"),  # Label Studio
        ({"image": {"file_name": "../../label-studio/data/media/upload/1/a.png"}}, "utf-8", "a.png"),
        ({"image": {"file_name": "upload/1/a%20b.png"}}, "utf-8", "a b.png"),
        ({"image": {"file_name": "100%.png"}}, "utf-8", "100%.png"),
        ({"image": {"file_name": "a.PNG"}}, "utf-8", "a.png"),
        ({"image": {"file_name": "cafe\u0301.png"}}, "utf-8", "caf\u00e9.png"),
        ({"annotation": {"iscrowd": False}}, "utf-8", "a.png"),  # supervision
        (
            {"annotation": {"segmentation": [OUTLINE + OUTLINE[:2]], "attributes": {"occluded": False}}},
            "utf-8",
            "a.png",
        ),  # Datumaro
        ({"annotation": {"area": None, "bbox": None}}, "utf-8", "a.png"),
        ({"categories": [{"id": 1, "name": "\tcup\n"}]}, "utf-8", "a.png"),
    ),
)
def test_what_other_tools_mean(tmp_path: Path, changes: dict[str, Any], encoding: str, name: str) -> None:
    ((line,), said) = brought(coco(tmp_path, changes, encoding, name))
    assert (line["image"], line["text"], said) == (name, "cup", [])
    (record,) = read(own, tmp_path, "out", "out")
    assert isinstance(record, ImageRecord) and record.regions[0].area == 16


@pytest.mark.parametrize(
    ("changes", "encoding", "reason"),
    (
        ({"categories": [{"id": 1, "name": "caf\u00e9"}]}, "cp1252", "in.json: not a COCO listing: 'utf-8' codec"),
        ({"annotation": {"id": "a1"}}, "utf-8", "in.json: .*id is 'a1', expected int"),
        ({"image": {"id": "1"}, "annotation": {"image_id": "1"}}, "utf-8", "in.json: .*id is '1', expected int"),
        ({"annotation": {"bbox": [4, 2, 8, 6]}}, "utf-8", "annotation 1: .*states the bbox"),  # two corners
        ({"annotation": {"bbox": [0.2, 0.2, 0.2, 0.4]}}, "utf-8", "annotation 1: .*states the bbox"),
        ({"annotation": {"segmentation": {"size": [10, 20], "counts": "42?"}}}, "utf-8", "annotation 1: RLE that does not fill"),
        ({"annotation": {"segmentation": [[value / 20 for value in OUTLINE]]}}, "utf-8", "annotation 1: .*shares of the image"),
        ({"image": {"width": HEIGHT, "height": WIDTH}}, "utf-8", "annotation 1: .*sides swapped"),
        ({"image": {"file_name": "A.png"}}, "utf-8", "annotation 1: no such image: A.png"),
    ),
)
def test_what_is_another_thing(tmp_path: Path, changes: dict[str, Any], encoding: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        brought(coco(tmp_path, changes, encoding, "a.png"))


@pytest.mark.parametrize(
    ("shape", "reason"),
    (
        ({"shape_type": "rectangle", "points": [[8, 6], [4, 2]]}, None),
        ({"points": [[-4, -2], [8, 2], [8, 6]]}, None),
        ({"shape_type": "points"}, "shape of type points, which has no inside"),
        ({"shape_type": "linestrip"}, "shape of type linestrip, which has no inside"),
        ({"shape_type": "rotation"}, "shape of the unknown type 'rotation'"),  # X-AnyLabeling
        ({"shape_type": "circle", "points": [[8, 5]]}, "circle of 1 points"),
        ({"label": 3}, "label is 3, expected str"),
        ({"points": [[float("nan"), 2], [8, 2], [8, 6]]}, "far outside the image"),
    ),
)
def test_shapes_of_labelme_s_kin(tmp_path: Path, shape: dict[str, Any], reason: str | None) -> None:
    picture(tmp_path / "in/a.png")
    shape = {"label": "cup", "shape_type": "polygon", "points": [[4, 2], [8, 2], [8, 6], [4, 6]]} | shape
    listing = {"shapes": [shape], "imagePath": "..\\x\\a.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
    (tmp_path / "in/a.json").write_text(json.dumps(listing))
    if reason is None:
        assert [line["text"] for line in brought(tmp_path / "in")[0]] == ["cup"]
    else:
        with pytest.raises(ValueError, match=f"a.json, shape 0: .*{reason}"):
            brought(tmp_path / "in")


def line(**changes: Any) -> bytes:
    return json.dumps({"image": "a.png", "mask": "m.png", "text": "it"} | changes, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    (
        (b"\xef\xbb\xbf" + line(), None),
        (line() + b"\r\n\r\n", None),
        (line(text="\u0643\u0648\u0628 \u2068a\u2069 \U0001f375"), None),
        (line(text="<image> </s> <|im_end|>"), None),
        (line() + b"\r" + line(), "not JSON: Extra data"),
        (line(text="caf\u00e9").decode().encode("cp1252"), "not JSON: 'utf-8' codec"),
        (b"[" + line() + b"]", "expected a record with 'image'"),
        (line(text="\u200b\u2060"), "empty text"),
        (line(text=None), "text is neither a text nor a list of texts"),
        (line(text=["it", 5]), "text is neither a text nor a list of texts"),
        (line(split="val "), "a split's name is of letters"),
        (line(split="TRAIN"), "the one that is learnt is called train"),
        (line(image=".\\a.png"), "no such image"),
        (line(image="/tmp/a.png"), "leaves paths.root"),
        (b"[" * 100_000, "brackets without end"),
        (line()[:-1] + b', "text": "at"}', "key 'text'"),
    ),
)
def test_lines_as_editors_leave_them(tmp_path: Path, data: bytes, reason: str | None) -> None:
    picture(tmp_path / "own/images/a.png")
    (tmp_path / "own/masks").mkdir()
    Image.fromarray(MASK).save(tmp_path / "own/masks/m.png")
    (tmp_path / "own/expressions.jsonl").write_bytes(data)
    found = list(read(own, tmp_path, "own", "own"))
    skipped = [item for item in found if isinstance(item, Skipped) and not isinstance(item, Noted)]
    if reason is None:
        assert not skipped and len(found) == 1
    else:
        assert [item.key for item in skipped] == ["expressions.jsonl:1"] and reason in skipped[0].reason
        assert not any(isinstance(item, ImageRecord) for item in found)


@pytest.mark.parametrize(
    ("name", "image", "options", "reason"),
    (
        ("m.bmp", Image.fromarray(MASK), {}, None),
        ("m.gif", Image.fromarray(MASK), {}, None),
        ("m.tif", Image.fromarray((MASK / 255).astype(np.float32)), {}, None),
        ("m.tif", Image.fromarray(MASK.astype(np.int32) * 300), {}, None),
        ("m.webp", Image.fromarray(MASK), {"lossless": True}, "is a WEBP, whose compression"),
        ("m.tif", Image.fromarray(MASK).convert("RGB"), {"compression": "jpeg"}, "is a TIFF, whose compression"),
        ("m.png", Image.fromarray(MASK).resize((2 * WIDTH, 2 * HEIGHT)), {}, "is 40 x 20, its image 20 x 10"),
        ("m.png", Image.fromarray(MASK).transpose(Image.Transpose.ROTATE_90), {}, "is 10 x 20, its image 20 x 10"),
        ("m.png", Image.fromarray(0 * MASK), {}, "mask without a pixel"),
    ),
)
def test_masks_as_editors_save_them(
    tmp_path: Path, name: str, image: Image.Image, options: dict[str, Any], reason: str | None
) -> None:
    picture(tmp_path / "own/images/a.png")
    (tmp_path / "own/masks").mkdir()
    image.save(tmp_path / "own/masks" / name, **options)
    (tmp_path / "own/expressions.jsonl").write_bytes(line(mask=name))
    (found,) = read(own, tmp_path, "own", "own")
    if reason is None:
        assert isinstance(found, ImageRecord) and found.regions[0].area == 16
    else:
        assert isinstance(found, Skipped) and reason in found.reason
