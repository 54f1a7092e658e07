import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.data import masks
from ans.data.images import open_image
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import common, sav_video
from tests.pipeline import REPOSITORY

REAL = REPOSITORY.parent / "shared" / "real"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real annotations are not in {REAL}")


@pytest.fixture
def root(tmp_path: Path, smallest_world: Path) -> Path:
    shutil.copytree(smallest_world / "sav/videos", tmp_path / "sav/videos")
    return tmp_path


def read(root: Path) -> list[ImageRecord | Skipped]:
    return list(common.read(sav_video, root, "sav/videos", "sav_video"))


@real_data
@pytest.mark.parametrize("kind", ("manual", "auto"))
def test_real_annotations_have_the_areas_and_visibility_changes_that_they_state(kind: str) -> None:
    path = REAL / f"sav_000001_{kind}.json"
    stated = json.loads(path.read_text())
    found = sav_video.read_masklets(path)
    assert (found.height, found.width, found.areas.shape) == (848, 480, (121, len(stated["masklet_id"])))
    seen = found.areas > 0
    np.testing.assert_allclose(found.areas.sum(0) / seen.sum(0), stated["masklet_size_abs"], rtol=1e-9)
    assert found.visibility_changes.tolist() == stated["masklet_visibility_changes"]
    assert seen.argmax(0).tolist() == stated["masklet_first_appeared_frame"]


@real_data
@pytest.mark.parametrize("kind", ("manual", "auto"))
@pytest.mark.second
def test_real_annotations_become_records(tmp_path: Path, kind: str) -> None:
    """Over black frames, since the videos are not in the sample."""
    place = tmp_path / "sav/videos/sav_train/sav_000"
    (place / "sav_000001").mkdir(parents=True)
    (place / f"sav_000001_{kind}.json").write_bytes((REAL / f"sav_000001_{kind}.json").read_bytes())
    for number in range(0, 484, 4):
        Image.new("RGB", (480, 848)).save(place / "sav_000001" / f"{number:05d}.jpg")
    content = json.loads((REAL / f"sav_000001_{kind}.json").read_text())
    records = read(tmp_path)
    assert [record.image_id for record in records] == [4 * i for i in range(0, 121, 6)]
    for record in records:
        i = record.image_id // 4
        areas = {k: int(area) for k, area in enumerate(coco.area(content["masklet"][i])) if area}
        assert {region.region_id: region.area for region in record.regions} == areas
        assert record.path.endswith(f"sav_000001/{4 * i:05d}.jpg")
        for region in record.regions:
            assert (masks.decode(region.counts, 848, 480) == coco.decode(content["masklet"][i][region.region_id])).all()
            if region.second_counts:
                assert (
                    masks.decode(region.second_counts, 848, 480) == coco.decode(content["masklet"][i + 1][region.region_id])
                ).all()
                assert record.second.endswith(f"{4 * i + 4:05d}.jpg")


def test_the_worlds_videos_are_read_back(root: Path) -> None:
    records = read(root)
    assert all(isinstance(record, ImageRecord) for record in records)
    assert {region.split for record in records for region in record.regions} == {"train", "val"}
    for record in records:
        assert open_image(root, record.path).size == (record.width, record.height)
    first = [record for record in records if record.image_id < 100_000]  # the auto JSON of the first video
    assert [record.image_id for record in first] == [0, 24]
    # the last object comes later; in the last frame of an auto JSON the first one is None
    objects = {region.region_id for record in first for region in record.regions}
    assert max(objects) not in {region.region_id for region in first[0].regions}
    assert 0 not in {region.region_id for region in first[1].regions} and first[1].second == ""
    assert first[0].second.endswith("00004.jpg") and all(region.second_counts for region in first[0].regions)


def test_pngs_say_the_same_as_a_json(root: Path) -> None:
    """The PNGs of a video written from a JSON's masks give the same records."""
    base = root / "sav/videos/sav_train/sav_000"
    name = "sav_000001"
    content = json.loads((base / f"{name}_manual.json").read_text())
    for i, row in enumerate(content["masklet"]):
        for k, rle in enumerate(row):
            mask = coco.decode(rle)
            place = root / f"png/sav_val/Annotations_6fps/{name}/{k:03d}"
            place.mkdir(parents=True, exist_ok=True)
            if mask.any():
                Image.fromarray(mask).save(place / f"{4 * i:05d}.png")
    (root / "png/sav_val/JPEGImages_24fps").mkdir()
    (base / name).rename(root / f"png/sav_val/JPEGImages_24fps/{name}")
    from_json = sav_video.read_masklets(base / f"{name}_manual.json")
    from_pngs = sav_video.read_masklets(root / f"png/sav_val/Annotations_6fps/{name}")
    assert (from_json.areas == from_pngs.areas).all() and (from_json.visibility_changes == from_pngs.visibility_changes).all()
    found = list(common.read(sav_video, root, "png", "sav_video"))
    assert [len(record.regions) for record in found] == [int((row > 0).sum()) for row in from_json.areas[::6]]


