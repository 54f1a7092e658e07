from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from ans.config.schema import World
from ans.data.images import open_image
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import common, sav
from ans.toy import scenes, world_loops

SIZE = World(
    seed=3,
    train_images=1,
    val_images=1,
    test_images=1,
    sa1b_images=1,
    sav_pairs=52,
    openimages_images=1,
    describe_images=1,
    reasonseg_images=4,
    shift=1.0,
)
FRAME = np.full((6, 8, 3), 200, np.uint8)
MASK = np.zeros((6, 8), np.uint8)
MASK[1:4, 2:7] = 255


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    world_loops.write(path, SIZE, {})
    return path


def decode(record: ImageRecord, counts: str) -> np.ndarray:
    return coco.decode({"size": [record.height, record.width], "counts": counts}).astype(bool)


def pair(path: Path, **changes: np.ndarray | None) -> None:
    arrays = {"frame1": FRAME, "mask1": MASK, "frame2": FRAME, "mask2": MASK} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def read(root: Path) -> list[ImageRecord | Skipped]:
    return list(common.read(sav, root, "sav", "sav"))


@pytest.mark.second
def test_the_worlds_pairs_are_read_back(root: Path) -> None:
    records = list(common.read(sav, root, "sav/npz", "sav"))
    assert len(records) == SIZE.sav_pairs
    moved = 0
    for index, record in enumerate(records):
        scene, rng = scenes.make_scene(SIZE.seed, "sav", index, SIZE.shift)
        pixels, masks = scenes.render(scene, SIZE.shift, rng)
        assert record.path == f"sav/npz/sav_{index // 50:03d}/masklet_data_{index:05d}.npz::frame1"
        assert (np.asarray(open_image(root, record.path)) == pixels).all()
        (region,) = record.regions
        first = decode(record, region.counts)
        assert sum((first == mask).all() for mask in masks) == 1
        assert (region.area, region.split, region.expressions) == (first.sum(), "", ())
        if index % 25 == 4:
            assert (record.second, region.second_counts) == ("", "")
            continue
        assert record.second == record.path[:-1] + "2"
        assert open_image(root, record.second).size == (record.width, record.height)
        second = decode(record, region.second_counts)
        assert second.sum() == pytest.approx(first.sum(), rel=0.05)  # the same object, on other pixels
        moved += not (first == second).all()
    assert moved >= 0.9 * SIZE.sav_pairs


def test_the_second_frame_shows_the_same_background(root: Path) -> None:
    for record in list(common.read(sav, root, "sav/npz", "sav"))[:20]:
        if record.second:
            one, two = (np.asarray(open_image(root, path), float) for path in (record.path, record.second))
            assert 5 < np.median(np.abs(one - two)) < 25  # most pixels are background: between them is noise of deviation 14


def test_the_second_frame_shows_the_same_object(tmp_path: Path) -> None:
    world_loops.write(tmp_path, SIZE.model_copy(update={"sav_pairs": 20, "shift": 0.0}), {})
    for record in common.read(sav, tmp_path, "sav/npz", "sav"):
        if record.second:
            one, two = (np.asarray(open_image(tmp_path, path), float) for path in (record.path, record.second))
            first, second = decode(record, record.regions[0].counts), decode(record, record.regions[0].second_counts)
            bright = [np.percentile(pixels, 90, axis=0) for pixels in (one[first], two[second])]  # between the dark stripes
            assert np.abs(bright[0] - bright[1]).max() < 12


def test_the_published_form_is_among_them(root: Path) -> None:
    paths = sorted((root / "sav/npz").rglob("*.npz"))
    with np.load(paths[7]) as published, np.load(paths[8]) as ours:
        assert sorted(published) == ["frame1", "frame2", "mask1", "mask2"]
        assert {published[name].dtype for name in published} == {np.dtype(np.float32)}
        assert published["frame1"].max() > 1 and set(np.unique(published["mask1"])) == {0, 255}
        assert {*published, "video_id", "object_id", "frame_index1", "frame_index2", "source", "schema_version"} == set(ours)
        assert ours["frame1"].dtype == np.uint8 and ours["video_id"].item() == "sav_000002"
        assert ours["frame_index2"] == ours["frame_index1"] + 1


