import dataclasses
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ans import config
from ans.config import Config, ConfigError, World
from ans.data import index, world
from ans.data.images import open_image
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources import sa1b

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def settings_of(tmp_path: Path) -> Config:
    """The repository's parameters over a small world of its own."""
    world.write_world(tmp_path / "world", World(seed=3, train_images=12, val_images=3, test_images=2, sa1b_images=8, shift=1.0))
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
)
sides = st.integers(1, 2**31 - 1)
records = st.builds(
    ImageRecord, image_id=integers, path=st.text(), width=sides, height=sides, regions=st.lists(regions, max_size=3).map(tuple)
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


@pytest.mark.parametrize("name", ("refcoco", "refcoco_plus", "refcocog"))
def test_build_keeps_all_of_the_world(settings_of: Config, tmp_path: Path, name: str) -> None:
    report = index.build(name, settings_of, tmp_path)
    found = index.read_index(tmp_path / f"{name}.parquet")
    assert (report["images"], report["skipped"]) == (len(found), {})
    assert report["expressions"] == sum(split["expressions"] for split in report["splits"].values())
    for record in found.records():
        assert open_image(settings_of.paths.root, record.path).size == (record.width, record.height)
        assert all(region.expressions and region.area > 0 for region in record.regions)


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


def test_unknown_sources_are_named(settings_of: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sources.nothing"):
        index.build("nothing", settings_of, tmp_path)


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
        scene, rng = world.make_scene(3, "sa1b", i, 1.0)
        masks = world.render(scene, 1.0, rng)[1]
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
    index.build("sa1b", settings_of, tmp_path)
    report = index.subset_sa1b(dataclasses.replace(settings_of, index=config.Index(0.5)), tmp_path)
    assert report["images"] == 4
    assert [reason["examples"] for reason in report["skipped"].values()] == [["sa_223750"]]


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
