import dataclasses
import json
import multiprocessing
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ans.config import Config, ConfigError, load
from ans.config.schema import World
from ans.data import arrow, index, masks, parts, readers
from ans.data.images import image_size, open_image, read_bytes
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.selection import select
from ans.data.sources import common, sa1b
from ans.data.subset_sa1b import subset_sa1b
from ans.toy import scenes, world
from ans.workspace import Workspace
from tests.indexes import write_records
from tests.opened import interrupt, opened

PARAMS = Path(__file__).parents[2] / "params.yaml"
SETS = ("refcoco", "refcoco_plus", "refcocog", "refcocog_google", "grefcoco", "reasonseg", "sav", "sav_video", "openimages")
SETS += ("describe",)


@pytest.fixture(scope="module")
def one_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "world"
    counts = {"sa1b_images": 8, "sav_pairs": 6, "openimages_images": 3, "describe_images": 8, "reasonseg_images": 4}
    world.write_world(path, World(seed=3, train_images=12, val_images=3, test_images=2, **counts, shift=1.0))
    return path


@pytest.fixture
def settings_of(tmp_path: Path, one_world: Path) -> Config:
    """The repository's parameters over a small world of its own."""
    shutil.copytree(one_world, tmp_path / "world")
    base = load(PARAMS)
    google = {"reader": "refcoco", "folder": base.sources["refcocog"].folder}
    return base.changed(
        {
            "paths.root": str(tmp_path / "world"), "subset_sa1b.images": 5, "sources.refcocog_google": google,
            "own": {"own": {"folder": "own"}},
        }
    )  # fmt: skip


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
    ignore_counts=st.text(),
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
    path = tmp_path_factory.mktemp("index") / "x"
    write_records(path, wanted, {"source": "x", "folder": "y", "reader": "sav", "root_listing": "z"})
    found = arrow.read_index(path)
    assert list(found.records()) == wanted
    assert [found.record(i) for i in range(len(found))] == wanted
    assert (found.source, found.folder, found.root_listing) == ("x", "y", "z")
    assert [path.name for path in path.parent.iterdir()] == ["x"]


def test_rows_are_found_across_batches(tmp_path: Path) -> None:
    wanted = [ImageRecord(i, f"{i}.jpg", 1, 1) for i in range(3 * arrow.ROWS_PER_BATCH + 1)]
    write_records(tmp_path / "x", wanted, {"source": "x", "folder": "y", "reader": "sav", "root_listing": "z"})
    found = pickle.loads(pickle.dumps(arrow.read_index(tmp_path / "x")))
    order = np.random.default_rng(0).permutation(len(wanted))
    assert [found.record(int(i)).image_id for i in order] == order.tolist()
    with pytest.raises(IndexError):
        found.record(len(wanted))


@pytest.mark.parametrize("name", (*SETS, "own"))
@pytest.mark.second
def test_build_keeps_all_of_the_world(settings_of: Config, tmp_path: Path, name: str) -> None:
    report = index.build(name, settings_of, Workspace(tmp_path))
    found = arrow.read_index(Workspace(tmp_path).index(name))
    assert (report["images"], report["skipped"]) == (len(found), {})
    assert report["expressions"] == sum(split["expressions"] for split in report.get("splits", {}).values())
    for record in found.records():
        assert open_image(settings_of.paths.root, record.path).size == (record.width, record.height)
        assert all(region.area > 0 for region in record.regions) or name == "grefcoco"
        if name != "own":
            assert all(bool(region.expressions) == (name not in ("sav", "sav_video", "openimages")) for region in record.regions)
        if record.second:
            assert open_image(settings_of.paths.root, record.second).size == (record.width, record.height)


def test_building_twice_gives_the_same_bytes(settings_of: Config, tmp_path: Path) -> None:
    for name in ("refcoco", "sa1b"):
        for folder in ("one", "two"):
            index.build(name, settings_of, Workspace(tmp_path / folder))
        assert (Workspace(tmp_path / "one").index(name)).read_bytes() == (Workspace(tmp_path / "two").index(name)).read_bytes()


