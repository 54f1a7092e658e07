import hashlib
import json
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.config.schema import World
from ans.data import masks
from ans.data.sources.refcoco import load_refs
from ans.toy import expressions, scenes, world
from ans.toy.scenes import Description
from tests.data.worlds import scene_of_image

LOOPS = {"sa1b_images": 6, "sav_pairs": 52, "openimages_images": 8, "describe_images": 16, "reasonseg_images": 4}
SIZE = World(seed=3, train_images=50, val_images=12, test_images=8, **LOOPS, shift=1.0)
REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    world.write_world(path, SIZE)
    return path


def digest(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def parse(text: str) -> Description:
    """Words -> meaning; written apart from the generator, so that the two check each other."""
    words = text.split()
    relation, landmark = None, None
    for name, joint in (("left of", "to the left of"), ("right of", "to the right of"), ("above", "above"), ("below", "below")):
        if f" {joint} the " in text:
            head, tail = text.split(f" {joint} the ")
            relation, landmark, words = name, parse(tail), head.split()
    slots: dict[str, str] = {}
    kinds = {"size": scenes.RADII, "texture": scenes.TEXTURES, "colour": scenes.COLOURS, "shape": world.SHAPES}
    kinds["place"] = (*scenes.SIDES, *scenes.EXTREMES)
    for word in words:
        for kind, values in kinds.items():
            if word in values:
                assert kind not in slots, text
                slots[kind] = word
    return Description(**slots, relation=relation, landmark=landmark)


@pytest.mark.slow
def test_one_seed_gives_the_same_bytes_and_another_seed_others(root: Path, tmp_path: Path) -> None:
    world.write_world(tmp_path / "again", SIZE)
    assert digest(tmp_path / "again") == digest(root)
    small = World(seed=4, train_images=1, val_images=1, test_images=1, **dict.fromkeys(LOOPS, 1), shift=1.0)
    world.write_world(tmp_path / "other", small)
    name = "coco2014/train2014/COCO_train2014_000000001009.jpg"
    assert digest(tmp_path / "other")[name] != digest(root)[name]


@pytest.mark.second
def test_refuses_a_folder_with_content(root: Path) -> None:
    with pytest.raises(FileExistsError, match="not empty"):
        world.write_world(root, SIZE)


@pytest.mark.parametrize("name", REFS)
def test_every_expression_means_exactly_its_object(root: Path, name: str) -> None:
    by_image = scene_of_image(SIZE)
    for ref in load_refs(root / "ref_seg" / name / REFS[name]):
        scene, _ = scenes.make_scene(SIZE.seed, *by_image[ref["image_id"]], SIZE.shift)
        target = int(ref["file_name"].removesuffix(".jpg").rsplit("_", 1)[1])
        for sentence in ref["sentences"]:
            assert scenes.matches(scene, parse(sentence["sent"])) == [target], sentence["sent"]
            assert scenes.refers(scene, parse(sentence["sent"])) == target, sentence["sent"]
            assert set(sentence["tokens"]) <= set(expressions.VOCABULARY)
            assert sentence["raw"] != sentence["sent"] and sentence["tokens"] == sentence["sent"].split()
        texts = [sentence["sent"] for sentence in ref["sentences"]]
        assert len(set(texts)) == len(texts)
        if name == "refcoco+":
            assert texts[0] == scene.shapes[target].caption
            assert all(parse(text).place is None and parse(text).relation is None for text in texts)


@pytest.mark.parametrize("name", REFS)
def test_layout_is_the_published_one(root: Path, name: str) -> None:
    instances = json.loads((root / "ref_seg" / name / "instances.json").read_text())
    refs = load_refs(root / "ref_seg" / name / REFS[name])
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    images = {image["id"]: image for image in instances["images"]}
    categories = {category["id"]: category["name"] for category in instances["categories"]}
    assert len(annotations) == len(instances["annotations"])
    assert {ref["image_id"] for ref in refs} == set(images)
    assert [ref["ref_id"] for ref in refs] == list(range(len(refs)))
    sent_ids = [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]]
    assert sent_ids == list(range(len(sent_ids)))
    image_splits = defaultdict(set)
    for ref in refs:
        annotation = annotations[ref["ann_id"]]
        assert (annotation["image_id"], annotation["category_id"]) == (ref["image_id"], ref["category_id"])
        assert not annotation["iscrowd"]
        image_splits[ref["image_id"]].add(ref["split"])
        if ref["split"] in ("testA", "testB"):
            assert (categories[ref["category_id"]] in ("circle", "square")) == (ref["split"] == "testA")
    assert all(len(splits) == 1 for splits in image_splits.values())
    expected = {"train", "val", "test"} if name == "refcocog" else {"train", "val", "testA", "testB"}
    assert set.union(*image_splits.values()) == expected
    # the edge cases of the published sets
    assert any(
        isinstance(a["segmentation"], dict) and isinstance(a["segmentation"]["counts"], list) for a in annotations.values()
    )
    assert any(len(a["segmentation"]) > 1 for a in annotations.values() if not a["iscrowd"])
    referred = {ref["ann_id"] for ref in refs}
    assert any(a["id"] not in referred and not a["iscrowd"] for a in annotations.values())


