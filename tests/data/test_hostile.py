"""Files that mean harm, or mean something else than they seem to: each is read as what it is, or refused by name."""

import io
import json
import os
import struct
import tarfile
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ans.data import masks, readers
from ans.data.arrow import read_index
from ans.data.disk import MAX_BYTES, spelled
from ans.data.images import FORMATS, open_image, read_bytes, read_frame
from ans.data.mask_files import read_mask
from ans.data.npz import array_shapes, read_array
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.samples import Evaluated, training_rows
from ans.data.sources import own, reason_seg, sa1b, sav
from ans.data.sources.common import MAX_CHARACTERS, MAX_WORDS, clean, field, parse_json, read, tar_members
from ans.data.videos import open_video
from tests.data.test_own import MASK, publish
from tests.indexes import write_records

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 10\n%%EndComments\nshowpage\n%%EOF\n"


# ------------------------------------------------------------------------------------------------------------------ images


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("subprocess.check_call", lambda *of, **_: started.append(of))
    monkeypatch.setattr("subprocess.Popen", lambda *of, **_: started.append(of))
    (tmp_path / "a.jpg").write_bytes(POSTSCRIPT)
    with pytest.raises(ValueError, match=r"a\.jpg: .*cannot identify image file as JPEG, PNG"):
        open_image(tmp_path, "a.jpg")
    assert not started


@pytest.mark.parametrize("form", ("ICO", "PCX", "TGA", "SGI", "ICNS", "EPS", "PDF", "DDS", "IM", "MSP", "SPIDER"))
def test_only_a_few_formats_are_images(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    Image.new("1" if form == "MSP" else "F" if form == "SPIDER" else "RGB", (32, 32)).save(buffer, form)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="cannot identify"):
        open_image(tmp_path, "a.png")


