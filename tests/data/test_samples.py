"""Which images and regions are for training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ans.data import masks
from ans.data.arrow import Index, read_index
from ans.data.images import content
from ans.data.records import Expression, ImageRecord, Region
from ans.data.samples import Evaluated, Regions, training_rows
from tests.indexes import write_records


def test_no_evaluated_region_and_none_without_a_pixel_is_trained_on(tmp_path: Path) -> None:
    def region(number: int, split: str, area: int) -> Region:
        counts = masks.from_array(np.ones((4, 4)) if area else np.zeros((4, 4)))
        return Region(number, split, "", area, (0.0, 0.0, 4.0, 4.0), counts, (Expression(number, "it", "it"),))

    rows = [
        [region(1, "val", 16), region(2, "train", 16), region(3, "", 16)],
        [region(4, "train", 0)],
        [],
        [region(5, "testA", 16)],
        [region(6, "train", 0), region(7, "train", 16)],
    ]
    records = [ImageRecord(i, f"{i}.jpg", 4, 4, tuple(regions)) for i, regions in enumerate(rows)]
    path = tmp_path / "some.arrow"
    write_records(path, records, {"source": "some", "folder": "some", "reader": "sav", "root_listing": ""})
    index = read_index(path)
    regions = Regions("some", index, Evaluated([index]), None)
    assert [regions.sample(i)[1].region_id for i in range(regions.count)] == [7] and regions.left_out == 1
    assert Regions("some", index, Evaluated(), None).count == 3, "of row 0 too, where nothing is evaluated"
    assert training_rows([index], Evaluated([index])) == ([(0, 4)], 1), "row 1 has nothing to find"


def test_a_photograph_is_known_wherever_it_lies(tmp_path: Path) -> None:
    """As published, each RefCOCO set may have its own copy of COCO's images."""

    def write(name: str, split: str, path: str) -> None:
        counts = masks.from_array(np.ones((4, 4)))
        region = Region(1, split, "", 16, (0.0, 0.0, 4.0, 4.0), counts, (Expression(1, "it", "it"),))
        metadata = {"source": name, "folder": name, "reader": "sav", "root_listing": "x"}
        write_records(tmp_path / f"{name}.arrow", [ImageRecord(1, path, 4, 4, (region,))], metadata)

    image = "coco2014/train2014/COCO_train2014_000000000009.jpg"
    write("one", "train", f"ref_seg/refcocog/{image}")
    write("two", "testA", f"ref_seg/refcoco/{image}")
    write("three", "testA", "ref_seg/refcoco/coco2014/train2014/COCO_train2014_000000000010.jpg")
    one, two, three = (read_index(tmp_path / f"{name}.arrow") for name in ("one", "two", "three"))
    for other, kept in ((two, []), (three, [(0, 0)])):
        evaluated = Evaluated([one, other])
        assert training_rows([one, other], evaluated) == (kept, 1 - len(kept))
        assert Regions("one", one, evaluated, None).count == len(kept)


def test_a_photograph_is_known_by_its_content_too(tmp_path: Path) -> None:
    """The same bytes in another file, in a tar, and as own data; others of the same size are not taken for it."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x/evaluated.jpg").write_bytes(b"photograph")
    (tmp_path / "x/copy.png").write_bytes(b"photograph")
    (tmp_path / "x/other.jpg").write_bytes(b"phonograph")
    (tmp_path / "x/shard.tar").write_bytes(b"....photograph....")
    region = Region(1, "train", "", 16, (0.0, 0.0, 4.0, 4.0), masks.from_array(np.ones((4, 4))), (Expression(1, "it", "it"),))

    def index(name: str, split: str, *paths: str, known: str = "") -> Index:
        records = [ImageRecord(i, path, 4, 4, (replace(region, split=split),), content=known) for i, path in enumerate(paths)]
        metadata = {"source": name, "folder": name, "reader": "sav", "root_listing": "x"}
        write_records(tmp_path / f"{name}.arrow", records, metadata)
        return read_index(tmp_path / f"{name}.arrow")

    taught = index(
        "a", "train", "x/copy.png", "x/other.jpg", "x/shard.tar::4:10", "x/shard.tar::3:10", "x/gone.jpg", "x/v.mp4::7"
    )
    own = index("b", "train", "own/images/mine.jpg", known=content(b"photograph"))
    sound = [(0, 1), (0, 3), (0, 4), (0, 5)]
    for evaluated in (index("c", "val", "x/evaluated.jpg"), index("d", "val", "own/x.jpg", known=content(b"photograph"))):
        held = Evaluated([taught, own, evaluated], tmp_path)
        assert training_rows([taught, own], held) == (sound, 3)
        assert Regions("a", taught, held, None).left_out == 2 and Regions("b", own, held, None).left_out == 1
    by_name = Evaluated([taught, index("e", "val", "x/evaluated.jpg")])
    assert training_rows([taught, own], by_name)[1] == 0, "without the root nothing is opened"


def test_the_disk_is_asked_only_of_photographs_of_an_evaluated_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SA-1B's are larger than all that is evaluated, and there are eleven million."""
    asked: list[str] = []
    monkeypatch.setattr("ans.data.samples.byte_size", lambda root, path: asked.append(path) or 10)
    counts = masks.from_array(np.ones((4, 4)))
    records = [
        ImageRecord(0, "evaluated.jpg", 4, 4, (Region(1, "val", "", 16, (0.0, 0.0, 4.0, 4.0), counts),)),
        *(ImageRecord(i, f"{i}.jpg", 4, 3 + i, (Region(i, "", "", 16, (0.0, 0.0, 4.0, 4.0), counts),)) for i in range(1, 9)),
    ]
    write_records(tmp_path / "a.arrow", records, {"source": "a", "folder": "a", "reader": "sav", "root_listing": "x"})
    index = read_index(tmp_path / "a.arrow")
    held = Evaluated([index], tmp_path)
    assert Regions("a", index, held, None).count == 8 and asked == ["evaluated.jpg", "1.jpg"]
    held.add("a clip's frame.jpg")
    assert Regions("a", index, held, None).count == 8 and len(asked) == 3 + 8, "of which no record states the size"


def test_only_regions_with_a_text_are_described(tmp_path: Path) -> None:
    counts = masks.from_array(np.ones((4, 4)))
    said = [(), (Expression(1, "it", "it"),), ()]
    regions = tuple(Region(i, "train", "", 16, (0.0, 0.0, 4.0, 4.0), counts, texts) for i, texts in enumerate(said))
    write_records(
        tmp_path / "own.arrow",
        [ImageRecord(1, "a.jpg", 4, 4, regions), ImageRecord(2, "b.jpg", 4, 4, regions[:1])],
        {"source": "own", "folder": "own", "reader": "sav", "root_listing": "x"},
    )
    index = read_index(tmp_path / "own.arrow")
    described = Regions("own", index, Evaluated([index]), None, described=True)
    assert described.count == 1 and described.sample(0)[1].region_id == 1
    assert Regions("own", index, Evaluated([index]), None).count == 4