def test_bad_records_are_counted_and_too_many_stop_the_run(settings_of: Config, tmp_path: Path) -> None:
    images = sorted((Path(settings_of.paths.root) / "coco2014/train2014").iterdir())
    images[0].unlink()
    with pytest.raises(
        ValueError, match=r"sources.refcoco: .* cannot be used, index.max_bad_fraction is 0.01: .* image file not in"
    ):
        index.build("refcoco", settings_of, Workspace(tmp_path))
    assert not list(Workspace(tmp_path).indexes.iterdir())
    lenient = settings_of.changed({"index.max_bad_fraction": 0.5})
    report = index.build("refcoco", lenient, Workspace(tmp_path))
    ((reason, skipped),) = report["skipped"].items()
    assert "image file" in reason and skipped["count"] >= len(skipped["examples"]) > 0


@pytest.mark.parametrize(
    ("name", "one"), (("sav", "*.npz"), ("openimages", "masks/train/*.png"), ("describe", "SAV/images/*.tar"))
)
def test_bad_records_of_the_other_sets_are_counted_too(settings_of: Config, tmp_path: Path, name: str, one: str) -> None:
    path = sorted((Path(settings_of.paths.root) / settings_of.sources[name].folder).rglob(one))[0]
    path.write_bytes(path.read_bytes()[:50]) if name != "describe" else path.unlink()
    with pytest.raises(ValueError, match=rf"sources.{name}: .* cannot be used, index.max_bad_fraction is 0.01: "):
        index.build(name, settings_of, Workspace(tmp_path))
    assert not list(Workspace(tmp_path).indexes.iterdir())
    report = index.build(name, settings_of.changed({"index.max_bad_fraction": 0.5}), Workspace(tmp_path))
    assert sum(reason["count"] for reason in report["skipped"].values()) > 0
    assert report["images"] == len(arrow.read_index(Workspace(tmp_path).index(name)))