@pytest.mark.parametrize("form", FORMATS)
def test_these_are(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a", form)
    assert open_image(tmp_path, "a").size == (8, 4)


def test_photographs_of_several_pictures_are_jpegs(tmp_path: Path) -> None:
    """As phones write them (MPO)."""
    pictures = [Image.new("RGB", (8, 4), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pictures[1:])
    assert np.asarray(open_image(tmp_path, "a.jpg"))[0, 0, 0] > 200


def video(path: Path, pixels: list[np.ndarray], matrix: tuple[int, ...] = (), codec: str = "mpeg4", **options: str) -> None:
    """`matrix`: a, b, c, d of the track, which shows what is at x, y at a x + c y, b x + d y (ISO 14496-12), each times 2 ** 16."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 32, "yuv420p", options
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    if matrix:
        content = path.read_bytes()
        plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
        place = content.index(plain, content.index(b"tkhd"))
        a, b, c, d = matrix
        path.write_bytes(content[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[place + len(plain) :])


@pytest.mark.parametrize(
    "matrix", [(), (1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)]
)
def test_a_videos_display_matrix_is_applied(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    """A quarter, three quarters, and mirrored, as cameras that face their user write it."""
    white = np.zeros((32, 64, 3), np.uint8)
    white[:16, :32] = 255  # upper left
    video(tmp_path / "a.mp4", [white] * 3, tuple(value << 16 for value in matrix))
    across, down = np.array(matrix or (1, 0, 0, 1)).reshape(2, 2).T @ (
        -16,
        -8,
    )  # where the white's middle goes from the picture's
    frame = np.asarray(read_frame(tmp_path / "a.mp4", 1).convert("L")).astype(int)
    assert frame.shape == ((64, 32) if matrix[:1] == (0,) else (32, 64))
    middle = np.array(frame.shape) // 2
    for sign, wanted in ((1, 255), (-1, 0)):
        x, y = middle[1] + sign * across, middle[0] + sign * down
        assert np.abs(frame[y - 4 : y + 4, x - 4 : x + 4] - wanted).max() < 50
    with pytest.raises(ValueError, match="ends before frame 3"):
        read_frame(tmp_path / "a.mp4", 3)


@pytest.mark.parametrize("matrix", [(46341, 46341, -46341, 46341), (1 << 17, 0, 0, 1 << 16)])
def test_a_video_that_is_shown_askew_is_refused(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    video(tmp_path / "a.mp4", [np.zeros((32, 64, 3), np.uint8)], matrix)
    with pytest.raises(ValueError, match=r"a\.mp4: not a readable video: .* other than right angles"):
        read_frame(tmp_path / "a.mp4", 0)


def test_frames_before_a_key_frame_that_need_the_group_before_it(tmp_path: Path) -> None:
    """Open groups of pictures: decoding that begins at the key frame gives the frame behind the one that was asked for."""
    pixels = [np.full((32, 64, 3), 8 * number + 20, np.uint8) for number in range(20)]
    video(tmp_path / "a.mp4", pixels, codec="libx264", **{"x264-params": "open-gop=1:keyint=6:bframes=3"})
    film = open_video(tmp_path / "a.mp4")
    for number in np.random.default_rng(0).permutation(20).tolist():
        for picture in (read_frame(tmp_path / "a.mp4", number), film[number]):
            assert abs(np.asarray(picture).mean() - (8 * number + 20)) < 3


@pytest.mark.parametrize("kind", ("pipe", "device", "folder", "loop", "vast"))
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """A pipe, or a link to a device, would be read without an end."""
    path = tmp_path / "a.jpg"
    {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir,
     "loop": lambda: path.symlink_to(path), "vast": lambda: path.open("wb").truncate(MAX_BYTES + 1)}[kind]()  # fmt: skip
    for read_one in (lambda: open_image(tmp_path, "a.jpg"), lambda: read_mask(path, "a.jpg")):
        with pytest.raises(
            ValueError, match=r"a\.jpg: not a readable image: (not a plain file|.*Too many levels|has \d+ bytes, more)"
        ):
            read_one()
    if kind not in ("vast", "loop"):
        path.rename(tmp_path / "a.npz")
        with pytest.raises(ValueError, match=r"a\.npz: not a readable npz"):
            read_array(tmp_path / "a.npz", "frame1")


def test_a_changed_byte_of_a_png_is_no_other_image(tmp_path: Path) -> None:
    """Pillow compares no checksum of the pixels. Those of other parts cost nothing: there the image is the same."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image in {
        "a.png": Image.fromarray(255 * MASK),
        "b.png": Image.fromarray(np.dstack([MASK] * 3)).convert("P"),
    }.items():
        image.save(tmp_path / name, exif=exif)
        whole, before = (tmp_path / name).read_bytes(), np.asarray(open_image(tmp_path, name))
        found: Counter[str] = Counter()
        for place in range(0, len(whole), 1 + 4 * (len(whole) > 400)):  # of a palette every fifth
            for other in (0, 255, whole[place] ^ 1) if place % 5 == 0 else (whole[place] ^ 1,):
                (tmp_path / name).write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
                try:
                    after = np.asarray(open_image(tmp_path, name))
                except ValueError as error:
                    assert name in str(error)
                    found["refused"] += 1
                    continue
                in_exif = whole.index(b"eXIf") - 4 <= place < whole.index(b"IDAT") - 4
                assert (after.shape == before.shape and (after == before).all()) or in_exif, f"byte {place}"
                found["in exif" if in_exif else "same"] += 1
        assert found["refused"] > 50 and found["in exif"] > 10, "damaged EXIF costs no image"


def member(name: str, data: bytes = b"", **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def test_only_plain_members_of_a_tar_count(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "sa_000000.tar", "w") as tar:
        for info, data in (
            member("sa_1.jpg", b"picture"), member("sa_1.json", b"{}"), member("sa_2.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            member("sa_3.jpg", type=tarfile.LNKTYPE, linkname="sa_1.jpg"), member("sa_4.jpg", type=tarfile.CHRTYPE),
            member("sa_5.jpg", type=tarfile.FIFOTYPE), member("../../sa_6.jpg", b"x"), member("sa_7\n.jpg", b"x"),
            member("sa_8\udcff.jpg", b"x"), member("sa_9.jpg", b"x"), member("sa_9.jpg", b"y"), member("sa_9.json", b"{}"),
        ):  # fmt: skip
            tar.addfile(info, io.BytesIO(data))
    found = list(sa1b.read_one(tmp_path, tmp_path / "sa_000000.tar"))
    entries = {item.name: item for item in found if isinstance(item, sa1b.ImageFiles)}
    assert set(entries) == {"sa_1", "sa_9"} and read_bytes(tmp_path, entries["sa_9"].image) == b"x"
    assert {(item.key, item.reason.partition(",")[0]) for item in found if isinstance(item, Skipped)} == {
        ("sa_6", "image without JSON"), ("'sa_7\\n'", "name with a control character"), ("'sa_8\\udcff'", "name with a control character"),
        ("sa_9.jpg", "duplicate name; the first one is used"),
    }  # fmt: skip


@pytest.mark.parametrize("size", (10**9, 10**18, 8**11 - 1))
def test_a_tar_whose_sizes_lie_is_named(tmp_path: Path, size: int) -> None:
    header = member("sa_1.jpg", size=size)[0].tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(4096))
    with pytest.raises(ValueError, match=r"a\.tar: not a readable tar"):
        list(tar_members(tmp_path, tmp_path / "a.tar", (".jpg",)))


def test_an_npz_that_unpacks_to_more_than_an_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", frame1=np.zeros((500, 500, 3), np.uint8))
    monkeypatch.setattr("ans.data.npz.MAX_BYTES", 10**5)
    with pytest.raises(ValueError, match=r"a\.npz: .*array frame1 unpacks to more than any image"):
        read_array(tmp_path / "a.npz", "frame1")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (24, 50, "Bad CRC-32"),  # its size, too small
        (24, 2**31, "more than any image has|do not hold"),
        (20, 10, "Bad CRC-32"),  # its compressed size
        (42, 2**31, "Truncated file header"),  # where it lies
        (38, 0xA1FF << 16, None),  # a link, which is an array all the same: nothing is unpacked to the disk
        (38, 0x21FF << 16, None),  # a device
        (None, 2, "occurs twice"),
    ],
)
def test_an_npz_whose_directory_lies_is_named(tmp_path: Path, place: int | None, value: int, said: str | None) -> None:
    frame = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.savez(tmp_path / "a.npz", frame1=frame)
    if place is None:
        with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("frame1.npy", archive.read("frame1.npy"))
    else:
        data = bytearray((tmp_path / "a.npz").read_bytes())
        struct.pack_into("<I", data, data.index(b"PK\1\2") + place, value)
        (tmp_path / "a.npz").write_bytes(data)
    if said is None:
        assert (read_array(tmp_path / "a.npz", "frame1") == frame).all()
        return
    for read_it in (lambda: read_array(tmp_path / "a.npz", "frame1"), lambda: array_shapes(tmp_path / "a.npz", ["frame1"])):
        with pytest.raises(ValueError, match=rf"a\.npz: not a readable npz: .*({said})"):
            read_it()


