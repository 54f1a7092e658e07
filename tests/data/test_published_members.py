"""Members of the kinds of tests/cases in the published layouts: RefCOCO, SA-1B, Open Images, ReasonSeg, and videos."""

import json
import pickle
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ans.config.schema import SubsetSa1b
from ans.data import clips, masks
from ans.data.images import UNSEEN, read_frame
from ans.data.index import broken
from ans.data.matching import record_image, region_mask
from ans.data.records import ImageRecord, Noted, Skipped
from ans.data.sources import open_images, own, reason_seg, refcoco, sa1b, sav_video
from ans.data.sources.common import NO_CLASS, class_names, read
from ans.data.video_sources import own_videos, ref_youtube_vos
from ans.data.videos import open_video

WIDTH, HEIGHT = 40, 20
OUTLINE = [4, 2, 14, 2, 14, 8, 4, 8]


def red_object(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[2:8, 4:14] = 255, 0, 0
    return Image.fromarray(pixels)


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


# ----------------------------------------------------------------------------------------------------------------- RefCOCO

Change = Callable[[dict[str, Any], list[dict[str, Any]]], Any]
NAME = "COCO_train2014_000000000009.jpg"


def published(
    root: Path, change: Change = lambda listing, refs: None, size: tuple[int, int] = (WIDTH, HEIGHT), **saved: Any
) -> list[Any]:
    (root / "coco2014/train2014").mkdir(parents=True)
    (root / "refs").mkdir()
    red_object(size).save(root / "coco2014/train2014" / NAME, **({"format": "PNG"} | saved))
    listing = {
        "images": [{"id": 9, "file_name": NAME, "width": size[0], "height": size[1]}],
        "annotations": [{"id": 5, "image_id": 9, "category_id": 1, "segmentation": [OUTLINE], "area": 60, "bbox": [4, 2, 10, 6]}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    sentence = {"sent_id": 7, "sent": "red cup", "raw": "Red cup"}
    refs = [{"ref_id": 1, "ann_id": 5, "image_id": 9, "split": "testA", "sentences": [sentence]}]
    change(listing, refs)
    (root / "refs/instances.json").write_text(json.dumps(listing))
    (root / "refs/refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    return list(read(refcoco, root, "refs", "refcoco"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ("PNG", "WEBP", "JPEG"))
@pytest.mark.parametrize("size", ((WIDTH, HEIGHT), (20, 20)))
def test_a_mask_lies_on_its_object_or_the_image_is_refused(
    tmp_path: Path, orientation: int, form: str, size: tuple[int, int]
) -> None:
    """Nothing says of a mask in a published listing whether it was drawn on the picture before or after it is turned."""
    (record,) = published(tmp_path, size=size, format=form, exif=oriented(orientation), quality=95)
    if orientation == 1:
        inside = region_mask(record, record.regions[0]).astype(bool)
        assert np.abs(np.asarray(record_image(tmp_path, record))[inside].mean(0) - (255, 0, 0)).max() < 40
        return
    with pytest.raises(
        ValueError, match=f"{NAME} .*(masks would lie in the wrong place|orientation {orientation}, and {UNSEEN})"
    ):
        record_image(tmp_path, record)
    assert broken(tmp_path, record) in ("image of another size than the record", f"image with an EXIF orientation: {UNSEEN}")


@pytest.mark.parametrize("orientation", (3, 6))
def test_own_masks_are_of_the_picture_as_it_is_shown(tmp_path: Path, orientation: int) -> None:
    (tmp_path / "own/images").mkdir(parents=True)
    (tmp_path / "own/masks").mkdir()
    red_object((20, 20)).save(tmp_path / "own/images/a.png", exif=oriented(orientation))
    shown = np.asarray(
        red_object((20, 20)).transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation])
    )
    Image.fromarray(shown[..., 0]).save(tmp_path / "own/masks/m.png")
    (tmp_path / "own/expressions.jsonl").write_text(json.dumps({"image": "a.png", "mask": "m.png", "text": "it"}))
    (record,) = read(own, tmp_path, "own", "own")
    assert isinstance(record, ImageRecord)
    inside = region_mask(record, record.regions[0]).astype(bool)
    assert (np.asarray(record_image(tmp_path, record))[inside] == (255, 0, 0)).all() and inside.sum() == 60


def off_by_one(listing: dict[str, Any], refs: list[Any]) -> None:
    listing["images"][0]["height"] -= 1


def test_a_height_that_is_off_by_one_is_named(tmp_path: Path) -> None:
    (record,) = published(tmp_path, off_by_one)
    with pytest.raises(ValueError, match=f"{NAME} is 40 x 20 pixels, but its record says 40 x 19"):
        record_image(tmp_path, record)


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        (lambda listing, refs: listing["annotations"].append(listing["annotations"][0] | {"id": "5"}), "id is '5', expected int"),
        (lambda listing, refs: listing["annotations"].append(listing["annotations"][0] | {"id": 5.0}), "id is 5.0, expected int"),
        (lambda listing, refs: refs.append(dict(refs[0])), r"ref_id 1 occurs twice: refs\[0\] and refs\[1\]"),
        (
            lambda listing, refs: refs[0]["sentences"].append(refs[0]["sentences"][0] | {"sent": "cup"}),
            "sent_id 7 occurs twice: 'red cup' and 'cup'",
        ),
        (lambda listing, refs: refs[0].update(split="val "), "a split's name is of letters"),
        (lambda listing, refs: refs[0].update(split="../x"), "a split's name is of letters"),
        (lambda listing, refs: refs[0].update(split="Train"), "the one that is learnt is called train"),
        (lambda listing, refs: refs[0].update(split=None), "split is None, expected str"),
        (lambda listing, refs: listing["categories"][0].update(name="c\0p"), "control character"),
    ),
)
def test_a_listing_that_says_two_things_is_refused(tmp_path: Path, change: Change, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"(instances.json|refs\(unc\).p): .*{reason}"):
        published(tmp_path, change)