def test_folders_of_other_names_are_skipped_with_a_reason(root: Path) -> None:
    (place,) = (root / "sav/videos/sav_val/Annotations_6fps").iterdir()
    (place / "001").rename(place / "1")
    (skipped,) = (item for item in read(root) if isinstance(item, Skipped))
    assert skipped.key.endswith(place.name) and "the folder of an object is named by three digits, found 1" in skipped.reason


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    (
        ("masklet_size_abs", lambda v: [v[0] + 1, *v[1:]], "masklet_size_abs in the file does not match the masks"),
        (
            "masklet_visibility_changes",
            lambda v: [v[0] + 1, *v[1:]],
            "masklet_visibility_changes in the file does not match the masks",
        ),
        ("masklet_visibility_changes", lambda v: v[1:], "masklet_visibility_changes is not one number per object"),
        ("masklet", lambda v: [v[0][1:], *v[1:]], "a row of masklet does not have one mask per object"),
        ("masklet", lambda v: [[{**v[0][0], "size": [3, 4]}, *v[0][1:]], *v[1:]], "RLE of another size than the video"),
        ("masklet", lambda v: [[{**v[0][0], "counts": "zz"}, *v[0][1:]], *v[1:]], "RLE counts that cannot be decoded"),
        ("masklet", lambda v: [[{**v[0][0], "counts": "01"}, *v[0][1:]], *v[1:]], "RLE that does not fill the image"),
        ("video_height", lambda v: v + 0.5, "expected an integer number of pixels"),
        ("video_height", lambda v: None, "expected an integer number of pixels"),
        ("masklet_id", lambda v: [str(x) for x in v], "masklet_id is '0', expected int"),
    ),
)
def test_what_is_not_as_published_is_skipped_with_a_reason(root: Path, key: str, change: Any, reason: str) -> None:
    path = root / "sav/videos/sav_train/sav_000/sav_000001_manual.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: change(content[key])}))
    (skipped,) = (item for item in read(root) if isinstance(item, Skipped))
    assert skipped.key.endswith("sav_000001_manual.json") and reason in skipped.reason


def test_frames_of_none_are_frames_without_objects(root: Path) -> None:
    path = root / "sav/videos/sav_train/sav_000/sav_000001_manual.json"
    content = json.loads(path.read_text())
    rles, none = content["masklet"], {"size": content["masklet"][0][0]["size"], "counts": None}
    gone = coco.encode(np.zeros(none["size"], np.uint8, order="F"))["counts"].decode()
    empty = [{**none, "counts": gone}] * len(rles[0])
    for last in (None, [None] * len(empty), empty):
        areas = np.array([coco.area(row) for row in [*rles[:-1], empty]])
        changes = [int(np.count_nonzero(np.diff((column[np.argmax(column > 0) :] > 0).astype(int)))) for column in areas.T]
        means = (areas.sum(0) / (areas > 0).sum(0)).tolist()
        stated = {"masklet": [*rles[:-1], last], "masklet_size_abs": means, "masklet_visibility_changes": changes}
        path.write_text(json.dumps(content | stated))
        assert (sav_video.read_masklets(path).areas == areas).all()


def test_missing_videos_and_frames_are_named(root: Path) -> None:
    base = root / "sav/videos/sav_train/sav_000"
    (base / "sav_000001/00024.jpg").unlink()
    (base / "sav_000012").rename(base / "elsewhere")
    reasons = {item.key.rsplit("/", 1)[1]: item.reason for item in read(root) if isinstance(item, Skipped)}
    assert reasons == {
        **dict.fromkeys(("sav_000001_auto.json", "sav_000001_manual.json"), "no frame 00024.jpg"),
        **dict.fromkeys(("sav_000012_auto.json", "sav_000012_manual.json"), "neither video nor frames"),
    }


def test_frames_of_a_video_are_named_by_their_number(root: Path) -> None:
    base = root / "sav/videos/sav_train/sav_000"
    (base / "sav_000001").rename(base / "elsewhere")
    (base / "sav_000001.mp4").write_bytes(b"no video")
    record = next(record for record in read(root) if isinstance(record, ImageRecord))
    assert (record.path.rsplit("/", 1)[1], record.second.rsplit("/", 1)[1]) == ("sav_000001.mp4::0", "sav_000001.mp4::4")
    with pytest.raises(ValueError, match="sav_000001.mp4.*not a readable"):
        open_image(root, record.path)


def test_every_frame_of_an_mp4_is_found(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(60):
            pixels = np.full((48, 64, 3), 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    for number in (0, 1, 4, 30, 59):
        found = np.asarray(open_image(tmp_path, f"x.mp4::{number}"), float)
        assert abs(found.mean() - 4 * number) < 3
    with pytest.raises(ValueError, match="x.mp4: ends before frame 60"):
        open_image(tmp_path, "x.mp4::60")