def test_a_set_with_names_that_are_no_text_is_indexed(tmp_path: Path) -> None:
    """On disk they are bytes; Arrow and JSON hold text alone."""
    place = tmp_path / "sav/x"
    place.mkdir(parents=True)
    arrays = {name: np.ones((4, 4, 3) if "frame" in name else (4, 4), np.uint8) for name in sav.ARRAYS}
    for folder in (b"sav/x", b"sav/bad\xff", b"sav/a\nb"):
        where = os.fsencode(tmp_path) + b"/" + folder
        os.makedirs(where, exist_ok=True)
        np.savez(place / "masklet_data_1.npz", **arrays)
        if folder != b"sav/x":
            os.replace(place / "masklet_data_1.npz", where + b"/masklet_data_1.npz")
    np.savez(place / "masklet_data_1.npz", **arrays)
    found = list(read(sav, tmp_path, "sav", "sav"))
    records = [item for item in found if isinstance(item, ImageRecord)]
    assert [record.path for record in records] == ["sav/x/masklet_data_1.npz::frame1"] and len(found) == 3
    write_records(tmp_path / "a.arrow", records, {"source": "sav", "folder": "sav", "reader": "sav", "root_listing": "x"})


def test_names_that_are_no_text_are_told_and_hinder_nothing(tmp_path: Path) -> None:
    base = publish(tmp_path, [{"image": "a.jpg", "mask": "m.png", "text": "it"}])
    (tmp_path / "sa1b").mkdir()
    (tmp_path / "rs/train").mkdir(parents=True)
    before = [readers.listing_checksum(tmp_path, *of) for of in (("own", "own", "own"), ("sa1b", "sa1b", "sa1b"))]
    for name in (b"bad\xff", b"a\nb", b"\x1b[2J"):
        for place in (base / "images", tmp_path / "sa1b", tmp_path / "rs/train"):
            with open(os.fsencode(place) + b"/" + name + b".jpg", "wb") as file:
                file.write((base / "images/a.jpg").read_bytes())
            os.mkdir(os.fsencode(place) + b"/" + name)
    after = [readers.listing_checksum(tmp_path, *of) for of in (("own", "own", "own"), ("sa1b", "sa1b", "sa1b"))]
    assert before[0] != after[0] and before[1] != after[1]
    assert [item for item in read(own, tmp_path, "own", "own") if isinstance(item, Skipped)] == []
    said = [item.key for item in read(reason_seg, tmp_path, "rs", "reasonseg") if isinstance(item, Skipped)]
    assert said == ["rs/train/\\x1b[2J", "rs/train/a\\nb", "rs/train/bad\\udcff"]


