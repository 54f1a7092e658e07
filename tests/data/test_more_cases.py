"""Further members of the kinds of tests/cases: what tools write, and what is right of it."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ans import cli
from ans.data import masks
from ans.data.clips import Clip, ClipFrames, palette_masks
from ans.data.images import TURNS, drawn, image_size, open_image
from ans.data.importing import Imported, bring
from ans.data.mask_files import read_mask
from ans.data.records import ImageRecord, Noted, Skipped, left_out
from ans.data.sources import describe_anything, own, reason_seg, refcoco
from ans.data.sources.common import entry_of, read, whole
from ans.data.sources.sav_video import read_masklets
from ans.data.video_sources import own_videos
from ans.data.videos import VideoWriter

WIDTH, HEIGHT = 20, 10
OUTLINE = [4, 2, 8, 2, 8, 6, 4, 6]
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[2:6, 4:8] = 1


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


# ------------------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("orientation", [0, *range(1, 10)])
@pytest.mark.parametrize("suffix", ("jpg", "png", "webp", "tif"))
def test_every_format_is_turned_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8], pixels[:8, 24:], pixels[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(pixels)
    image.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    found = open_image(tmp_path, f"a.{suffix}")
    wanted = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    assert image_size(tmp_path, f"a.{suffix}") == found.size == wanted.size
    assert np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).mean() < (20 if suffix == "jpg" else 0.01)
    mask = Image.fromarray(255 * MASK)
    mask.save(tmp_path / "m.tif", exif=exif)
    turned = mask.transpose(TURNS[orientation]) if orientation in TURNS else mask
    assert (read_mask(tmp_path / "m.tif", "m.tif")[0] == (np.asarray(turned) > 0)).all()


def tiff(bits: int, photometric: int) -> bytes:
    """A TIFF of 8 x 4 pixels, uncompressed; Pillow writes none of these."""
    size = 4 * 8 * bits // 8
    tags = [(256, 8), (257, 4), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, 4), (279, size)]
    start = 8 + 2 + 12 * len(tags) + 4
    tags[5] = (273, start)
    entries = b"".join(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in tags)
    return b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + bytes(4) + bytes(range(size))


def pages(path: Path) -> None:
    Image.new("RGB", (8, 4), "red").save(path, save_all=True, append_images=[Image.new("RGB", (8, 4), "blue")])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    (
        (
            "float.tif",
            lambda path: Image.fromarray(np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8)).save(path),
            "fractions",
        ),
        ("32.tif", lambda path: Image.fromarray(np.arange(32, dtype=np.int32).reshape(4, 8)).save(path), "32 bits"),
        ("12.tif", lambda path: path.write_bytes(tiff(12, 1)), "other than 8 or 16 bits"),
        ("negative.tif", lambda path: path.write_bytes(tiff(16, 0)), "whose white is 0"),
        *((f"two.{suffix}", pages, "holds 2 pictures") for suffix in ("gif", "webp", "png", "tif")),
    ),
)
def test_what_would_be_another_picture_is_refused(tmp_path: Path, name: str, write: Callable[[Path], None], reason: str) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: not a readable image: .*{reason}"):
        open_image(tmp_path, name)


@pytest.mark.parametrize(
    ("form", "options"),
    (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("PPM", {}),
     ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("TIFF", {"compression": "tiff_deflate"})),
)  # fmt: skip
def test_an_image_cut_short_is_refused_in_every_format(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(buffer, form, **options)
    whole = buffer.getvalue()
    for end in (*range(0, len(whole), len(whole) // 9), len(whole) - 2):
        (tmp_path / "a").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="/a: not a readable image: "):
            open_image(tmp_path, "a")


def test_a_smaller_copy_in_a_photograph_is_no_other_picture(tmp_path: Path) -> None:
    copy = Image.new("RGB", (4, 2), "blue")
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.tif", save_all=True, append_images=[copy])
    assert open_image(tmp_path, "a.tif").getpixel((0, 0)) == (255, 0, 0)
    (tmp_path / "16.tif").write_bytes(tiff(16, 1))
    assert open_image(tmp_path, "16.tif").getpixel((0, 0)) == (1, 1, 1), "of 256"


def test_a_jpeg_of_more_pixels_than_its_bytes_say_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 3000), "white").save(tmp_path / "a.jpg", quality=1, optimize=True, progressive=True)
    assert open_image(tmp_path, "a.jpg").size == (4000, 3000), "the fewest bytes that a JPEG takes"
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    place = data.index(b"\xff\xc2") + 5  # height, width
    data[place : place + 4] = b"\x24\x00\x24\x00"
    (tmp_path / "a.jpg").write_bytes(data)
    for read_it in (open_image, image_size):
        with pytest.raises(ValueError, match=r"a.jpg: .* fewer than a JPEG of 9216 x 9216 pixels has"):
            read_it(tmp_path, "a.jpg")


# ------------------------------------------------------------------------------------------------------------------- masks


def encoded(pixels: np.ndarray, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def test_numbers_that_a_lossy_file_has_are_none(tmp_path: Path) -> None:
    """Whatever its suffix says."""
    Image.fromarray(40 * MASK).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(ValueError, match="mask is a JPEG"):
        palette_masks([tmp_path / "a.png"], HEIGHT, WIDTH)
    shape = {
        "label": "cup",
        "shape_type": "mask",
        "points": [[0, 0], [WIDTH - 1, HEIGHT - 1]],
        "mask": encoded(40 * MASK, "JPEG"),
    }
    with pytest.raises(ValueError, match="mask is a JPEG"):
        reason_seg.draw_shape(shape, HEIGHT, WIDTH)
    blue = np.dstack([0 * MASK, 0 * MASK, MASK])
    assert reason_seg.draw_shape(shape | {"mask": encoded(blue)}, HEIGHT, WIDTH).sum() == 16, "as grey it would be black"
    pages(tmp_path / "two.png")
    with pytest.raises(ValueError, match="two.png holds several pictures"):
        read_mask(tmp_path / "two.png", "two.png")


@pytest.mark.parametrize("mode", ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"))
def test_published_masks_of_every_mode(mode: str) -> None:
    if mode in ("1", "I;16"):
        image = Image.fromarray(MASK > 0 if mode == "1" else 300 * MASK.astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(MASK, "P")
        image.putpalette([0, 0, 0, 0, 0, 1])
    else:
        image = Image.fromarray(255 * MASK).convert(mode)
    assert (drawn(image) == (MASK > 0)).all()


@pytest.mark.parametrize(
    ("mode", "pixels", "said"),
    (
        ("RGBA", np.dstack([255 * MASK] * 3 + [0 * MASK + 254]), None),
        ("RGBA", np.dstack([255 * MASK] * 3 + [0 * MASK + 128]), None),
        ("LA", np.dstack([255 * MASK, 0 * MASK + 254]), None),
        ("RGBA", np.dstack([255 * MASK] * 3 + [155 * MASK + 100]), "none of them transparent"),
        ("L", 254 * MASK + 1, "no pixel that is 0"),
        ("RGB", np.dstack([190 * MASK + 10] * 3), "no pixel that is 0"),
        ("P", MASK + 1, "no pixel that is 0"),
    ),
)
def test_masks_whose_outside_nothing_says(tmp_path: Path, mode: str, pixels: np.ndarray, said: str | None) -> None:
    """An alpha of one value says nothing, so the colours are the mask; nor do two values, of which neither is 0."""
    image = Image.fromarray(pixels, mode)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "m.png")
    if said is None:
        assert (read_mask(tmp_path / "m.png", "m.png")[0] == (MASK > 0)).all()
        assert (drawn(Image.open(tmp_path / "m.png")) == (MASK > 0)).all()
    else:
        with pytest.raises(ValueError, match=f"m.png: .*{said}"):
            read_mask(tmp_path / "m.png", "m.png")


# ----------------------------------------------------------------------------------------------------------------- imports


def imported(place: Path, masks_in: Path | None = None) -> tuple[Imported, list[dict[str, Any]]]:
    found = bring(place, place.with_name("out"), None, masks_in, 0, "", True)
    return found, [json.loads(line) for line in (place.with_name("out") / "expressions.jsonl").read_text().splitlines()]


def coco(tmp_path: Path, annotation: dict[str, Any], image: dict[str, Any], category: dict[str, Any]) -> Path:
    picture(tmp_path / "images/a.png")
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": [OUTLINE],
        "area": 16,
        "bbox": [4, 2, 4, 4],
    } | annotation
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT} | image
    listing = {"images": [image], "annotations": [annotation], "categories": [category]}
    (tmp_path / "in.json").write_text(json.dumps(listing))
    return tmp_path / "in.json"


CUP: dict[str, Any] = {"id": 1, "name": "cup"}


@pytest.mark.parametrize(
    ("annotation", "image", "category", "text", "note"),
    (
        ({"category_id": 0}, {}, {"id": 0, "name": "cup"}, "cup", None),
        ({}, {"width": 20.0, "height": 10.0}, CUP, "cup", None),
        ({}, {"width": None, "height": None}, CUP, "cup", None),
        ({"image_id": 1.0}, {"file_name": "https://host/set/a.PNG"}, CUP, "cup", None),
        ({}, {"file_name": "C:\\sets\\a.png"}, CUP, "cup", None),
        ({"category_id": 7}, {}, CUP, None, "category_id that is not in categories"),
        ({"category_id": "1"}, {}, CUP, None, "category_id that is not in categories"),
        ({"category_id": [1]}, {}, CUP, None, "category_id that is not in categories"),
        ({"category_id": True}, {}, CUP, None, "category_id that is not in categories"),
        ({"category_id": None}, {}, CUP, None, "objects without a class, and so without a text: 1"),
        ({}, {}, {"id": 1, "supercategory": "things"}, None, "objects without a class"),
        ({"iscrowd": 1}, {}, CUP, "cup", "several objects in one mask"),
        ({"area": "no"}, {}, CUP, "cup", "an area that is not a number of pixels"),
        ({"bbox": [8, 6, -4, -4]}, {}, CUP, "cup", "a bbox that is not x, y, width and height"),
    ),
)
def test_listings_as_tools_write_them(
    tmp_path: Path,
    annotation: dict[str, Any],
    image: dict[str, Any],
    category: dict[str, Any],
    text: str | None,
    note: str | None,
) -> None:
    found, (line,) = imported(coco(tmp_path, annotation, image, category))
    assert line.get("text") == text
    assert all(isinstance(item, Noted) for item in found.said)
    assert any(note in item.reason for item in found.said) if note else not found.said


@pytest.mark.parametrize(
    ("annotation", "image", "reason"),
    (
        ({"image_id": True}, {}, "image_id that is not in images"),
        ({"image_id": "1"}, {}, "image_id that is not in images"),
        ({}, {"width": "20"}, "width is '20', expected int"),
        ({}, {"width": 20.5}, "width is 20.5, expected int"),
        ({}, {"width": HEIGHT, "height": WIDTH}, "sides swapped"),
        ({"area": "400"}, {}, "states an area of 400"),
        ({"bbox": ["4", "2", "40", "4"]}, {}, "states the bbox"),
    ),
)
def test_listings_that_are_not_the_image_s(
    tmp_path: Path, annotation: dict[str, Any], image: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"annotation 1: .*{reason}"):
        imported(coco(tmp_path, annotation, image, CUP))


def test_two_names_are_not_taken_for_one_file(tmp_path: Path) -> None:
    source = coco(tmp_path, {}, {}, CUP)
    listing = json.loads(source.read_text())
    listing["images"] = [{"id": number, "file_name": f"{split}/a.png"} for number, split in enumerate(("train", "val", "test"))]
    listing["annotations"] = [listing["annotations"][0] | {"id": number, "image_id": number} for number in (0, 1)]
    source.write_text(json.dumps(listing))
    found, lines = imported(source)
    assert [line["image"] for line in lines] == ["a.png"]
    assert {item.key: item.reason for item in found.said} == {
        "annotation 1": "val/a.png and train/a.png are both taken for a.png; name the folder of both with --images",
        "image 2": "image without an object, left out",
    }


def labelme(place: Path, name: str, **changes: Any) -> None:
    shape = {"label": "cup", "points": [[4, 2], [8, 2], [8, 6], [4, 6]], "shape_type": "polygon"} | changes
    place.mkdir(exist_ok=True)
    listing = {"shapes": [shape], "imagePath": "a.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
    (place / name).write_text(json.dumps(listing))


def test_listings_of_labelme_that_name_one_image(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "in/b.gif", 1)
    for name in ("a.JSON", "a copy.json"):
        labelme(tmp_path / "in", name)
    found, lines = imported(tmp_path / "in")
    assert len(lines) == 1 and [(item.key, item.reason) for item in found.said] == [
        ("a.JSON", "a.png is the image of a copy.json, too"),
        ("b.gif", "one of 1 images that no JSON names, left out"),
    ]


def test_an_image_whose_json_is_refused_is_named_by_one(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        picture(tmp_path / "in" / name, number)
    labelme(tmp_path / "in", "a.json")
    listing = json.loads((tmp_path / "in/a.json").read_text()) | {"imagePath": "b.png", "imageWidth": 99}
    (tmp_path / "in/b.json").write_text(json.dumps(listing))
    found, _ = imported(tmp_path / "in")
    assert [(item.key, item.reason) for item in found.said][-1] == ("c.png", "one of 1 images that no JSON names, left out")


def test_a_polygon_of_two_points_is_a_line(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    labelme(tmp_path / "in", "a.json", points=[[1, 1], [4, 4]])
    with pytest.raises(ValueError, match="shape 0: polygon of fewer than three points"):
        imported(tmp_path / "in")


def voc(place: Path, numbers: np.ndarray, classes: int, form: str = "PNG") -> None:
    picture(place / "JPEGImages/a.png")
    for name in ("SegmentationObject", "Annotations"):
        (place / name).mkdir()
    Image.fromarray(numbers).save(place / ("SegmentationObject/a.jpg" if form == "JPEG" else "SegmentationObject/a.PNG"), form)
    text = "".join(f"<object><name>c{number}</name></object>" for number in range(classes))
    (place / "Annotations/a.xml").write_text(f"<annotation>{text}</annotation>")


@pytest.mark.parametrize(
    ("numbers", "classes", "form", "more", "said"),
    (
        (3 * MASK, 3, "PNG", "", "objects of Annotations/a.xml without a pixel: 1, 2"),
        (2 * MASK, 1, "PNG", "", "object 2: Annotations/a.xml has only 1 objects"),
        (40 * MASK, 1, "JPEG", "", "a.jpg is a JPEG"),
        (MASK, 1, "PNG", "a.jpg", "may be of a.jpg or of a.png; remove one"),
        (MASK, 1, "PNG", "", None),
        (MASK > 0, 1, "PNG", "", None),
    ),
)
def test_numbers_of_voc(tmp_path: Path, numbers: np.ndarray, classes: int, form: str, more: str, said: str | None) -> None:
    voc(tmp_path / "in", numbers, classes, form)
    if more:
        picture(tmp_path / "in/JPEGImages" / more)
    try:
        found, lines = imported(tmp_path / "in")
        assert [line["category"] for line in lines] == [f"c{classes - 1}"]
        reasons = [item.reason for item in found.said]
    except ValueError as error:
        reasons = [str(error)]
    assert (said is None and not reasons) or any(str(said) in reason for reason in reasons)


def test_masks_are_of_one_image(tmp_path: Path) -> None:
    for number, name in enumerate(("caf\u00e9.png", "b.png", "c.png", "c.jpg")):
        picture(tmp_path / "in" / name, number)
    (tmp_path / "masks").mkdir()
    for name in ("cafe\u0301_cup.png", "c.png"):
        Image.fromarray(255 * MASK).save(tmp_path / "masks" / name)
    found, lines = imported(tmp_path / "in", tmp_path / "masks")
    assert [(line["image"], line["text"]) for line in lines] == [("caf\u00e9.png", "cup")]
    assert {item.key: item.reason for item in found.said} == {
        "c.png": "may be of c.jpg or of c.png; remove one",
        "b.png": "image without a mask, left out",
    }


# ----------------------------------------------------------------------------------------------------------- ids and names


@pytest.mark.parametrize(
    ("number", "found"), ((1, "a"), (1.0, "a"), (True, None), ("1", None), ([1], None), (1.5, None), (None, None))
)
def test_an_entry_has_a_number(number: Any, found: str | None) -> None:
    assert entry_of({1: "a"}, number) == found
    assert entry_of({1: "a"}, float("inf")) is None and entry_of({1: "a"}, float("nan")) is None


def test_whole_numbers() -> None:
    assert whole({"width": 4.0}, "width") == 4
    for value in (4.5, True, "4", float("inf"), 1e300, None):
        with pytest.raises(ValueError, match="width is"):
            whole({"width": value}, "width")


def test_a_text_of_one_object_is_said_once(tmp_path: Path) -> None:
    picture(tmp_path / "own/images/a.png")
    (tmp_path / "own/masks").mkdir()
    Image.fromarray(255 * MASK).save(tmp_path / "own/masks/m.png")
    lines = [{"image": "a.png", "mask": "m.png", "text": text} for text in (["the cup"] * 2, ["the cup", "cup"], "cup")]
    (tmp_path / "own/expressions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    *said, record = read(own, tmp_path, "own", "kitchen")
    assert isinstance(record, ImageRecord)
    assert [expression.sent for expression in record.regions[0].expressions] == ["the cup", "cup"]
    assert [(item.key, item.reason) for item in said if isinstance(item, Noted)] == [
        (f"expressions.jsonl:{line}", "text that line 1 has of the same mask, taken once") for line in (1, 2, 3)
    ]


@pytest.mark.parametrize("names", (("a.jpg", "a.json", "a.JSON"), ("a.jpg", "a.jpeg", "a.json"), ("a.JPG", "a.jpg", "a.json")))
def test_one_listing_is_of_one_image(tmp_path: Path, names: tuple[str, ...]) -> None:
    place = tmp_path / "reason/train"
    for name in names:
        if "js" in name.lower():
            place.mkdir(parents=True, exist_ok=True)
            shapes = [{"label": "target", "points": [[4, 2], [8, 2], [8, 6]]}]
            (place / name).write_text(json.dumps({"text": ["it"], "is_sentence": False, "shapes": shapes}))
        else:
            picture(place / name)
    found = list(read(reason_seg, tmp_path, "reason", "reasonseg"))
    assert found and all(isinstance(item, Skipped) and "two images or two JSONs" in item.reason for item in found)


@pytest.mark.parametrize(("second", "reason"), ((0, None), (1, "two different images")))
def test_a_name_in_two_shards_is_one_image_or_none(tmp_path: Path, second: int, reason: str | None) -> None:
    import tarfile

    place = tmp_path / "describe/LVIS"
    for shard, seed in (("1.tar", 0), ("2.tar", second)):
        picture(tmp_path / "a.jpg", seed)
        (place / "images").mkdir(parents=True, exist_ok=True)
        with tarfile.open(place / "images" / shard, "w") as tar:
            tar.add(tmp_path / "a.jpg", "a.jpg")
    rle = {"size": [HEIGHT, WIDTH], "counts": masks.from_array(MASK)}
    (place / "annotations.json").write_text(json.dumps({"a": {"image": "a.jpg", "mask_rle": rle, "caption": "a cup"}}))
    (found,) = read(describe_anything, tmp_path, "describe", "describe")
    assert isinstance(found, ImageRecord) if reason is None else isinstance(found, Skipped) and reason in found.reason


def test_a_key_that_is_there_twice_is_refused_by_every_reader(tmp_path: Path) -> None:
    twice = '[{"ref_id": 1, "ref_id": 2}]'
    for name, call in {"grefs(unc).json": refcoco.load_refs, "a_manual.json": read_masklets}.items():
        (tmp_path / name).write_text(twice)
        with pytest.raises(ValueError, match="key 'ref_id' occurs twice"):
            call(tmp_path / name)
    picture(tmp_path / "rs/train/a.jpg")
    (tmp_path / "rs/train/a.json").write_text(twice)
    (found,) = read(reason_seg, tmp_path, "rs", "reasonseg")
    assert isinstance(found, Skipped) and "key 'ref_id' occurs twice" in found.reason


def test_an_object_of_a_video_has_one_number(tmp_path: Path) -> None:
    counts = masks.from_array(MASK)
    rles = [{"size": [HEIGHT, WIDTH], "counts": counts}] * 2
    listing = {"video_height": HEIGHT, "video_width": WIDTH, "masklet_id": [3, 3], "masklet": [rles]}
    listing |= {"masklet_size_abs": [16, 16], "masklet_visibility_changes": [0, 0]}
    (tmp_path / "a_manual.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match="duplicate masklet_id"):
        read_masklets(tmp_path / "a_manual.json")


def clip_of_two_frames(base: Path) -> None:
    for number in range(2):
        picture(base / f"clips/a/0000{number}.png", number)
    (base / "masks/a/cup").mkdir(parents=True)
    Image.fromarray(255 * MASK).save(base / "masks/a/cup/00000.png")
    (base / "expressions.jsonl").write_text(json.dumps({"clip": "a", "object": "cup", "text": "the cup"}))


@pytest.mark.parametrize("wrong", ("mp4", "masks/cup/00001.jpg", "masks/cup/00000.PNG", None))
def test_masks_of_a_clip_are_all_seen(tmp_path: Path, wrong: str | None) -> None:
    base = tmp_path / "clips"
    clip_of_two_frames(base)
    if wrong == "mp4":
        with VideoWriter(base / "clips/a.mp4") as video:
            video.add(Image.new("RGB", (20, 10)), 0)  # pyrefly: ignore[bad-argument-type]
    elif wrong:
        Image.fromarray(255 * MASK).save(base / wrong.replace("masks/", "masks/a/"))
    (found,) = own_videos.read(tmp_path, "clips", "train")
    assert isinstance(found, Skipped) == (wrong is not None)
    if isinstance(found, Skipped):
        assert ("both a folder" if wrong == "mp4" else Path(str(wrong)).name.lower()) in found.reason.lower()


def test_what_looks_wrong_about_a_clip_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "clips"
    clip_of_two_frames(base)
    for number in range(2):
        Image.fromarray(255 * (1 - MASK)).save(base / f"masks/a/cup/0000{number}.png")
    note, clip = own_videos.read(tmp_path, "clips", "train")
    assert isinstance(note, Noted) and "masks/a/cup/00000.png: mask of more than half" in note.reason
    assert left_out([note, clip, Skipped("a", "b")]) == [Skipped("a", "b")]
    cli.main(["validate", str(base)])
    assert capsys.readouterr().out.count("is it inverted?") == 1
    (base / "clips/a/00001.png").unlink()
    picture(base / "clips/a/00001.jpg")
    data = (base / "clips/a/00001.jpg").read_bytes()
    (base / "clips/a/00001.jpg").write_bytes(data[:-40])
    with pytest.raises(SystemExit):
        cli.main(["validate", str(base)])
    assert "00001.jpg: not a readable image" in capsys.readouterr().out, "which its header does not tell"


def test_a_video_s_suffix_in_any_case(tmp_path: Path) -> None:
    base = tmp_path / "clips"
    clip_of_two_frames(base)
    (base / "clips/a").rename(base / "frames")
    with VideoWriter(base / "clips/a.MP4") as video:
        video.add(Image.new("RGB", (20, 10)), 0)  # pyrefly: ignore[bad-argument-type]
    (found,) = own_videos.read(tmp_path, "clips", "train")
    assert isinstance(found, Clip) and ClipFrames(tmp_path, found)[0].size == (20, 10)


@pytest.mark.parametrize("mode", ("RGBA", "LA", "P", "opaque"))
def test_colours_under_transparent_pixels_are_those_of_the_file(tmp_path: Path, mode: str) -> None:
    """By every way of opening, and said of own data."""
    picture(tmp_path / "own/images/a.png")
    image = Image.open(tmp_path / "own/images/a.png").convert("L" if mode in ("LA", "P") else "RGB")
    if mode == "P":
        image = image.convert("P")
        image.save(tmp_path / "own/images/a.png", transparency=bytes([0, 255] * 128))
    else:
        alpha = Image.fromarray(255 * (MASK if mode != "opaque" else MASK * 0 + 1))
        there = image.copy()
        there.putalpha(alpha)
        there.save(tmp_path / "own/images/a.png")
    assert (np.asarray(open_image(tmp_path, "own/images/a.png")) == np.asarray(image.convert("RGB"))).all()
    (tmp_path / "own/masks").mkdir()
    Image.fromarray(255 * MASK).save(tmp_path / "own/masks/m.png")
    (tmp_path / "own/expressions.jsonl").write_text(json.dumps({"image": "a.png", "mask": "m.png", "text": "it"}))
    *said, record = read(own, tmp_path, "own", "kitchen")
    assert isinstance(record, ImageRecord) and ["transparent pixels" in item.reason for item in said] == [True] * (
        mode != "opaque"
    )  # pyrefly: ignore[missing-attribute]


def test_the_command_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = coco(tmp_path, {"category_id": 7}, {}, CUP)
    cli.main(["import", str(source), str(tmp_path / "out"), "--category-as-text"])
    assert "note: annotation 1: category_id that is not in categories" in capsys.readouterr().out
