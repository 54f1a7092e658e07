"""Which images and regions are for training."""

from pathlib import Path

import numpy as np

from ans.data import masks
from ans.data.arrow import read_index, write_records
from ans.data.records import Expression, ImageRecord, Region
from ans.data.samples import Regions, training_rows


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
    regions = Regions("some", read_index(path), None)
    assert [regions.sample(i)[1].region_id for i in range(regions.count)] == [2, 3, 7]
    assert training_rows([read_index(path)]) == ([(0, 4)], 1), "row 0 also has an evaluated region; row 1 has nothing to find"


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
    assert training_rows([one, two]) == ([], 1)
    assert training_rows([one, three]) == ([(0, 0)], 0)


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
    described = Regions("own", index, None, described=True)
    assert described.count == 1 and described.sample(0)[1].region_id == 1 and Regions("own", index, None).count == 4
