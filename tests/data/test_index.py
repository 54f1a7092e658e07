import dataclasses
import json
import pickle
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ans import config
from ans.config import Config, ConfigError, World
from ans.data import index, scenes, world
from ans.data.images import image_size, open_image, read_bytes
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources import sa1b

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def settings_of(tmp_path: Path) -> Config:
    """The repository's parameters over a small world of its own."""
    counts = {"sa1b_images": 8, "sav_pairs": 6, "openimages_images": 3, "describe_images": 8}
    world.write_world(tmp_path / "world", World(seed=3, train_images=12, val_images=3, test_images=2, **counts, shift=1.0))
    base = config.load(PARAMS)
    subset = dataclasses.replace(base.subset_sa1b, images=5)
    return dataclasses.replace(base, paths=config.Paths(str(tmp_path / "world")), subset_sa1b=subset)


integers = st.integers(-(2**62), 2**62)
expressions = st.builds(Expression, sent_id=integers, sent=st.text(), raw=st.text())
regions = st.builds(
    Region,
    region_id=integers,
    split=st.text(),
    category=st.text(),
    area=integers,
    bbox=st.tuples(*[st.floats(allow_nan=False)] * 4),
    counts=st.text(),
    expressions=st.lists(expressions, max_size=3).map(tuple),
    second_counts=st.text(),
)
sides = st.integers(1, 2**31 - 1)
records = st.builds(
    ImageRecord,
    image_id=integers,
    path=st.text(),
    width=sides,
    height=sides,
    regions=st.lists(regions, max_size=3).map(tuple),
    second=st.text(),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(records, max_size=5))
def test_records_survive_the_file(tmp_path_factory: pytest.TempPathFactory, wanted: list[ImageRecord]) -> None:
    path = tmp_path_factory.mktemp("index") / "x.parquet"
    index.write_records(path, wanted, {"source": "x", "folder": "y", "root_listing": "z"})
    found = index.read_index(path)
    assert list(found.records()) == wanted
    assert [found.record(i) for i in range(len(found))] == wanted
    assert (found.source, found.folder, found.root_listing) == ("x", "y", "z")
    assert [path.name for path in path.parent.iterdir()] == ["x.parquet"]


def test_rows_are_found_across_row_groups(tmp_path: Path) -> None:
    wanted = [ImageRecord(i, f"{i}.jpg", 1, 1) for i in range(3 * index.ROWS_PER_GROUP + 1)]
    index.write_records(tmp_path / "x.parquet", wanted, {"source": "x", "folder": "y", "root_listing": "z"})
    found = pickle.loads(pickle.dumps(index.read_index(tmp_path / "x.parquet")))
    order = np.random.default_rng(0).permutation(len(wanted))
    assert [found.record(int(i)).image_id for i in order] == order.tolist()
    with pytest.raises(IndexError):
        found.record(len(wanted))


@pytest.mark.parametrize("name", tuple(index.READERS))
def test_build_keeps_all_of_the_world(settings_of: Config, tmp_path: Path, name: str) -> None:
    report = index.build(name, settings_of, tmp_path)
    found = index.read_index(tmp_path / f"{name}.parquet")
    assert (report["images"], report["skipped"]) == (len(found), {})
    assert report["expressions"] == sum(split["expressions"] for split in report.get("splits", {}).values())
    for record in found.records():
        assert open_image(settings_of.paths.root, record.path).size == (record.width, record.height)
        assert all(region.area > 0 for region in record.regions)
        assert all(bool(region.expressions) == (name not in ("sav", "openimages")) for region in record.regions)
        if record.second:
            assert open_image(settings_of.paths.root, record.second).size == (record.width, record.height)


def test_building_twice_gives_the_same_bytes(settings_of: Config, tmp_path: Path) -> None:
    for name in ("refcoco", "sa1b"):
        for folder in ("one", "two"):
            index.build(name, settings_of, tmp_path / folder)
        assert (tmp_path / "one" / f"{name}.parquet").read_bytes() == (tmp_path / "two" / f"{name}.parquet").read_bytes()


def test_bad_records_are_counted_and_too_many_stop_the_run(settings_of: Config, tmp_path: Path) -> None:
    images = sorted((Path(settings_of.paths.root) / "coco2014/train2014").iterdir())
    images[0].unlink()
    with pytest.raises(
        ValueError, match=r"sources.refcoco: .* cannot be used, index.max_bad_fraction is 0.01: .* image file not in"
    ):
        index.build("refcoco", settings_of, tmp_path)
    assert not list(tmp_path.glob("*.parquet*")) and not list(tmp_path.glob(".*"))
    lenient = dataclasses.replace(settings_of, index=config.Index(0.5))
    report = index.build("refcoco", lenient, tmp_path)
    ((reason, skipped),) = report["skipped"].items()
    assert "image file" in reason and skipped["count"] >= len(skipped["examples"]) > 0


