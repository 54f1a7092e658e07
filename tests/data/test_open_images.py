import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.config.schema import World
from ans.data.images import open_image
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import common, open_images
from ans.toy import scenes, world_loops

SIZE = World(
    seed=3,
    train_images=1,
    val_images=1,
    test_images=1,
    sa1b_images=1,
    sav_pairs=1,
    openimages_images=8,
    describe_images=1,
    reasonseg_images=4,
    shift=1.0,
)
HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
ID = "677c122b0eaa5d16"
HIGH_ID = "ff7c122b0eaa5d16"  # above 2 ** 63


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    world_loops.write(path, SIZE, {})
    return path


def publish(root: Path, rows: list[str], header: str = HEADER, classes: str = "LabelName,DisplayName\n/m/04yx4,Man\n") -> Path:
    base = root / "oi"
    for kind in ("images", "masks"):
        (base / kind / "train").mkdir(parents=True)
    for image_id in (ID, HIGH_ID):
        Image.new("RGB", (20, 10)).save(base / f"images/train/{image_id}.jpg")
    mask = np.zeros((16, 32), np.uint8)
    mask[4:8, 8:16] = 255
    Image.fromarray(mask).save(base / "masks/train/good.png")
    (base / open_images.ANNOTATIONS).write_text("\n".join([header, *rows]) + "\n")
    (base / open_images.CLASSES).write_text(classes)
    return base


def row(mask_path: str = "good.png", image_id: str = ID, box_id: str = "9a041d52") -> str:
    return f"{mask_path},{image_id},/m/04yx4,{box_id},0.1,0.2,0.3,0.4,,"


def read(root: Path) -> list[ImageRecord | Skipped]:
    return list(common.read(open_images, root, "oi", "openimages"))


def test_the_worlds_masks_are_read_back_at_the_images_size(root: Path) -> None:
    records = {record.path: record for record in common.read(open_images, root, "openimages", "openimages")}
    assert len(records) == SIZE.openimages_images
    for index in range(SIZE.openimages_images):
        (path,) = (path for path in records if path.endswith(f"{index:08x}.jpg"))
        record = records[path]
        scene, rng = scenes.make_scene(SIZE.seed, "openimages", index, SIZE.shift)
        masks = scenes.render(scene, SIZE.shift, rng)[1]
        assert open_image(root, path).size == (record.width, record.height) == (scene.width, scene.height)
        assert len(record.regions) == len(masks)
        for region, shape, mask in zip(record.regions, scene.shapes, masks, strict=True):
            read_mask = coco.decode({"size": [record.height, record.width], "counts": region.counts})
            assert (read_mask == mask).all()
            assert (region.category, region.split, region.expressions) == (shape.shape, "train", ())


def test_the_worlds_masks_are_of_another_size_and_of_both_kinds(root: Path) -> None:
    with open(root / "openimages" / open_images.ANNOTATIONS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == HEADER.split(",")
    modes = set()
    for row_ in rows:
        assert row_["MaskPath"] == f"{row_['ImageID']}_{row_['LabelName'].replace('/', '')}_{row_['BoxID']}.png"
        with Image.open(root / f"openimages/images/train/{row_['ImageID']}.jpg") as image:
            with Image.open(root / f"openimages/masks/train/{row_['MaskPath']}") as mask:
                assert mask.width > image.width and mask.width * image.height != mask.height * image.width
                modes.add(mask.mode)
    assert modes == {"1", "L"}


def test_a_mask_is_brought_to_the_images_size_by_the_nearest_pixel(tmp_path: Path) -> None:
    publish(tmp_path, [row(), row(image_id=HIGH_ID)])
    records = read(tmp_path)
    assert [record.image_id for record in records] == [int(ID, 16), int(HIGH_ID, 16) - 2**64]
    for record in records:
        (region,) = record.regions
        assert (region.region_id, region.category) == (0x9A041D52, "Man")
        # a pixel i of 20 (10) looks at pixel int(1.6 * (i + 0.5)) of 32 (16), where 8..15 (4..7) is the object
        assert (region.bbox, region.area) == ((5.0, 2.0, 5.0, 3.0), 15)


def test_columns_are_found_by_name_and_classes_with_or_without_a_header(tmp_path: Path) -> None:
    header = "ImageID,MaskPath,BoxID,LabelName"
    publish(tmp_path, [f"{ID},good.png,1f,/m/1"], header, '/m/0,"Plane, paper"\n/m/1,"Hat, straw"\n')
    (record,) = read(tmp_path)
    assert (record.regions[0].category, record.regions[0].region_id) == ("Hat, straw", 0x1F)


def test_bad_rows_are_skipped_with_a_reason_and_the_others_kept(tmp_path: Path) -> None:
    names = ("absent", "broken", "empty", "tall", "../good")
    rows = [row(), *(row(f"{name}.png") for name in names)]
    rows += [
        row("no_image.png", "0" * 16),
        row("outside.png", "../../secret/pic"),
        row("truncated.png", "a" * 16),
        row("boxless.png", box_id=""),
    ]
    base = publish(tmp_path, [*rows, "short.png," + ID])
    (base / "masks/train/broken.png").write_bytes((base / "masks/train/good.png").read_bytes()[:40])
    Image.new("L", (32, 16)).save(base / "masks/train/empty.png")
    Image.new("L", (16, 32), 255).save(base / "masks/train/tall.png")
    (base / f"images/train/{'a' * 16}.jpg").write_bytes(b"\xff\xd8 no")
    found = read(tmp_path)
    assert [len(record.regions) for record in found if isinstance(record, ImageRecord)] == [1]
    assert {item.key: item.reason for item in found if isinstance(item, Skipped)} == {
        "absent.png": "mask file not in masks/train",
        "broken.png": "mask that cannot be read",
        "empty.png": "mask without a pixel",
        "tall.png": "mask of another aspect than the image",
        "../good.png": "row without a mask's file name and a BoxID",
        "boxless.png": "row without a mask's file name and a BoxID",
        "short.png": "row without a mask's file name and a BoxID",
        "no_image.png": "image file not in images/train",
        "outside.png": "ImageID that is not 16 hexadecimal digits",
        "truncated.png": "image that cannot be read",
    }


def test_damaged_listings_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"oi: not found.*paths.root.*sources.openimages"):
        read(tmp_path)
    base = publish(tmp_path, [row()])
    for content, message in (
        (b"MaskPath,ImageID\n", "no column LabelName, BoxID"),
        (b"", "no column"),
        (b'a,"b', "readable"),
        (b"\xff", "utf-8"),
    ):
        (base / open_images.ANNOTATIONS).write_bytes(content)
        with pytest.raises(ValueError, match=f"{open_images.ANNOTATIONS}: .*{message}"):
            read(tmp_path)
    (base / open_images.CLASSES).unlink()
    with pytest.raises(FileNotFoundError, match=f"{open_images.CLASSES}: not found; sources.openimages"):
        read(tmp_path)
    (base / open_images.CLASSES).write_text("")
    (base / open_images.ANNOTATIONS).write_text(HEADER)
    (base / "masks/train").rename(base / "masks/elsewhere")
    with pytest.raises(FileNotFoundError, match=r"oi/masks/train: not found.*sources.openimages"):
        read(tmp_path)
