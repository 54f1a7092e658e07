import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.config.schema import World
from ans.data.images import open_image
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import common, describe_anything
from ans.toy import scenes, world_loops
from ans.toy.expressions import VOCABULARY

SIZE = World(
    seed=3,
    train_images=1,
    val_images=1,
    test_images=1,
    sa1b_images=1,
    sav_pairs=1,
    openimages_images=1,
    describe_images=60,
    reasonseg_images=4,
    shift=1.0,
)
MASK = np.zeros((10, 20), np.uint8, order="F")
MASK[3:6, 4:9] = 1
RLE = {"size": [10, 20], "counts": coco.encode(MASK)["counts"].decode()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    world_loops.write(path, SIZE, {})
    return path


def region(**changes: Any) -> dict[str, Any]:
    return {"img_id": "1", "ann_id": 5, "image": "1.jpg", "tar_file": "0.tar", "mask_rle": RLE, "caption": " A hat.\n"} | changes


def publish(root: Path, annotations: Any, members: dict[str, bytes] | None = None, split: str = "LVIS") -> Path:
    place = root / "dam" / split
    (place / "images").mkdir(parents=True)
    (place / "annotations.json").write_text(json.dumps(annotations))
    jpeg = BytesIO()
    Image.new("RGB", (20, 10), (0, 0, 255)).save(jpeg, "JPEG")
    with tarfile.open(place / "images/0.tar", "w") as shard:
        for name, content in ({"1.jpg": jpeg.getvalue()} if members is None else members).items():
            info = tarfile.TarInfo(name)
            info.size = len(content or jpeg.getvalue())
            shard.addfile(info, BytesIO(content or jpeg.getvalue()))
            info = tarfile.TarInfo(f"{name.split('.')[0]}.pickle")
            shard.addfile(info, BytesIO())
    return place


def read(root: Path) -> list[ImageRecord | Skipped]:
    return list(common.read(describe_anything, root, "dam", "describe"))


@pytest.mark.second
def test_the_worlds_regions_are_read_back(root: Path) -> None:
    records = list(common.read(describe_anything, root, "describe", "describe"))
    assert len(records) == SIZE.describe_images
    assert [record.image_id for record in records] == list(range(len(records)))
    by_split = {"COCOStuff": (0, 2), "LVIS": (1,), "SAV": (3,)}
    order = [index for part in by_split.values() for index in range(SIZE.describe_images) if index % 4 in part]
    numbers = []
    for index, record in zip(order, records, strict=True):
        scene, rng = scenes.make_scene(SIZE.seed, "describe", index, SIZE.shift)
        pixels, masks = scenes.render(scene, SIZE.shift, rng)
        first_frame = Image.open(BytesIO(world_loops.jpeg(pixels)))
        assert (np.asarray(open_image(root, record.path)) == np.asarray(first_frame)).all()
        assert len(record.regions) == (len(masks) if "COCOStuff" in record.path else 1)
        for found in record.regions:
            mask = coco.decode({"size": [record.height, record.width], "counts": found.counts})
            (target,) = (i for i in range(len(masks)) if (masks[i] == mask).all())
            (expression,) = found.expressions
            shape = scene.shapes[target]
            assert (expression.sent, expression.raw, expression.sent_id) == (shape.caption, shape.caption, found.region_id)
            assert set(expression.sent.split()) <= set(VOCABULARY)
            assert scenes.refers(scene, scenes.Description(shape.size, shape.texture, shape.colour, shape.shape)) == target
            numbers.append(found.region_id)
    assert numbers == list(range(len(numbers)))


def test_the_world_has_the_published_variety(root: Path) -> None:
    content = {path.parent.name: json.loads(path.read_text()) for path in (root / "describe").glob("*/annotations.json")}
    assert all(isinstance(regions, list) for regions in content["COCOStuff"].values())
    assert all(isinstance(region, dict) for region in content["LVIS"].values())
    with tarfile.open(root / "describe/LVIS/images/00000.tar") as shard:
        names = shard.getnames()
    first = next(iter(content["LVIS"].values()))
    assert len(first["image"]) == 16 and names[0] == f"{int(first['img_id'])}.jpg" and names[1].endswith(".pickle")
    with tarfile.open(root / "describe/SAV/images/00000.tar") as shard:
        assert [name.split(".", 1)[1] for name in shard.getnames()[:3]] == ["0.jpg", "1.jpg", "pickle"]
    assert all(len(regions[0]["mask_rle"]) == 2 for regions in content["SAV"].values())


@pytest.mark.parametrize(
    ("members", "image"),
    (
        (("1.jpg",), "1.jpg"),
        (("1.jpg",), "000000000001.jpg"),
        (("folder/1.jpg",), "other/1.jpg"),
        (("v_1.1.jpg", "v_1.0.jpg"), "v_1.jpg"),
        (("v_1.1.jpg", "v_1.0.jpg"), "v_1.0.jpg"),
        (("0.jpg",), "0000.jpg"),
    ),
)
@pytest.mark.parametrize("rle", (RLE, [RLE], [RLE, None]))
def test_the_image_is_found_by_every_published_name(tmp_path: Path, members: tuple[str, ...], image: str, rle: Any) -> None:
    other = BytesIO()
    Image.new("RGB", (3, 3)).save(other, "JPEG")
    content = {name: other.getvalue() if name.endswith(".1.jpg") else b"" for name in members}
    publish(tmp_path, {"x": region(image=image, mask_rle=rle)}, content)
    (record,) = read(tmp_path)
    assert open_image(tmp_path, record.path).getpixel((0, 0))[2] > 200
    assert (record.regions[0].area, record.regions[0].bbox) == (15, (4.0, 3.0, 5.0, 3.0))
    assert record.regions[0].expressions[0].sent == "A hat."


def test_bad_regions_are_skipped_with_a_reason_and_the_others_kept(tmp_path: Path) -> None:
    bad = [
        (region(caption=" \n"), "empty text"),
        (region(caption=None), "region without image, mask_rle and caption"),
        ("no region", "region without image, mask_rle and caption"),
        (region(caption="\ud800"), "region without image, mask_rle and caption"),
        (region(mask_rle=[]), "region without a mask in the first frame"),
        (region(mask_rle=[None, RLE]), "region without a mask in the first frame"),
        (region(mask_rle="RLE"), "region without a mask in the first frame"),
        (region(mask_rle=RLE | {"size": [20, 10]}), "RLE of another size than the image: height and width are swapped"),
        (region(mask_rle=RLE | {"counts": "not counts"}), "RLE counts that cannot be decoded"),
        (region(mask_rle=RLE | {"counts": [200]}), "mask without a pixel"),
    ]
    annotations = {
        "1": [*(content for content, _ in bad), region()],
        "2": [region(image="2.jpg")],
        "3": region(image="3.jpg"),
        "4": [{}],
    }
    publish(tmp_path, annotations, {"1.jpg": b"", "3.jpg": b"\xff\xd8 no"})
    found = read(tmp_path)
    (record,) = (record for record in found if isinstance(record, ImageRecord))
    assert [(region.region_id, region.split) for region in record.regions] == [(len(bad), "train")]
    reasons = {f"LVIS/1[{i}]": reason for i, (_, reason) in enumerate(bad)}
    reasons |= {"LVIS/2[0]": "image not in the shards", "LVIS/4[0]": "image not in the shards"}
    assert {item.key: item.reason for item in found if isinstance(item, Skipped)} == reasons | {
        "LVIS/3[0]": "image that cannot be read"
    }


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dam: not found.*paths.root.*sources.describe"):
        read(tmp_path)
    (tmp_path / "dam/images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"dam: no folder with an annotations.json.*sources.describe"):
        read(tmp_path)
    place = publish(tmp_path, [region()])
    with pytest.raises(ValueError, match=r"annotations.json: expected an object with image ids"):
        read(tmp_path)
    (place / "annotations.json").write_text("{")
    with pytest.raises(ValueError, match=r"annotations.json: not JSON"):
        read(tmp_path)
    (place / "annotations.json").write_text(json.dumps({"1": region()}))
    shard = place / "images/0.tar"
    whole = shard.read_bytes()
    second = 512 * (1 + -(-tarfile.open(shard).getmember("1.jpg").size // 512))
    for damaged in (b"no tar" * 200, whole[:700], whole[:second] + b"!" + whole[second + 1 :]):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"0.tar: not a readable tar"):
            read(tmp_path)
