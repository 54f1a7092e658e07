import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from ans.config.schema import World
from ans.data import masks
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import common, refcoco
from ans.toy import scenes, world
from ans.toy.world import python2_pickle
from tests.data.worlds import ONE_OF_EACH, scene_of_image

SMALL = World(seed=3, train_images=6, val_images=2, test_images=1, **ONE_OF_EACH, shift=0.0)


def ref(ref_id: int, ann_id: Any, image_id: int = 7, split: str = "train", **changes: Any) -> dict[str, Any]:
    sentence = {"tokens": ["red", "box"], "raw": "RED box", "sent_id": ref_id, "sent": "red box"}
    fields = {"sent_ids": [ref_id], "file_name": "COCO_train2014_000000000007_3.jpg", "ann_id": ann_id, "ref_id": ref_id}
    return fields | {"image_id": image_id, "split": split, "category_id": 4, "sentences": [sentence]} | changes


def annotation(id_: int, segmentation: Any, image_id: int = 7) -> dict[str, Any]:
    return {"id": id_, "image_id": image_id, "category_id": 4, "iscrowd": 0, "segmentation": segmentation}


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def publish(root: Path, refs: list[dict[str, Any]], annotations: list[dict[str, Any]], missing: tuple[int, ...] = ()) -> None:
    folder = root / "ref_seg/refcoco"
    images_at = root / "coco2014/train2014"
    folder.mkdir(parents=True)
    images_at.mkdir(parents=True)
    images = []
    for id_ in (7, 8):
        name = f"COCO_train2014_{id_:012d}.jpg"
        images.append({"id": id_, "file_name": name, "width": 20, "height": 10})
        if id_ not in missing:
            Image.new("RGB", (20, 10)).save(images_at / name)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "box"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(python2_pickle(refs))


def read(root: Path) -> list[ImageRecord | Skipped]:
    return list(common.read(refcoco, root, "ref_seg/refcoco", "refcoco"))


def decode(counts: str) -> np.ndarray:
    return coco.decode({"size": [10, 20], "counts": counts})


def test_overlapping_polygons_are_united(tmp_path: Path) -> None:
    publish(tmp_path, [ref(0, 1)], [annotation(1, [box(2, 2, 10, 6), box(6, 4, 14, 8)])])
    (record,) = read(tmp_path)
    assert isinstance(record, ImageRecord)
    assert (record.image_id, record.path) == (7, "coco2014/train2014/COCO_train2014_000000000007.jpg")
    (region,) = record.regions
    expected = np.zeros((10, 20), np.uint8)
    expected[2:6, 2:10] = 1
    expected[4:8, 6:14] = 1
    assert (decode(region.counts) == expected).all()
    assert (region.area, region.bbox, region.category) == (56, (2.0, 2.0, 12.0, 6.0), "box")
    assert (region.expressions[0].sent, region.expressions[0].raw) == ("red box", "RED box")


def test_rle_in_both_forms(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), np.uint8, order="F")
    mask[3:6, 4:9] = 1
    compressed = coco.encode(mask)["counts"].decode()
    listed = masks.run_lengths(compressed).tolist()
    size = [10, 20]
    rows = [annotation(1, {"size": size, "counts": compressed}), annotation(2, {"size": size, "counts": listed})]
    publish(tmp_path, [ref(0, 1), ref(1, 2)], rows)
    (record,) = read(tmp_path)
    assert isinstance(record, ImageRecord)
    assert all((decode(region.counts) == mask).all() for region in record.regions)