def test_what_is_skipped_is_one_line_of_text() -> None:
    item = Skipped("a\nb\udcff", "caf\u00e9 \u202e\u2028\x1b")
    assert (item.key, item.reason) == ("a\\nb\\udcff", "caf\u00e9 \u202e\\u2028\\x1b")


# ------------------------------------------------------------------------------------------------------------------- masks


def saved(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels, mode)
    image.save(path, **options)
    return path


def test_masks_that_may_mean_something_else_are_refused(tmp_path: Path) -> None:
    inverted = Image.fromarray(MASK, "P")
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    inverted.save(tmp_path / "palette.png")
    Image.fromarray(255 * MASK).save(tmp_path / "lossy.webp")
    Image.fromarray(255 * MASK).save(tmp_path / "lossy.tif", compression="jpeg")
    gradient = np.linspace(0, 255, 200).reshape(10, 20)
    saved(tmp_path / "gradient.png", gradient.astype(np.uint8))
    saved(tmp_path / "float.tif", (gradient / 255).astype(np.float32))
    saved(tmp_path / "nan.tif", np.where(MASK > 0, np.nan, 0).astype(np.float32))
    saved(tmp_path / "below.tif", np.where(MASK > 0, -1.0, 0).astype(np.float32))
    clear = np.zeros((10, 20, 4), np.uint8)
    saved(tmp_path / "clear.png", clear)
    for name, reason in {
        "palette.png": "palette", "lossy.webp": "is a WEBP", "lossy.tif": "is a TIFF", "gradient.png": "not a soft edge",
        "float.tif": "not a soft edge", "nan.tif": "not finite", "below.tif": "below 0", "clear.png": "transparent everywhere",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}.* {reason}|{name} {reason}|{name}: {reason}"):
            read_mask(tmp_path / name, name)


def test_masks_that_are_read_and_noted(tmp_path: Path) -> None:
    ids = MASK.copy()
    ids[3] *= 2
    saved(tmp_path / "ids.png", ids)
    saved(tmp_path / "colours.png", np.stack([255 * (ids == 1), 255 * (ids == 2), 0 * ids], 2).astype(np.uint8))
    palette = Image.fromarray(ids, "P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(tmp_path / "voc.png")
    saved(tmp_path / "float.tif", MASK.astype(np.float32))
    soft = Image.fromarray(255 * MASK).resize((80, 40), Image.Resampling.BICUBIC)
    soft.save(tmp_path / "soft.png")
    for name, note in {"ids.png": "several values", "colours.png": "several colours", "voc.png": "several values"}.items():
        inside, notes = read_mask(tmp_path / name, name)
        assert (inside == (MASK > 0)).all() and len(notes) == 1 and note in notes[0]
    inside, notes = read_mask(tmp_path / "float.tif", "float.tif")
    assert (inside == (MASK > 0)).all() and notes == []
    inside, notes = read_mask(tmp_path / "soft.png", "soft.png")
    assert "soft edge" in notes[0] and abs(int(inside.sum()) - 16 * int(MASK.sum())) < 20


def test_masks_are_turned_as_their_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(255 * np.rot90(MASK)).save(tmp_path / "m.png", exif=exif)
    assert (read_mask(tmp_path / "m.png", "m.png")[0] == (MASK > 0)).all()


def test_masks_of_other_colour_spaces_and_of_several_pictures(tmp_path: Path) -> None:
    mask = Image.fromarray(255 * MASK)
    mask.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.tif")
    assert (read_mask(tmp_path / "cmyk.tif", "cmyk.tif")[0] == (MASK > 0)).all()
    mask.save(tmp_path / "two.tif", save_all=True, append_images=[mask.rotate(180)])
    with pytest.raises(ValueError, match="two.tif holds several pictures"):
        read_mask(tmp_path / "two.tif", "two.tif")


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"imageWidth": 40, "imageHeight": 20}, "is 20 x 10 pixels, but a.json says 40 x 20"),
        ({"imageWidth": 40.0, "imageHeight": 20.0}, "but a.json says 40 x 20"),
        ({"imageWidth": 20}, "no 'imageHeight'"),
        ({"imageWidth": "20", "imageHeight": 10}, "imageWidth is '20'"),
    ],
)
def test_a_listed_size_of_labelme_is_compared(tmp_path: Path, stated: dict[str, Any], said: str) -> None:
    place = tmp_path / "rs/val"
    place.mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(place / "a.jpg")
    listing = {
        "text": ["it"],
        "is_sentence": False,
        "shapes": [shape("rectangle", [3, 2], [8, 5])],
    } | stated
    (place / "a.json").write_text(json.dumps(listing))
    (skipped,) = read(reason_seg, tmp_path, "rs", "reasonseg")
    assert isinstance(skipped, Skipped) and said in skipped.reason