def test_missing_folders_are_named_with_their_keys(settings_of: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing: not found; paths.root names it"):
        index.build("sav", settings_of.changed({"paths.root": str(tmp_path / "nothing")}), Workspace(tmp_path))
    (tmp_path / "root").mkdir()
    for name in (*SETS, "sa1b"):
        source = settings_of.sources[name]
        with pytest.raises(FileNotFoundError, match=rf"root.*not found.*paths.root.*sources.{name} "):
            readers.listing_checksum(tmp_path / "root", source.folder, name, source.reader)


def test_sets_that_are_not_there_hinder_no_run_that_does_not_read_them(settings_of: Config, tmp_path: Path) -> None:
    """Their indexes have no rows and say so; `select` names all of those that a run is to read, and how to make them."""
    (tmp_path / "root").mkdir()
    chosen = settings_of.changed({"paths.root": str(tmp_path / "root")})
    for name in ("refcoco", "sa1b"):
        report = index.build(name, chosen, Workspace(tmp_path))
        assert report == {"source": name, "absent": settings_of.sources[name].folder, "images": 0, "skipped": {}}
    assert subset_sa1b(chosen, Workspace(tmp_path))["absent"] == settings_of.sources["sa1b"].folder
    index.build("sav", settings_of, Workspace(tmp_path))
    select(["sav"], Workspace(tmp_path), "train")
    with pytest.raises(FileNotFoundError, match=r"^refcoco, sa1b_subset: not below .*index@refcoco index@sa1b`$"):
        select(["refcoco", "sav", "sa1b_subset"], Workspace(tmp_path), "train")
    assert len(arrow.read_index(Workspace(tmp_path).index("refcoco"))) == 0


def test_what_is_no_index_is_named(settings_of: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x: no such index.*dvc repro"):
        arrow.read_index(tmp_path / "x")
    index.build("sa1b", settings_of, Workspace(tmp_path))
    with pytest.raises(ValueError, match=r"sa1b.arrow: not an index of image records"):
        arrow.read_index(Workspace(tmp_path).index("sa1b"))


def test_unknown_sources_are_named(settings_of: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sources.nothing"):
        index.build("nothing", settings_of, Workspace(tmp_path))


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
    index.build(name, settings_of, Workspace(tmp_path))
    found = arrow.read_index(Workspace(tmp_path).index(name))
    readers.check_listing(found, root)
    path = root / pattern
    if name == "sav":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(readers.ListingChanged, match=rf"{name}.arrow .*dvc repro .*index@{name}"):
        readers.check_listing(found, root)


def test_a_changed_listing_is_noticed(settings_of: Config, tmp_path: Path) -> None:
    root = Path(settings_of.paths.root)
    index.build("refcoco", settings_of, Workspace(tmp_path))
    index.build("sa1b", settings_of, Workspace(tmp_path))
    found = arrow.read_index(Workspace(tmp_path).index("refcoco"))
    readers.check_listing(found, root)
    with (root / "ref_seg/refcoco/instances.json").open("a") as file:
        file.write("\n")
    with pytest.raises(readers.ListingChanged, match=r"refcoco.arrow .*dvc repro"):
        readers.check_listing(found, root)
    subset_sa1b(settings_of, Workspace(tmp_path))
    next((root / "sa1b").glob("*.jpg")).unlink()
    with pytest.raises(readers.ListingChanged):
        subset_sa1b(settings_of, Workspace(tmp_path))
    with pytest.raises(readers.ListingChanged):
        readers.check_listing(arrow.read_index(Workspace(tmp_path).index("sa1b_subset")), root)


def test_the_subset_is_the_first_by_name_or_a_seeded_sample(settings_of: Config, tmp_path: Path) -> None:
    def subset(order: str, seed: int) -> list[ImageRecord]:
        subset_with(settings_of, tmp_path, order=order, seed=seed)
        return list(arrow.read_index(Workspace(tmp_path).index("sa1b_subset")).records())

    assert index.build("sa1b", settings_of, Workspace(tmp_path))["images"] == 12
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
    with pytest.raises(ValueError, match="subset_sa1b.images: 13 asked for, but the index has 12"):
        subset_with(settings_of, tmp_path, images=13)


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
    found = list(common.read(sa1b, tmp_path, "sa1b", "sa1b"))
    entries = {entry.name: entry for entry in found if isinstance(entry, sa1b.ImageFiles)}
    assert sorted(entries) == ["sa_1", "sa_2", "sa_3", "sa_4", "sa_8"]
    assert (entries["sa_4"].image, entries["sa_4"].annotation) == ("sa1b/img/sa_4.jpg", "sa1b/js/sa_4.json")
    assert {skipped for skipped in found if isinstance(skipped, Skipped)} == {
        Skipped("sa_5", "image without JSON"),
        Skipped("sa_6", "JSON without image"),
    }
    limits = load(PARAMS).subset_sa1b
    assert str(sa1b.read_masks(tmp_path, entries["sa_8"], limits).reason).startswith("not an SA-1B annotation")


def test_a_broken_json_is_skipped_and_counted(settings_of: Config, tmp_path: Path) -> None:
    broken = Path(settings_of.paths.root) / "sa1b/sa_223750.json"
    content = json.loads(broken.read_text())
    content["annotations"][0]["segmentation"]["counts"] = "zzz"
    broken.write_text(json.dumps(content))
    empty = broken.with_stem("sa_223756")
    empty.write_text(json.dumps(json.loads(empty.read_text()) | {"annotations": []}))
    index.build("sa1b", settings_of, Workspace(tmp_path))
    report = subset_sa1b(settings_of.changed({"index.max_bad_fraction": 0.5}), Workspace(tmp_path))
    assert report["images"] == 3
    assert {reason: skipped["examples"] for reason, skipped in report["skipped"].items()} == {
        "not an SA-1B annotation: RLE counts that cannot be decoded": ["sa_223750"],
        "no mask with a pixel": ["sa_223756"],
    }


def test_a_damaged_shard_is_named_and_loses_nothing_silently(settings_of: Config, tmp_path: Path) -> None:
    shard = Path(settings_of.paths.root) / "sa1b/sa_000000.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        second = archive.getmembers()[1].offset
    unfinished = whole[:second] + bytes(1 << 20)  # its space was asked for beforehand
    for damaged in (whole[: second + 600], whole[:second] + b"!" + whole[second + 1 :], b"no tar" * 200, unfinished):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"sa_000000.tar: not a readable tar"):
            index.build("sa1b", settings_of, Workspace(tmp_path))


def test_what_lies_beside_the_shards_is_left_alone_and_said(settings_of: Config, tmp_path: Path) -> None:
    before = index.build("sa1b", settings_of, Workspace(tmp_path))
    base = Path(settings_of.paths.root) / "sa1b"
    for name in ("sa_co_gold.tar", "sa_000009.tar.gz", "sa_000009.TAR"):
        (base / name).write_bytes(b"something else")
    (base / "train/sa_000009").mkdir(parents=True)
    (base / "sa_000777/sa_000777").mkdir(parents=True)
    after = index.build("sa1b", settings_of, Workspace(tmp_path))
    noted = {
        sa1b.ASIDE: {"count": 4, "examples": ["sa_000009.TAR", "sa_000009.tar.gz", "sa_co_gold.tar", "train"]},
        sa1b.EMPTY: {"count": 1, "examples": ["sa_000777"]},
    }
    assert after == before | {"noted": noted}
    for path in base.iterdir():
        if path.name not in ("sa_000009.tar.gz", "train"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=r"sa1b: no image and no shard .*, only sa_000009.tar.gz, train"):
        index.build("sa1b", settings_of, Workspace(tmp_path))


def test_parts_stay_when_the_disk_fails(settings_of: Config, tmp_path: Path, runs: Path) -> None:
    """And go when a file was at fault: whoever mends it may change what the parts were made from."""
    root = Path(settings_of.paths.root)
    (tmp_path / "index").write_text("in the way of the folder")
    with pytest.raises(OSError):
        index.build("sav", settings_of, Workspace(tmp_path / "index"), workers=1)
    assert list(runs.glob("index-sav-*/*"))
    (tmp_path / "index").unlink()
    with opened(root) as read:
        index.build("sav", settings_of, Workspace(tmp_path / "index"), workers=1)
    assert read == [] == list(runs.iterdir())
    (root / "sav/npz/sav_000/masklet_data_00003.npz").write_bytes(b"")
    strict = settings_of.changed({"index.max_bad_fraction": 0.0})
    with pytest.raises(ValueError, match="cannot be used"):
        index.build("sav", strict, Workspace(tmp_path / "index"), workers=1)
    assert not list(runs.iterdir())


def test_a_cap_on_the_subsets_masks(settings_of: Config, tmp_path: Path) -> None:
    index.build("sa1b", settings_of, Workspace(tmp_path))
    whole = subset_sa1b(settings_of, Workspace(tmp_path))
    report = subset_sa1b(settings_of.changed({"sources.sa1b.max_samples": 7}), Workspace(tmp_path))
    assert report["regions"] == 7 < whole["regions"]


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


def subset_with(settings_of: Config, folder: Path, workers: int | None = 1, part: int = 128, **changes: object) -> dict:
    changed = settings_of.changed({f"subset_sa1b.{name}": value for name, value in changes.items()})
    return subset_sa1b(changed, Workspace(folder), workers, part)


def test_masks_of_the_subset_are_filtered(settings_of: Config, tmp_path: Path) -> None:
    """Against the JSONs, read here once more."""
    index.build("sa1b", settings_of, Workspace(tmp_path))
    root = Path(settings_of.paths.root)
    path = Workspace(tmp_path).index("sa1b_subset")
    subset_with(settings_of, tmp_path, images=12)
    stated = {}
    for record in arrow.read_index(path).records():
        annotation = next(entry.annotation for entry in common.read(sa1b, root, "sa1b", "sa1b") if entry.image == record.path)
        content = json.loads(read_bytes(root, annotation))
        stated[record.image_id] = content["annotations"]
        assert [dataclasses.astuple(region)[0] for region in record.regions] == [a["id"] for a in content["annotations"]]
        for region, found in zip(record.regions, content["annotations"], strict=True):
            assert (region.counts, region.area, list(region.bbox)) == (
                found["segmentation"]["counts"], found["area"], found["bbox"],
            )  # fmt: skip
            # what the file states is what the mask has
            assert masks.measure(region.counts, record.height, record.width) == (region.area, region.bbox)
    limits = {"min_area_share": 0.03, "max_area_share": 0.12, "min_predicted_iou": 0.9, "min_stability_score": 0.94}

    def kept(height: int, width: int, annotation: dict) -> bool:
        share = annotation["area"] / (height * width)
        good = annotation["predicted_iou"] >= 0.9 and annotation["stability_score"] >= 0.94
        return 0.03 <= share <= 0.12 and good

    lenient = settings_of.changed({"index.max_bad_fraction": 0.9})
    report = subset_with(lenient, tmp_path, images=12, **limits)
    found = {record.image_id: record for record in arrow.read_index(path).records()}
    size = {record.image_id: (record.height, record.width) for record in found.values()}
    wanted = {i: [a["id"] for a in stated[i] if kept(*size[i], a)] for i in size}
    assert {i: [region.region_id for region in record.regions] for i, record in found.items()} == wanted
    assert 0 < sum(map(len, wanted.values())) < sum(map(len, stated.values()))
    assert len(found) + report["skipped"].get("no mask within the limits", {"count": 0})["count"] == 12
    subset_with(settings_of, tmp_path, images=12, max_masks=1)
    assert [[r.region_id for r in record.regions] for record in arrow.read_index(path).records()] == [
        [stated[i][0]["id"]] for i in sorted(stated)
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        ({"area": 2.5}, "id and area must be integers"),
        ({"area": 10**9}, "area that the image does not have"),
        ({"area": -1}, "area that the image does not have"),
        ({"id": "7"}, "id and area must be integers"),
        ({"id": 7}, "duplicate id"),
        ({"id": 2**63}, "id and area must be integers"),
        ({"bbox": [1, 2, 3]}, "bbox that is not four numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "bbox that is not four numbers"),
        ({"segmentation": {"size": [1, 2], "counts": "0"}}, "RLE of another size than the image"),
        ({"segmentation": {"size": [4, 5], "counts": "050?"}}, "RLE that does not fill the image"),
        ({"segmentation": []}, "an annotation without id, area, bbox, or segmentation with size and counts"),
        ({"predicted_iou": None}, "an annotation without predicted_iou"),
    ),
)
@pytest.mark.second
def test_annotations_of_sa1b_of_another_form_are_skipped(tmp_path: Path, change: dict, reason: str) -> None:
    pixels = np.zeros((4, 5), np.uint8)
    pixels[:, 1] = pixels[0, 2] = 1
    mask = {"size": [4, 5], "counts": masks.from_array(pixels)}
    annotation = {"id": 7, "area": 5, "bbox": [1.0, 0.0, 2.0, 4.0], "segmentation": mask, "predicted_iou": 0.9}
    image = {"image_id": 3, "width": 5, "height": 4}
    limits = load(PARAMS).changed({"subset_sa1b.min_predicted_iou": 0.5}).subset_sa1b
    entry = sa1b.ImageFiles("sa_3", "sa_3.jpg", "sa_3.json")
    (tmp_path / "sa_3.json").write_text(json.dumps({"image": image, "annotations": [annotation]}))
    assert sa1b.read_masks(tmp_path, entry, limits).id == [7]
    (tmp_path / "sa_3.json").write_text(
        json.dumps({"image": image, "annotations": [annotation, annotation | {"id": 8} | change]})
    )
    assert sa1b.read_masks(tmp_path, entry, limits) == Skipped("sa_3", f"not an SA-1B annotation: {reason}")


@pytest.mark.parametrize("name", ("refcoco", "sa1b", "sav_video", "own"))
@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_bytes(settings_of: Config, tmp_path: Path, name: str) -> None:
    reports = [index.build(name, settings_of, Workspace(tmp_path / str(workers)), workers, part=2) for workers in (1, 2, 3)]
    assert reports[0] == reports[1] == reports[2]
    contents = [Workspace(tmp_path / str(workers)).index(name).read_bytes() for workers in (1, 2, 3)]
    assert contents[0] == contents[1] == contents[2]
    if name == "sa1b":
        for workers in (1, 2, 3):
            subset_with(settings_of, tmp_path / str(workers), workers, part=2, order="seed", seed=4)
        assert len({Workspace(tmp_path / str(n)).index("sa1b_subset").read_bytes() for n in (1, 2, 3)}) == 1


def test_an_interrupted_run_is_taken_up_where_it_was(settings_of: Config, tmp_path: Path, runs: Path) -> None:
    index.build("sa1b", settings_of, Workspace(tmp_path))
    subset_with(settings_of, tmp_path, part=3, images=12)
    path = Workspace(tmp_path).index("sa1b_subset")
    whole = path.read_bytes()
    root = Path(settings_of.paths.root)
    path.unlink()
    with opened(root, interrupt(8)), pytest.raises(KeyboardInterrupt):
        subset_with(settings_of, tmp_path, part=3, images=12)
    assert not path.exists() and len(list(runs.glob("*/0*"))) == 2, "two parts of three images are whole"
    with opened(root) as read:
        subset_with(settings_of, tmp_path, part=3, images=12)
    assert len(read) == 6 and path.read_bytes() == whole, "one file is opened for each of the six images that were left"
    assert not list(runs.iterdir())


def test_parts_of_other_settings_are_left_alone(settings_of: Config, tmp_path: Path, runs: Path) -> None:
    index.build("sa1b", settings_of, Workspace(tmp_path))
    for number, limit in ((1, None), (2, 1), (2, None)):
        with opened(Path(settings_of.paths.root), interrupt(3)), pytest.raises(KeyboardInterrupt):
            subset_with(settings_of, tmp_path, part=1, images=12, max_masks=limit)
        assert len(list(runs.iterdir())) == number
    assert sorted(len(list(folder.glob("0*"))) for folder in runs.iterdir()) == [2, 4]


def test_a_failed_run_leaves_nothing(settings_of: Config, tmp_path: Path, runs: Path) -> None:
    """What an error names may be mended in place, so no part may outlive it."""
    next((Path(settings_of.paths.root) / "sav/npz").rglob("*.npz")).write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be used"):
        index.build("sav", settings_of, Workspace(tmp_path / "index"))
    assert not list(runs.iterdir()) and not [path for path in (tmp_path / "index").rglob("*") if path.is_file()]


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from ans.config import load
from ans.data import index
from ans.workspace import Workspace
def audit(event, arguments):
    if event == "open" and str(arguments[0]).endswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
if len(sys.argv) > 3:
    sys.addaudithook(audit)
settings = load("params.yaml").changed({"paths.root": sys.argv[1]})
index.build("sav", settings, Workspace(Path(sys.argv[2])), workers=1, part=2)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_index_and_the_next_one_the_same(settings_of: Config, tmp_path: Path, runs: Path) -> None:
    index.build("sav", settings_of, Workspace(tmp_path / "whole"), part=2)
    command = [sys.executable, "-c", KILLED, settings_of.paths.root, str(tmp_path / "index")]
    repository = PARAMS.parent
    killed = subprocess.run([*command, "masklet_data_00005.npz"], cwd=repository, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "index").exists()
    assert len(list(runs.glob("*/0*"))) == 2
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    assert Workspace(tmp_path / "index").index("sav").read_bytes() == Workspace(tmp_path / "whole").index("sav").read_bytes()


def test_caps_keep_the_first(settings_of: Config, tmp_path: Path) -> None:
    def build(**caps: int) -> tuple[list[ImageRecord], dict]:
        capped = settings_of.changed({f"sources.refcoco.{name}": value for name, value in caps.items()})
        report = index.build("refcoco", capped, Workspace(tmp_path))
        return list(arrow.read_index(Workspace(tmp_path).index("refcoco")).records()), report

    every, _ = build()
    assert build(max_images=3)[0] == every[:3]
    flat = [(record.image_id, region) for record in every for region in record.regions]
    for cap in (1, 4, 5, len(flat), 10**6):
        records, report = build(max_samples=cap)
        assert [(record.image_id, region) for record in records for region in record.regions] == flat[:cap]
        assert report["regions"] == len(flat[:cap])
    whole = index.build("sa1b", settings_of, Workspace(tmp_path))["images"]
    capped = settings_of.changed({"sources.sa1b.max_images": 3})
    assert (whole, index.build("sa1b", capped, Workspace(tmp_path))["images"]) == (12, 3)


def test_the_report_counts_areas_and_splits(tmp_path: Path) -> None:
    """Of gRefCOCO, where a text may be of nothing: objects by image, split, area (None: nothing), and number of texts."""
    objects = [(1, "train", None, 1), (1, "val", 1, 2), (1, "train", 1023, 1), (2, "train", 1024, 3), (2, "train", 2**21, 1)]
    folder = tmp_path / "world" / "ref_seg" / "grefcoco"
    (folder / "coco2014/train2014").mkdir(parents=True)
    images, annotations, refs = [], [], []
    for number in (1, 2):
        name = f"COCO_train2014_{number:012d}.jpg"
        images.append({"id": number, "file_name": name, "height": 2**11, "width": 2**11})
        (folder / "coco2014/train2014" / name).touch()
    for number, (image, split, area, texts) in enumerate(objects, 1):
        if area is not None:
            mask = {"size": [2**11, 2**11], "counts": [0, area, 2**22 - area]}
            annotations.append({"id": number, "image_id": image, "category_id": 1, "segmentation": mask, "iscrowd": 0})
        sentences = [{"sent_id": 10 * number + text, "sent": "x", "raw": "x", "tokens": ["x"]} for text in range(texts)]
        refs.append(
            {
                "ref_id": number, "image_id": image, "split": split, "sentences": sentences, "category_id": 1,
                "file_name": f"COCO_train2014_{image:012d}_{number}.jpg", "ann_id": [-1 if area is None else number],
                "no_target": area is None,
            }
        )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    base = load(PARAMS).changed({"paths.root": str(tmp_path / "world")})
    report = index.build("grefcoco", base, Workspace(tmp_path / "index"))
    assert report == {
        "source": "grefcoco", "images": 2, "regions": 5, "expressions": 8, "skipped": {},
        "regions_by_area": {"no pixel": 1, "1..1023": 2, "1024..9215": 1, "1048576..": 1},
        "splits": {
            "train": {"images": 2, "regions": 4, "expressions": 6}, "val": {"images": 1, "regions": 1, "expressions": 2},
        },
    }  # fmt: skip


@pytest.mark.parametrize("mode", ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"))
def test_images_of_every_kind_are_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.array([[0, 255], [255, 0], [0, 0]], np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    image.save(path, quality=100)
    found = open_image(tmp_path, path.name)
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found, int) - grey[..., None]).max() <= (120 if mode in ("CMYK", "YCbCr") else 0)
    assert image_size(tmp_path, path.name) == found.size == (2, 3)


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.asarray(open_image(tmp_path, "x.png"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("size", ((1, 1), (1, 500), (12_000, 3)))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_of_every_kind_and_orientation(tmp_path: Path, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    found = open_image(tmp_path, "x.png")
    assert found.size == image_size(tmp_path, "x.png") == (size if orientation < 5 else size[::-1])
    # where the first pixel goes, by the EXIF standard: rows and columns seen as top/bottom, left/right, or swapped
    right, bottom = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
    if orientation >= 5:
        right, bottom = orientation in (6, 7), orientation in (7, 8)
    row, column = (found.height - 1 if bottom else 0), (found.width - 1 if right else 0)
    assert np.asarray(found)[row, column].tolist() == [255, 255, 255]


def test_an_image_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="x.png: not a readable image: Image size"):
        open_image(tmp_path, "x.png")


def _hold(folder: Path, seconds: float, begun: Any) -> None:
    with parts.locked(folder):
        begun.set()
        time.sleep(seconds)
        shutil.rmtree(folder)


def test_two_that_share_a_folder_for_unfinished_work_take_turns(tmp_path: Path) -> None:
    """Two clones with one ANS_RUNS: the first removes the folder when it is done, and the second begins after that."""
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    other = fork.Process(target=_hold, args=(tmp_path / "parts", 0.5, begun))
    other.start()
    assert begun.wait(10)
    with parts.locked(tmp_path / "parts"):
        assert not other.is_alive() or other.join(5) is None
        assert (tmp_path / "parts" / parts.LOCK).is_file()
        again = fork.Process(target=_hold, args=(tmp_path / "parts", 0, begun))
        begun.clear()
        again.start()
        assert not begun.wait(0.3), "it waits"
    assert begun.wait(10)
    again.join(10)
    assert not (tmp_path / "parts").exists()