def test_bad_records_are_skipped_with_a_reason_and_the_others_kept(tmp_path: Path) -> None:
    square = [box(2, 2, 6, 6)]
    rows = [annotation(1, square), annotation(2, []), annotation(3, square, image_id=8), annotation(4, [[1, 1, 4, 4]])]
    rows += [annotation(5, {"size": [10, 20], "counts": "not counts"}), annotation(6, {"size": [10, 20], "counts": [5, 5]})]
    rows += [
        annotation(7, {"size": [20, 10], "counts": [200]}),
        annotation(8, [[1, 1, 4, 4, 1, 1e9]]),
        annotation(9, [[1, 1, 2, 2, 3, "x"]]),
    ]
    rows += [annotation(10, None), annotation(11, {"size": [10, 20], "counts": [200]}), annotation(12, square, image_id=9)]
    refs = [ref(0, 1), ref(1, 2), ref(2, 99), ref(3, 3, image_id=8), ref(4, 4), ref(5, 1, image_id=55), ref(6, 5), ref(7, 6)]
    refs += [ref(number + 1, number) for number in range(7, 13)]
    publish(tmp_path, refs, rows, missing=(8,))
    found = read(tmp_path)
    assert [len(record.regions) for record in found if isinstance(record, ImageRecord)] == [1]
    assert {item.key: item.reason for item in found if isinstance(item, Skipped)} == {
        "ref 1": "empty segmentation",
        "ref 2": "annotation not in instances.json",
        "ref 3": "image file not in coco2014/train2014",
        "ref 4": "polygon of fewer than three points: four numbers, a box?",
        "ref 5": "image not in instances.json",
        "ref 6": "RLE counts that cannot be decoded",
        "ref 7": "RLE that does not fill the image",
        "ref 8": "RLE of another size than the image: height and width are swapped",
        "ref 9": "polygon far outside the image",
        "ref 10": "polygon with a coordinate that is not a number: a text",
        "ref 11": "empty segmentation: null",
        "ref 12": "mask without a pixel",
        "ref 13": "annotation of another image",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    (
        ("sentences", "text", "sentences is 'text', expected list"),
        ("sentences", [{"sent_id": 0, "raw": "x"}], "no 'sent'"),
        ("image_id", "7", "image_id is '7', expected int"),
        ("split", 3, "split is 3, expected str"),
    ),
)
def test_refs_of_another_form_name_the_file_and_the_field(tmp_path: Path, key: str, value: Any, message: str) -> None:
    publish(tmp_path, [ref(0, 1, **{key: value})], [annotation(1, [box(2, 2, 6, 6)])])
    with pytest.raises(ValueError, match=r"refs\(unc\).p: .*" + message):
        read(tmp_path)


def test_refs_of_one_object_are_joined(tmp_path: Path) -> None:
    publish(tmp_path, [ref(0, 1), ref(1, 1)], [annotation(1, [box(2, 2, 6, 6)])])
    (record,) = read(tmp_path)
    assert isinstance(record, ImageRecord)
    assert [expression.sent_id for expression in record.regions[0].expressions] == [0, 1]


def test_missing_files_are_named_with_their_keys(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"instances.json.*paths.root.*sources.refcoco"):
        read(tmp_path)
    publish(tmp_path, [ref(0, 1)], [annotation(1, [box(2, 2, 6, 6)])])
    (tmp_path / "coco2014/train2014").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no images for sources.refcoco.*paths.root"):
        read(tmp_path)


@pytest.mark.parametrize("protocol", range(6))
def test_refs_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    refs = [ref(0, 1, comment="café")]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(refs, protocol))
    assert refcoco.load_refs(path) == refs