def test_suspicious_masks() -> None:
    assert masks.suspicions(MASK > 0) == []
    assert "inverted" in masks.suspicions(MASK == 0)[0]
    assert "whole image" in masks.suspicions(np.ones((4, 4), bool))[0]


# ------------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" the cup\n", "the cup"),
        ("the\tred\r\ncup", "the red cup"),
        ("\u2028the cup\u2029", "the cup"),
        ("\u05d4\u05db\u05d5\u05e1", "\u05d4\u05db\u05d5\u05e1"),
        ("\u676f\u5b50", "\u676f\u5b50"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("[SEG] <IMG_CONTEXT>", "[SEG] <IMG_CONTEXT>"),
        ("a " * (MAX_WORDS - 1) + "b", "a " * (MAX_WORDS - 1) + "b"),
    ],
)
def test_texts_of_any_script_are_used(text: str, found: str) -> None:
    assert clean(text) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"), (" \n", "empty"), (".", "empty"), ("\u200b\u200d", "empty"), ("\u3000", "empty"),
        ("a\x00b", r"control character U\+0000"), ("\x1b[31mred", r"U\+001B"), ("a\x07", r"U\+0007"), ("a\ufdd0", r"U\+FDD0"),
        ("a\uffff", r"U\+FFFF"), ("a " * MAX_WORDS + "b", "more than"), ("a" * (MAX_CHARACTERS + 1), "more than"),
    ],
)  # fmt: skip
def test_texts_that_say_nothing_or_too_much_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        clean(text)


def test_wrong_texts_and_names_name_their_line(tmp_path: Path) -> None:
    lines = [
        {"image": "a.jpg", "mask": "m.png", "text": "a\x07"},
        {"image": "a.jpg", "mask": "m.png", "text": ["fine", "w " * 2000]},
        {"image": "a\n.jpg", "mask": "m.png"},
        {"image": "a.jpg", "mask": "m\x1b[2J.png"},
        {"image": "a.jpg::0:10", "mask": "m.png"},
        {"image": "a.jpg", "mask": "m.png", "split": "val\n"},
        {"image": "a.jpg", "mask": "m.png", "split": "../x"},
        {"image": "a.jpg", "annotation": True},
        '{"image": "a.jpg", "mask": "m.png", "text": "one", "text": "two"}',
        '{"image": ' + "[" * 100_000,
    ]
    publish(tmp_path, lines, {"images": [], "annotations": []})
    found = list(read(own, tmp_path, "own", "kitchen"))
    reasons = [item.reason for item in found if isinstance(item, Skipped)]
    parts = ["U+0007", "more than", "control character", "control character", "`::`", "split", "split", "annotation is True"]
    parts += ["'text' occurs twice", "brackets without end"]
    assert len(found) == len(lines)
    for reason, part in zip(reasons, parts, strict=True):
        assert part in reason, (reason, part)


def test_booleans_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="id is True, expected int"):
        field({"id": True}, "id", int)
    assert field({"id": True}, "id", bool) is True


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' occurs twice"):
        parse_json(b'[{"b": 1, "a": 1, "a": 2}]')


# --------------------------------------------------------------------------------------------------------- names and copies