@pytest.mark.parametrize("kind", (np.uint8, np.float32, bool))
@pytest.mark.parametrize("deep", (False, True))
def test_masks_of_every_kind(tmp_path: Path, kind: type, deep: bool) -> None:
    mask = (MASK > 0).astype(kind)
    pair(tmp_path / "sav/a/masklet_data_00000.npz", mask1=mask[..., None] if deep else mask)
    (record,) = read(tmp_path)
    assert (decode(record, record.regions[0].counts) == (MASK > 0)).all()
    assert (record.regions[0].area, record.regions[0].bbox) == (15, (2.0, 1.0, 5.0, 3.0))


def test_frames_in_0_to_1_and_in_0_to_255_are_one_image(tmp_path: Path) -> None:
    pair(tmp_path / "a.npz", frame1=FRAME.astype(np.float32), frame2=(FRAME / 255).astype(np.float32))
    assert all((np.asarray(open_image(tmp_path, f"a.npz::{name}")) == 200).all() for name in ("frame1", "frame2"))


@pytest.mark.parametrize(
    ("frame", "message"),
    (
        (FRAME[..., 0], "is .height, width, 3."),
        (FRAME * 2.0, "lie in 0..255"),
        (FRAME * np.nan, "lie in 0..255"),
        (None, "no array"),
    ),
)
def test_what_is_no_frame_is_named(tmp_path: Path, frame: np.ndarray | None, message: str) -> None:
    pair(tmp_path / "a.npz", frame1=frame)
    with pytest.raises(ValueError, match=f"a.npz.*{message}"):
        open_image(tmp_path, "a.npz::frame1")


def test_bad_pairs_are_skipped_with_a_reason_and_the_others_kept(tmp_path: Path) -> None:
    base = tmp_path / "sav"
    pair(base / "b/masklet_data_00000.npz")
    pair(base / "a/masklet_data_00001.npz", frame2=None)
    pair(base / "a/masklet_data_00002.npz", mask1=0 * MASK)
    pair(base / "a/masklet_data_00003.npz", mask2=0 * MASK)
    pair(base / "a/masklet_data_00004.npz", frame2=FRAME[:4])
    pair(base / "a/masklet_data_00005.npz", mask1=MASK.T)
    pair(base / "a/masklet_data_00007.npz", mask1=MASK.astype(object))  # pickled, and so refused
    pair(base / "a/other_00001.npz")
    whole = (base / "b/masklet_data_00000.npz").read_bytes()
    (base / "a/masklet_data_00006.npz").write_bytes(whole[: len(whole) // 2])
    (base / "a/masklet_data_00008.npz").symlink_to(base / "nowhere.npz")
    found = read(tmp_path)
    records = [record for record in found if isinstance(record, ImageRecord)]
    assert [record.path for record in records] == [
        f"sav/{name}.npz::frame1" for name in ("a/masklet_data_00003", "b/masklet_data_00000")
    ]
    assert [(bool(record.second), record.image_id) for record in records] == [(False, 2), (True, 8)]
    assert {item.key[-9:]: item.reason for item in found if isinstance(item, Skipped)} == {
        "00001.npz": "npz without all of frame1, mask1, frame2, mask2",
        "00002.npz": "mask1 without a pixel",
        "00004.npz": "frames and masks of different sizes",
        "00005.npz": "frames and masks of different sizes",
        "00006.npz": "not a readable npz",
        "00007.npz": "not a readable npz",
        "00008.npz": "not a readable npz",
    }


def test_a_missing_folder_is_named_with_its_keys(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sav/npz: not found.*paths.root.*sources.sav"):
        list(common.read(sav, tmp_path, "sav/npz", "sav"))