def test_sets_overlap_as_the_real_ones_do(root: Path) -> None:
    split = {name: {ref["image_id"]: ref["split"] for ref in load_refs(root / "ref_seg" / name / REFS[name])} for name in REFS}
    assert split["refcoco"] == split["refcoco+"]
    leaks = [i for i, s in split["refcoco"].items() if s == "train" and split["refcocog"][i] in ("val", "test")]
    assert len(leaks) == round(0.08 * SIZE.train_images)


@pytest.mark.second
def test_polygons_rasterise_to_the_drawn_masks(root: Path) -> None:
    instances = json.loads((root / "ref_seg/refcocog/instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    by_image, parts = scene_of_image(SIZE), 0
    for annotation in instances["annotations"]:
        image = images[annotation["image_id"]]
        size = [image["height"], image["width"]]
        read = coco.decode({"size": size, "counts": masks.from_segmentation(annotation["segmentation"], *size)})
        scene, rng = scenes.make_scene(SIZE.seed, *by_image[image["id"]], SIZE.shift)
        drawn = scenes.render(scene, SIZE.shift, rng)[1]
        assert drawn.sum(0).max() == 1, "objects overlap"
        if annotation["iscrowd"]:
            assert (read == drawn.any(0)).all()
            continue
        mask = drawn[(annotation["id"] - 300_000 - 11 * image["id"]) // 2]
        assert (read & mask).sum() / (read | mask).sum() > 0.97
        parts += len(annotation["segmentation"]) > 1
        assert annotation["area"] == mask.sum()
    assert parts > 0


def test_pickles_are_of_both_kinds(root: Path) -> None:
    first = (root / "ref_seg/refcoco/refs(unc).p").read_bytes()
    assert first.startswith(b"(lp1\n") and b"S'train'\n" in first
    assert (root / "ref_seg/refcoco+/refs(unc).p").read_bytes().startswith(b"\x80\x02")
    value = [{"a": [1, -2], "b": "it's", "c": 'say "x"'}]
    assert pickle.loads(world.python2_pickle(value)) == value


def test_masks_lie_on_objects_of_their_colour() -> None:
    for index in range(10):
        scene, rng = scenes.make_scene(1, "train", index, 0.0)
        image, drawn = scenes.render(scene, 0.0, rng)
        for shape, mask in zip(scene.shapes, drawn, strict=True):
            colour = np.asarray(scenes.COLOURS[shape.colour]) + shape.tint
            middle = np.median(image[mask], axis=0) if shape.texture == "plain" else np.percentile(image[mask], 90, axis=0)
            assert np.abs(middle - colour).max() < 8
            assert shape.radius >= 0.11 * min(scene.width, scene.height)


def test_shift_changes_the_pixels_of_the_file(root: Path) -> None:
    pixels = np.asarray(Image.open(root / "coco2014/train2014/COCO_train2014_000000001009.jpg"), float)
    scene, rng = scenes.make_scene(SIZE.seed, "train", 0, SIZE.shift)
    plain, _ = scenes.render(scene, 0.0, rng)
    assert np.abs(pixels - plain).mean() > 10


def test_comparisons_of_positions_need_a_clear_margin() -> None:
    def scene(x: float) -> scenes.Scene:
        star = scenes.Shape("small", "plain", "red", "star", x=x, y=50)
        circle = scenes.Shape("small", "plain", "red", "circle", x=30, y=50)
        return scenes.Scene(100, 100, (star, circle), (0.0, 0.0, 0.0))

    for x, expected in ((60, 1), (33, None), (10, 0)):
        assert scenes.refers(scene(x), Description(place="leftmost")) == expected
    assert scenes.refers(scene(53), Description(place="left")) is None
    assert scenes.refers(scene(60), Description(place="left")) == 1
    beside = Description(relation="right of", landmark=Description(shape="circle"))
    assert scenes.refers(scene(60), beside) == 0
    assert scenes.refers(scene(33), beside) is None
    assert scenes.refers(scene(60), Description(colour="red")) is None