@pytest.mark.parametrize(
    ("number", "category"), ((1, "cup"), (1.0, "cup"), (2, ""), ("1", ""), (True, ""), ([1], ""), (None, ""))
)
def test_a_class_is_not_lost_without_a_word(tmp_path: Path, number: Any, category: str) -> None:
    *said, record = published(tmp_path, lambda listing, refs: listing["annotations"][0].update(category_id=number))
    assert record.regions[0].category == category
    assert [item.reason for item in said] == ([] if category or number is None else [NO_CLASS])
    assert class_names([{"id": 1}, {"id": 2, "name": " a\n"}]) == {1: "", 2: "a"}


def test_a_sentence_that_is_listed_twice_is_asked_once(tmp_path: Path) -> None:
    noted, record = published(tmp_path, lambda listing, refs: refs.append(refs[0] | {"ref_id": 2}))
    assert isinstance(noted, Noted) and noted.key == "ref 2" and "taken once" in noted.reason
    assert [one.sent_id for one in record.regions[0].expressions] == [7]


# ------------------------------------------------------------------------------------------------------------------- SA-1B


@pytest.mark.parametrize(
    ("image", "annotation", "reason"),
    (
        ({}, {}, None),
        ({}, {"area": 118}, None),
        ({"file_name": "sa_2.jpg"}, {}, "JSON of another image"),
        ({}, {"area": 600}, "mask that is not as large as the file states"),
        ({}, {"area": 6}, "mask that is not as large as the file states"),
        ({"height": 19}, {}, "RLE of another size than the image"),
        ({"image_id": "1"}, {}, "image_id is '1', expected int"),
    ),
)
def test_a_json_of_sa1b_is_of_its_image(
    tmp_path: Path, image: dict[str, Any], annotation: dict[str, Any], reason: str | None
) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[2:8, 4:14] = 1
    rle = {"size": [HEIGHT, WIDTH], "counts": masks.from_array(pixels)}
    listing = {
        "image": {"image_id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "sa_1.jpg"} | image,
        "annotations": [{"id": 1, "area": 60, "bbox": [4, 2, 10, 6], "segmentation": rle} | annotation],
    }
    (tmp_path / "sa_1.json").write_text(json.dumps(listing))
    limits = SubsetSa1b.model_validate({"min_area_share": 0, "max_area_share": 1})
    found = sa1b.read_masks(tmp_path, sa1b.ImageFiles("sa_1", "sa_1.jpg", "sa_1.json"), limits)
    assert isinstance(found, Skipped) == (reason is not None)
    if isinstance(found, Skipped):
        assert reason and reason in found.reason


@pytest.mark.parametrize("several", (1, 7))
def test_areas_of_run_lengths(several: int) -> None:
    rng = np.random.default_rng(several)
    shown = [rng.random((HEIGHT, WIDTH)) < share for share in np.linspace(0, 1, several)]
    assert masks.check_counts([masks.from_array(one) for one in shown], HEIGHT, WIDTH) == [one.sum() for one in shown]


# ------------------------------------------------------------------------------------------------------------- Open Images

IMAGE = "0123456789abcdef"
COLUMNS = "MaskPath,ImageID,LabelName,BoxID\n"


def classes_of(root: Path, classes: str, label: str = "/m/04yx4", rows: str = "{}", **mask: Any) -> list[Any]:
    base = root / "oi"
    for kind in ("images", "masks"):
        (base / kind / "train").mkdir(parents=True)
    red_object().save(base / f"images/train/{IMAGE}.jpg", **mask)
    Image.fromarray(np.asarray(red_object())[..., 0]).resize((80, 40), Image.Resampling.NEAREST).save(base / "masks/train/m.png")
    row = f"m.png,{IMAGE},{label},1b\n"
    (base / open_images.ANNOTATIONS).write_text(COLUMNS + rows.format(row), encoding="utf-8")
    (base / open_images.CLASSES).write_text(classes, encoding="utf-8")
    return list(read(open_images, root, "oi", "openimages"))


@pytest.mark.parametrize(
    "classes",
    (
        "LabelName,DisplayName\n/m/04yx4,Man\n",
        '\ufeff"/m/04yx4","Man"\r\n',
        "\n\nLabelName,DisplayName\n\n/m/04yx4, Man \n",
        " /m/04yx4,Man\n",
        "LabelName,DisplayName,\n/m/04yx4 ,Man,\n",
        "LabelName,DisplayName\r/m/04yx4,Man\r",
    ),
)
def test_class_files_as_tools_write_them(tmp_path: Path, classes: str) -> None:
    (record,) = classes_of(tmp_path, classes, rows="\n{}\n")
    assert record.regions[0].category == "Man" and record.regions[0].area == 60


@pytest.mark.parametrize(
    "classes",
    ("Man,/m/04yx4\n", "'/m/04yx4','Man'\n", "/M/04YX4,Man\n", "LabelName;DisplayName\n/m/04yx4;Man\n", "a\t/m/04yx4\n"),
)
def test_a_first_line_that_is_no_header_is_not_taken_for_one(tmp_path: Path, classes: str) -> None:
    with pytest.raises(ValueError, match="class-descriptions.csv, row 1: "):
        classes_of(tmp_path, classes)


@pytest.mark.parametrize(("classes", "label"), (("/m/1,Man\n", "/m/04yx4"), ("/m/04yx4,Man\n", "/m/04YX4"), ("", "/m/04yx4")))
def test_a_class_that_the_file_lacks_is_said(tmp_path: Path, classes: str, label: str) -> None:
    noted, record = classes_of(tmp_path, classes, label)
    assert (noted.key, noted.reason) == ("m.png", open_images.NO_CLASS) and record.regions[0].category == ""


@pytest.mark.parametrize("orientation", (2, 6))
def test_a_photograph_of_open_images_that_is_turned(tmp_path: Path, orientation: int) -> None:
    (found,) = classes_of(tmp_path, "/m/04yx4,Man\n", exif=oriented(orientation))
    if orientation == 6:
        assert found.reason == "mask of another aspect than the image"
    else:
        assert broken(tmp_path, found) == f"image with an EXIF orientation: {UNSEEN}"


# --------------------------------------------------------------------------------------------------------------- ReasonSeg


@pytest.mark.parametrize("name", ("a.PNG", "a.bmp", "a.GIF", "a.webp", "a.tif", "a.jfif", "caf\u00e9.Jpeg"))
def test_an_image_beside_a_json_is_read_whatever_its_suffix(tmp_path: Path, name: str) -> None:
    place = tmp_path / "reason/val"
    place.mkdir(parents=True)
    red_object().save(place / name)
    shape = {"label": "target", "shape_type": "rectangle", "points": [[4, 2], [13, 7]]}
    listing = json.dumps({"text": ["it"], "is_sentence": False, "shapes": [shape]})
    (place / f"{Path(name).stem.replace(chr(233), 'e' + chr(769))}.json").write_text(listing)
    (place / "alone.json").write_text(listing)
    alone, record = read(reason_seg, tmp_path, "reason", "reasonseg")
    assert isinstance(alone, Skipped) and (alone.key, alone.reason) == ("reason/val/alone.json", "JSON without image")
    assert isinstance(record, ImageRecord) and record.regions[0].area == 60


def test_what_is_drawn_from_a_published_image_is_none(tmp_path: Path) -> None:
    """An overlay beside the JPEG; two images of one name without a JPEG are left out."""
    place = tmp_path / "reason/val"
    place.mkdir(parents=True)
    for name in ("a.jpg", "a.png", "b.png", "b.bmp"):
        red_object().save(place / name)
    shape = {"label": "target", "shape_type": "rectangle", "points": [[4, 2], [13, 7]]}
    for name in "ab":
        (place / f"{name}.json").write_text(json.dumps({"text": ["it"], "is_sentence": False, "shapes": [shape]}))
    before = reason_seg.fingerprint(tmp_path, "reason", "reasonseg")
    record, *twice = read(reason_seg, tmp_path, "reason", "reasonseg")
    assert isinstance(record, ImageRecord) and record.path.endswith("a.jpg")
    assert [item.reason for item in twice if isinstance(item, Skipped)] == ["two images or two JSONs of this name"] * 2
    (place / "c.json").write_text("{}")
    assert reason_seg.fingerprint(tmp_path, "reason", "reasonseg") != before, "the index is built again"


@pytest.mark.parametrize("kind", ("polygon", "rectangle", "circle"))
def test_shares_of_the_image_are_no_pixels(kind: str) -> None:
    shape = {"label": "target", "shape_type": kind, "points": [[0.2, 0.2], [0.4, 0.6]]}
    with pytest.raises(ValueError, match="shares of the image"):
        reason_seg.draw_shape(shape, HEIGHT, WIDTH)


# ------------------------------------------------------------------------------------------------------------------ videos

FRAMES = 24


def bright(image: Image.Image) -> int:
    """Frame n is 8 n + 4 grey below its bar, as in tests/cases."""
    return round((np.asarray(image)[-4:].astype(float).mean() - 4) / 8)


def film(path: Path, codec: str = "libx264", change: Callable[[list[Any]], list[Any]] = list, **options: str) -> Path:
    """Write a film, whose packets `change` may change."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", options
        stream.bit_rate = 4_000_000
        packets = []
        for number in range(FRAMES):
            pixels = np.full((48, 64, 3), 8 * number + 4, np.uint8)
            pixels[:8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            packets += stream.encode(frame)
        for packet in change(packets + stream.encode()):
            file.mux(packet)
    return path


def at_one_time(packets: list[Any]) -> list[Any]:
    for number, packet in enumerate(packets):
        packet.pts = packet.dts = number // 3 * 3
    return packets


@pytest.mark.parametrize(
    ("name", "codec", "change", "options"),
    (
        ("a.mp4", "libx264", list, {"x264-params": "open-gop=1:keyint=8:bframes=3:b-adapt=0:scenecut=0"}),
        ("a.mkv", "libx264", list, {"bf": "3", "g": "7"}),
        ("a.webm", "libvpx-vp9", list, {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("a.avi", "mpeg4", list, {"g": "6", "bf": "2"}),
        ("same_time.mkv", "libx264", at_one_time, {"g": "1"}),
        ("same_time.mkv", "libx264", at_one_time, {"g": "5", "bf": "0"}),
    ),
)  # fmt: skip
def test_frames_go_by_number_however_they_are_coded(
    tmp_path: Path, name: str, codec: str, change: Callable[[list[Any]], list[Any]], options: dict[str, str]
) -> None:
    video = open_video(film(tmp_path / name, codec, change, **options))
    assert len(video) == FRAMES
    for numbers in (range(0, FRAMES, 4), (23, 1, 14, 13, 2, 4, 7, 8), range(FRAMES)):
        assert [bright(video[number]) for number in numbers] == list(numbers)


def test_a_film_without_its_first_key_frame_is_refused(tmp_path: Path) -> None:
    for name, between in (("a.mp4", "0"), ("a.mkv", "3")):
        film(tmp_path / name, change=lambda packets: packets[1:], bf=between, g="250")
        with pytest.raises(ValueError, match=f"{name}: not a readable video: it begins without a key frame"):
            open_video(tmp_path / name)


def test_an_avi_whose_frames_have_another_order_is_refused(tmp_path: Path) -> None:
    """It says nothing of when a frame is shown; by the times that a decoder makes up they came as 0, 3, 8."""
    with pytest.raises(ValueError, match=r"a\.avi: not a readable video: .*\(B-frames\); save it as mp4"):
        open_video(film(tmp_path / "a.avi", bf="3"))
    assert bright(open_video(film(tmp_path / "b.avi", bf="0"))[5]) == 5


def test_a_film_cut_by_its_edit_list_begins_where_it_is_shown(tmp_path: Path) -> None:
    """Between two key frames, as phones trim: the frames before are decoded and not shown."""

    def later(packets: list[Any]) -> list[Any]:
        for packet in packets:
            packet.pts, packet.dts = packet.pts - 5, packet.dts - 5
        return packets

    video = open_video(film(tmp_path / "a.mp4", change=later, bf="0", g="250"))
    assert [bright(video[number]) for number in (0, 1, len(video) - 1, 9)] == [5, 6, FRAMES - 1, 14]


def test_a_list_of_other_files_is_no_video(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    shutil.copy(film(tmp_path / "b.mkv"), tmp_path / "b.mp4")
    for name in ("list.mp4", "b.mp4"):
        for opened in (open_video, lambda path: read_frame(path, 0)):
            with pytest.raises(ValueError, match=f"{name}: not a readable video"):
                opened(tmp_path / name)


@pytest.mark.parametrize("orientation", (1, 4, 6))
def test_frames_of_published_videos_that_are_turned(tmp_path: Path, orientation: int) -> None:
    """Square ones, whose size does not tell; one's own masks are of the frames as they are shown."""
    red_object((20, 20)).save(tmp_path / "a.jpg", exif=oriented(orientation))
    assert clips.sized_frames(tmp_path, ".", ["a"], own=True) == (("./a.jpg",), 20, 20)
    if orientation == 1:
        assert clips.sized_frames(tmp_path, ".", ["a"]) == (("./a.jpg",), 20, 20)
    else:
        with pytest.raises(ValueError, match=f"a frame with an EXIF orientation: a; {UNSEEN}"):
            clips.sized_frames(tmp_path, ".", ["a"])


def test_masks_of_a_video_are_found_whatever_their_spelling(tmp_path: Path) -> None:
    """Those of a frame or a video that are not there would say that nothing is to be seen."""
    base, mask = tmp_path / "davis/DAVIS", Image.fromarray(np.asarray(red_object())[..., 0] // 255)
    (base / "JPEGImages/480p/a").mkdir(parents=True)
    (base / "Annotations_unsupervised/480p").mkdir(parents=True)
    red_object().save(base / "JPEGImages/480p/a/00000.jpg")
    listed = clips.Listed("a", ("00000",), {"0": {"exp": "it", "obj_id": "1"}})
    places = (tmp_path, "davis/DAVIS", listed, "val", "JPEGImages/480p", "Annotations_unsupervised/480p")
    with pytest.raises(ValueError, match="video without masks"):
        ref_youtube_vos.clip(*places)
    (base / "Annotations_unsupervised/480p/a").mkdir()
    mask.save(base / "Annotations_unsupervised/480p/a/00000.PNG")
    found = ref_youtube_vos.clip(*places)
    assert found.target(found.expressions[0], 0).sum() == 60
    (tmp_path / "sav/000").mkdir(parents=True)
    mask.save(tmp_path / "sav/000/00000.PNG")
    assert sav_video.read_masklets(tmp_path / "sav").areas.tolist() == [[60]]


def test_names_of_own_videos_in_either_form_of_unicode(tmp_path: Path) -> None:
    place = tmp_path / "own"
    for folder in ("clips/cafe\u0301", "masks/cafe\u0301/the\u0301"):
        (place / folder).mkdir(parents=True)
        red_object().convert("L").point(lambda value: 255 * (value > 0)).save(place / folder / "00000.png")
    line = {"clip": "caf\u00e9", "object": "th\u00e9", "text": "it"}
    (place / "expressions.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (found,) = own_videos.read(tmp_path, "own", "train")
    assert isinstance(found, clips.Clip) and found.target(found.expressions[0], 0).sum() == 60


def test_lines_and_films_of_own_videos(tmp_path: Path) -> None:
    place = tmp_path / "own"
    (place / "clips").mkdir(parents=True)
    (place / "masks/a/cup").mkdir(parents=True)
    film(place / "clips/a.mp4")
    Image.new("L", (64, 48), 255).crop((-8, -8, 56, 40)).save(place / "masks/a/cup/00003.png")
    lines = [
        {"clip": "a", "object": "cup", "text": ["it", " it"]},
        {"clip": "a", "object": "cup", "text": "it", "split": "TRAIN"},
    ]
    (place / "expressions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    skipped, found = own_videos.read(tmp_path, "own", "train")
    assert isinstance(skipped, Skipped) and (skipped.key, skipped.reason) == (
        "expressions.jsonl:2",
        "split TRAIN: the one that is learnt is called train",
    )
    assert isinstance(found, clips.Clip) and [one.text for one in found.expressions] == ["it"]
    (place / "clips/a.mp4").write_bytes((place / "clips/a.mp4").read_bytes()[:-900])
    *_, found = own_videos.read(tmp_path, "own", "train")
    assert isinstance(found, Skipped) and "nothing in it can be read" in found.reason