def test_names_in_either_form_of_unicode_are_one_file(tmp_path: Path) -> None:
    base = publish(tmp_path, [])
    composed, apart = (unicodedata.normalize(form, "caf\u00e9.jpg") for form in ("NFC", "NFD"))
    Image.new("RGB", (20, 10)).save(base / "images" / apart)
    lines = [{"image": name, "mask": "m.png", "text": name} for name in (composed, apart, "./" + composed)]
    (base / "expressions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (record,) = read(own, tmp_path, "own", "kitchen")
    assert record.path == f"own/images/{apart}" and len(record.regions[0].expressions) == 3
    assert spelled(tmp_path, "own/images/A.jpg") == "own/images/A.jpg", "the case of a name counts, that of its suffix does not"
    assert spelled(tmp_path, "own/images/a.JPG") == "own/images/a.jpg"


def test_what_macos_leaves_beside_a_file_is_none(tmp_path: Path) -> None:
    place = tmp_path / "rs/val"
    place.mkdir(parents=True)
    for name in ("a.jpg", "._a.jpg"):
        Image.new("RGB", (12, 10)).save(place / name)
    assert [task[1] for task in reason_seg.plan(tmp_path, "rs", "reasonseg")] == ["a.jpg"]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("./._sa_1.jpg", "./sa_1.JPG"):
            tar.add(place / "a.jpg", name)
    assert [(stem, suffix) for stem, suffix, _ in tar_members(tmp_path, tmp_path / "x.tar", (".jpg",))] == [("sa_1", ".jpg")]


def test_a_copy_of_an_evaluated_photograph_is_not_trained_on(tmp_path: Path) -> None:
    """Within your own data, and between it and a published set."""
    lines = [
        {"image": "a.jpg", "mask": "m.png", "text": "it"},
        {"image": "copy.jpg", "mask": "m.png", "text": "it", "split": "val"},
    ]
    base = publish(tmp_path, lines)
    (base / "images/copy.jpg").write_bytes((base / "images/a.jpg").read_bytes())
    metadata = {"source": "kitchen", "folder": "own", "reader": "own", "root_listing": "x"}
    write_records(tmp_path / "own.arrow", read(own, tmp_path, "own", "kitchen"), metadata)
    index = read_index(tmp_path / "own.arrow")
    assert training_rows([index], Evaluated([index])) == ([], 1)
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/x.jpg").write_bytes((base / "images/a.jpg").read_bytes())
    region = Region(1, "train", "", 18, (3.0, 2.0, 6.0, 3.0), masks.from_array(MASK), (Expression(1, "it", "it"),))
    published = [ImageRecord(1, "coco/x.jpg", 20, 10, (region,)), ImageRecord(2, "coco/none.jpg", 20, 10, (region,))]
    write_records(tmp_path / "ref.arrow", published, metadata | {"source": "ref", "reader": "refcoco"})
    indexes = [read_index(tmp_path / f"{name}.arrow") for name in ("own", "ref")]
    assert training_rows(indexes, Evaluated(indexes, tmp_path)) == ([(1, 1)], 2)


# ------------------------------------------------------------------------------------------------------------------ labelme


def shape(kind: str | None, *points: list[float], **more: Any) -> dict[str, Any]:
    return {"label": "target", "points": list(points)} | ({} if kind is None else {"shape_type": kind}) | more


@pytest.mark.parametrize("kind", ("line", "linestrip", "point", "points", "spline", "circle", "rectangle", "mask"))
def test_shapes_without_an_inside_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        reason_seg.draw([shape(kind, [1, 1], [3, 3], [5, 1], mask="")], 10, 20)


def test_a_stored_mask_lies_between_its_corners() -> None:
    import base64

    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255], [255, 0]], np.uint8)).save(buffer, "PNG")
    stored = base64.b64encode(buffer.getvalue()).decode()
    drawn = reason_seg.draw([shape("mask", [3, 4], [4, 6], mask=stored)], 10, 20)
    assert np.argwhere(drawn).tolist() == [[4, 4], [5, 3], [5, 4], [6, 3]]
    for corners in (([3, 4], [5, 6]), ([-1, 4], [0, 6]), ([19, 4], [20, 6])):
        with pytest.raises(ValueError, match="not as large as its corners say, or not within"):
            reason_seg.draw([shape("mask", *corners, mask=stored)], 10, 20)


def test_corners_may_come_in_any_order() -> None:
    drawn = [
        reason_seg.draw([shape("rectangle", *corners)], 10, 20)
        for corners in (([3, 2], [8, 5]), ([8, 5], [3, 2]), ([8, 2], [3, 5]))
    ]
    assert drawn[0].sum() == 6 * 4 and all((one == drawn[0]).all() for one in drawn)
    assert (reason_seg.draw([shape(None, [3, 2], [8, 2], [8, 5], [3, 5])], 10, 20) == drawn[0]).all()