def test_refs_of_python_2_may_hold_bytes_that_are_not_ascii(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(b"(lp1\n(dp2\nS'sent'\np3\nS'caf\\xe9 \xe9'\np4\nsa.")
    assert refcoco.load_refs(path) == [{"sent": "caf\xe9 \xe9"}]


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", (0, 2, 4))
def test_a_hostile_pickle_is_refused_unexecuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([Hostile()], protocol))
    with pytest.raises(ValueError, match=r"refs.p.*system"):
        refcoco.load_refs(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", (b"", b"garbage", b"(lp1\n", b"Pid\n.", b"I1\n.", b"(lI1\na.", b"(lp99999999999\n"))
def test_what_is_no_list_of_refs_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="refs.p"):
        refcoco.load_refs(path)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_are_those_of_pycocotools(height: int, width: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    runs = masks.run_lengths(counts)
    values = np.arange(len(runs)) % 2
    assert (np.repeat(values, runs).reshape(width, height).T == mask).all()
    assert masks.from_segmentation({"size": [height, width], "counts": counts}, height, width) == counts


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12))
def test_broken_run_lengths_are_refused_or_fill_the_image(text: str) -> None:
    try:
        counts = masks.from_segmentation({"size": [4, 5], "counts": text}, 4, 5)
    except ValueError:
        return
    assert masks.run_lengths(counts).sum() == 20


def publish_gref(root: Path, refs: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> list[ImageRecord | Skipped]:
    publish(root, [], annotations)
    (root / "ref_seg/refcoco/grefs(unc).json").write_text(json.dumps(refs))
    return list(common.read(refcoco, root, "ref_seg/refcoco", "grefcoco"))


def test_expressions_of_several_objects_and_of_none(tmp_path: Path) -> None:
    crowd = annotation(3, {"size": [10, 20], "counts": [200]}) | {"iscrowd": 1}
    rows = [annotation(1, [box(2, 2, 6, 6)]), annotation(2, [box(4, 2, 9, 6)]) | {"category_id": 5}, crowd]
    refs = [ref(10, 1), ref(11, [1, 2]), ref(12, [2, 3]), ref(13, [-1], no_target=True), ref(14, [2]), ref(15, [2])]
    *said, record = publish_gref(tmp_path, refs, rows)
    assert {item.reason for item in said} == {common.NO_CLASS}, "5 is no class of the listing"
    assert [(r.region_id, r.area, r.bbox, r.category) for r in record.regions] == [
        (10, 16, (2.0, 2.0, 4.0, 4.0), "box"),
        (11, 28, (2.0, 2.0, 7.0, 4.0), ""),
        (12, 20, (4.0, 2.0, 5.0, 4.0), ""),
        (13, 0, (0.0, 0.0, 0.0, 0.0), ""),
        (14, 20, (4.0, 2.0, 5.0, 4.0), ""),
        (15, 20, (4.0, 2.0, 5.0, 4.0), ""),
    ]
    assert not decode(record.regions[3].counts).any() and len(record.regions[3].expressions) == 1


def test_targets_that_cannot_be_used_are_skipped_with_a_reason(tmp_path: Path) -> None:
    rows = [annotation(1, [box(2, 2, 6, 6)]), annotation(2, []), annotation(3, {"size": [10, 20], "counts": [5, 195]})]
    rows[2]["iscrowd"] = 1
    refs = [ref(1, [1, 99]), ref(2, [1, 2]), ref(3, [3]), ref(4, [1])]
    *skipped, record = publish_gref(tmp_path, refs, rows)
    assert [region.region_id for region in record.regions] == [4]
    assert {item.key: item.reason for item in skipped} == {
        "ref 1": "annotation not in instances.json",
        "ref 2": "empty segmentation",
        "ref 3": "only crowds",
    }


@pytest.mark.parametrize("ann_id", ("1", None, [1, "2"], [[1]], 2**70))
def test_ann_ids_of_another_form_name_the_file(tmp_path: Path, ann_id: Any) -> None:
    with pytest.raises(ValueError, match=r"grefs\(unc\).json: ann_id is "):
        publish_gref(tmp_path, [ref(1, ann_id)], [annotation(1, [box(2, 2, 6, 6)])])


@pytest.mark.parametrize("content", ("{", "{}", "[1]", "[" * 10**5))
def test_what_is_no_list_of_grefs_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "grefs(unc).json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"grefs\(unc\).json"):
        refcoco.load_refs(path)


def test_the_google_split_is_its_own_file(tmp_path: Path) -> None:
    publish(tmp_path, [ref(0, 1)], [annotation(1, [box(2, 2, 6, 6)])])
    google = [ref(5, 1, split="val")]
    (tmp_path / "ref_seg/refcoco/refs(google).p").write_bytes(pickle.dumps(google, 2))
    (record,) = common.read(refcoco, tmp_path, "ref_seg/refcoco", "refcocog_google")
    assert [(region.split, region.expressions[0].sent_id) for region in record.regions] == [("val", 5)]


def test_no_target_of_the_world_is_in_its_scene(tmp_path: Path) -> None:
    world.write_world(tmp_path, SMALL)
    records = list(common.read(refcoco, tmp_path, "ref_seg/grefcoco", "grefcoco"))
    by_image = scene_of_image(SMALL)
    none = several = 0
    for record in records:
        scene, rng = scenes.make_scene(SMALL.seed, *by_image[record.image_id], SMALL.shift)
        drawn = scenes.render(scene, SMALL.shift, rng)[1]
        for region in record.regions:
            found = masks.decode(region.counts, record.height, record.width).astype(bool)
            inside = [k for k, mask in enumerate(drawn) if (mask & found).sum() > 0.5 * mask.sum()]
            none, several = none + (not inside), several + (len(inside) == 2)
            (expression,) = region.expressions
            if not inside:
                colour, shape = expression.sent.split()
                assert region.area == 0 and scenes.matches(scene, scenes.Description(colour=colour, shape=shape)) == []
    assert none == several == len(records) > 0