@pytest.mark.parametrize(
    ("name", "one"), (("sav", "*.npz"), ("openimages", "masks/train/*.png"), ("describe", "SAV/images/*.tar"))
)
def test_bad_records_of_the_other_sets_are_counted_too(settings_of: Config, tmp_path: Path, name: str, one: str) -> None:
    path = sorted((Path(settings_of.paths.root) / settings_of.sources[name].split("/")[0]).rglob(one))[0]
    path.write_bytes(path.read_bytes()[:50]) if name != "describe" else path.unlink()
    with pytest.raises(ValueError, match=rf"sources.{name}: .* cannot be used, index.max_bad_fraction is 0.01: "):
        index.build(name, settings_of, tmp_path)
    assert not list(tmp_path.glob("*.parquet*")) and not list(tmp_path.glob(".*"))
    report = index.build(name, dataclasses.replace(settings_of, index=config.Index(0.5)), tmp_path)
    assert sum(reason["count"] for reason in report["skipped"].values()) > 0
    assert report["images"] == len(index.read_index(tmp_path / f"{name}.parquet"))


def test_missing_folders_are_named_with_their_keys(settings_of: Config, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(settings_of, paths=config.Paths(str(tmp_path / "nothing")))
    for name in (*index.READERS, "sa1b"):
        with pytest.raises(FileNotFoundError, match=rf"nothing.*not found.*paths.root.*sources.{name} "):
            index.build(name, elsewhere, tmp_path)


def test_what_is_no_index_is_named(settings_of: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x.parquet: no such index.*stages.index"):
        index.read_index(tmp_path / "x.parquet")
    index.build("sa1b", settings_of, tmp_path)
    with pytest.raises(ValueError, match=r"sa1b.parquet: not an index of image records"):
        index.read_index(tmp_path / "sa1b.parquet")


def test_unknown_sources_are_named(settings_of: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sources.nothing"):
        index.build("nothing", settings_of, tmp_path)


@pytest.mark.parametrize(
    ("name", "pattern"),
    (
        ("refcoco_plus", "ref_seg/refcoco+/refs(unc).p"),
        ("sav", "sav/npz/sav_000/masklet_data_00005.npz"),
        ("openimages", "openimages/train-annotations-object-segmentation.csv"),
        ("describe", "describe/COCOStuff/annotations.json"),
        ("describe", "describe/LVIS/images/00000.tar"),
    ),
)
def test_every_listing_is_watched(settings_of: Config, tmp_path: Path, name: str, pattern: str) -> None:
    root = Path(settings_of.paths.root)
    index.build(name, settings_of, tmp_path)
    found = index.read_index(tmp_path / f"{name}.parquet")
    index.check_listing(found, root)
    path = root / pattern
    if name == "sav":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(index.ListingChanged, match=rf"{name}.parquet .*dvc repro .*index@{name}"):
        index.check_listing(found, root)


def test_a_changed_listing_is_noticed(settings_of: Config, tmp_path: Path) -> None:
    root = Path(settings_of.paths.root)
    index.build("refcoco", settings_of, tmp_path)
    index.build("sa1b", settings_of, tmp_path)
    found = index.read_index(tmp_path / "refcoco.parquet")
    index.check_listing(found, root)
    with (root / "ref_seg/refcoco/instances.json").open("a") as file:
        file.write("\n")
    with pytest.raises(index.ListingChanged, match=r"refcoco.parquet .*dvc repro"):
        index.check_listing(found, root)
    index.subset_sa1b(settings_of, tmp_path)
    next((root / "sa1b").glob("*.jpg")).unlink()
    with pytest.raises(index.ListingChanged):
        index.subset_sa1b(settings_of, tmp_path)
    with pytest.raises(index.ListingChanged):
        index.check_listing(index.read_index(tmp_path / "sa1b_subset.parquet"), root)


def test_the_subset_is_the_first_by_name_or_a_seeded_sample(settings_of: Config, tmp_path: Path) -> None:
    def subset(order: str, seed: int) -> list[ImageRecord]:
        chosen = dataclasses.replace(settings_of.subset_sa1b, order=order, seed=seed)
        index.subset_sa1b(dataclasses.replace(settings_of, subset_sa1b=chosen), tmp_path)
        return list(index.read_index(tmp_path / "sa1b_subset.parquet").records())

    assert index.build("sa1b", settings_of, tmp_path)["images"] == 8
    first = subset("name", 0)
    assert [record.image_id for record in first] == [223_750 + 3 * i for i in range(5)]
    assert subset("seed", 1) == subset("seed", 1)
    assert len({tuple(record.image_id for record in subset("seed", seed)) for seed in range(4)}) > 1
    for i, record in enumerate(first):
        scene, rng = scenes.make_scene(3, "sa1b", i, 1.0)
        masks = scenes.render(scene, 1.0, rng)[1]
        assert [region.area for region in record.regions] == masks.sum((1, 2)).tolist()
        assert open_image(settings_of.paths.root, record.path).size == (record.width, record.height)
    assert {"::" in record.path for record in first} == {True, False}
    many = dataclasses.replace(settings_of.subset_sa1b, images=9)
    with pytest.raises(ValueError, match="subset_sa1b.images: 9 asked for, but the index has 8"):
        index.subset_sa1b(dataclasses.replace(settings_of, subset_sa1b=many), tmp_path)


def test_listing_sa1b_opens_no_json_and_knows_every_layout(tmp_path: Path) -> None:
    base = tmp_path / "sa1b"
    for folder, stem in ((".", "sa_1"), ("sa_000007", "sa_2"), ("sa_000008", "sa_3")):
        (base / folder).mkdir(parents=True, exist_ok=True)
        for suffix in (".jpg", ".json"):
            (base / folder / f"{stem}{suffix}").write_text("not JSON")
    for folder, name in (("img", "sa_4.jpg"), ("js", "sa_4.json"), ("img", "sa_5.jpg"), ("js", "sa_6.json")):
        (base / folder).mkdir(exist_ok=True)
        (base / folder / name).write_text("not JSON")
    with tarfile.open(base / "sa_000009.tar", "w") as shard:
        shard.add(base / "sa_1.jpg", "deep/sa_8.jpg")
        shard.add(base / "sa_1.json", "deep/sa_8.json")
    found = list(sa1b.list_entries(tmp_path, "sa1b"))
    entries = {entry.name: entry for entry in found if isinstance(entry, sa1b.Entry)}
    assert sorted(entries) == ["sa_1", "sa_2", "sa_3", "sa_4", "sa_8"]
    assert (entries["sa_4"].image, entries["sa_4"].annotation) == ("sa1b/img/sa_4.jpg", "sa1b/js/sa_4.json")
    assert {skipped for skipped in found if isinstance(skipped, Skipped)} == {
        Skipped("sa_5", "image without JSON"),
        Skipped("sa_6", "JSON without image"),
    }
    with pytest.raises(ValueError, match=r"sa_000009.tar::.*not an SA-1B annotation"):
        sa1b.read_image(tmp_path, entries["sa_8"])


def test_a_broken_json_is_skipped_and_counted(settings_of: Config, tmp_path: Path) -> None:
    broken = Path(settings_of.paths.root) / "sa1b/sa_223750.json"
    content = json.loads(broken.read_text())
    content["annotations"][0]["segmentation"]["counts"] = "zzz"
    broken.write_text(json.dumps(content))
    empty = broken.with_stem("sa_223756")
    empty.write_text(json.dumps(json.loads(empty.read_text()) | {"annotations": []}))
    index.build("sa1b", settings_of, tmp_path)
    report = index.subset_sa1b(dataclasses.replace(settings_of, index=config.Index(0.5)), tmp_path)
    assert report["images"] == 3
    assert {reason: skipped["examples"] for reason, skipped in report["skipped"].items()} == {
        "not an SA-1B annotation: RLE counts that cannot be decoded": ["sa_223750"],
        "not an SA-1B annotation: no mask with a pixel": ["sa_223756"],
    }


def test_a_damaged_shard_is_named_and_loses_nothing_silently(settings_of: Config, tmp_path: Path) -> None:
    shard = Path(settings_of.paths.root) / "sa1b/sa_000000.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        second = archive.getmembers()[1].offset
    for damaged in (whole[: second + 600], whole[:second] + b"!" + whole[second + 1 :], b"no tar" * 200):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"sa_000000.tar: not a readable tar"):
            index.build("sa1b", settings_of, tmp_path)


def test_images_are_upright_and_errors_name_the_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("L", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no")
    image = open_image(tmp_path, "turned.jpg")
    assert (image.size, image.mode) == ((4, 8), "RGB")
    with pytest.raises(ValueError, match="broken.jpg: not a readable image"):
        open_image(tmp_path, "broken.jpg")
    with pytest.raises(FileNotFoundError, match="absent.jpg.*paths.root"):
        open_image(tmp_path, "absent.jpg")
    with pytest.raises(ValueError, match="turned.jpg: ends before byte"):
        open_image(tmp_path, "turned.jpg::0:99999999")
    whole = BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(whole.getvalue()[:-500])
    with pytest.raises(ValueError, match="truncated.jpg: not a readable image: image file is truncated"):
        open_image(tmp_path, "truncated.jpg")
    assert image_size(tmp_path, "turned.jpg") == (4, 8)
    with pytest.raises(FileNotFoundError, match="absent.jpg.*paths.root"):
        image_size(tmp_path, "absent.jpg")


@pytest.mark.parametrize("locator", ("../a.jpg", "/etc/passwd", "x/../../a.jpg::0:4", "../a.npz::frame1"))
def test_locators_never_leave_the_root(tmp_path: Path, locator: str) -> None:
    (tmp_path / "root/x").mkdir(parents=True)
    Image.new("L", (8, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"leaves paths.root .*; refused"):
        open_image(tmp_path / "root", locator)
    with pytest.raises(ValueError, match=r"leaves paths.root .*; refused"):
        read_bytes(tmp_path / "root", locator)
