import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ans.data import masks
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import common, reason_seg
from ans.toy import scenes, world_more
from tests.data.worlds import SMALLEST


def rows(mask: np.ndarray) -> list[str]:
    return ["".join(".#"[int(value)] for value in row) for row in mask]


def test_polygons_have_their_inside_and_their_outline() -> None:
    assert rows(masks.polygon(np.array([[1, 1], [5, 1], [1, 5]]), 7, 7)) == [
        ".......",
        ".#####.",
        ".####..",
        ".###...",
        ".##....",
        ".#.....",
        ".......",
    ]
    # halfway between two pixels an edge takes the one nearer to its left end
    assert rows(masks.polygon(np.array([[0, 0], [2, 1]]), 2, 3)) == ["##.", "..#"]
    assert rows(masks.polygon(np.array([[2, 0], [0, 1]]), 2, 3)) == ["..#", "##."]
    assert rows(masks.polygon(np.array([[1, 0], [0, 2]]), 3, 2)) == [".#", "#.", "#."]
    assert rows(masks.polygon(np.array([[1, 1]]), 3, 3)) == ["...", ".#.", "..."]
    # a hole where a polygon covers twice (even-odd)
    twice = np.array([[0, 0], [6, 0], [6, 6], [0, 6], [0, 0], [2, 2], [4, 2], [4, 4], [2, 4], [2, 2]])
    assert not masks.polygon(twice, 7, 7)[3, 3] and masks.polygon(twice, 7, 7)[1, 5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-6, 20), st.integers(-6, 20)), min_size=1, max_size=7))
def test_polygons_are_what_a_test_of_each_pixel_says(points: list[tuple[int, int]]) -> None:
    height, width = 14, 15
    drawn = masks.polygon(np.array(points), height, width)
    for y in range(height):
        for x in range(width):
            edges = list(zip(points, points[1:] + points[:1], strict=True))
            near = min(distance(x, y, *edge) for edge in edges)
            if near <= 1:  # the outline may be there; on the outline itself it is
                assert drawn[y, x] or (x, y) not in points
                continue
            crossed = sum((a[1] <= y) != (b[1] <= y) and x < a[0] + (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]) for a, b in edges)
            assert drawn[y, x] == bool(crossed % 2)


def distance(x: float, y: float, a: tuple[int, int], b: tuple[int, int]) -> float:
    length = (b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2
    t = 0.0 if not length else min(max(((x - a[0]) * (b[0] - a[0]) + (y - a[1]) * (b[1] - a[1])) / length, 0), 1)
    return float(np.hypot(x - a[0] - t * (b[0] - a[0]), y - a[1] - t * (b[1] - a[1])))


def square(label: str, low: float, high: float) -> dict[str, Any]:
    return {"label": label, "points": [[low, low], [high, low], [high, high], [low, high]]}


def test_smaller_shapes_lie_on_larger_ones_whatever_their_order_and_label() -> None:
    shapes = [square("target", 4, 5), square("Ignore it", 2, 7.9), square("target", 0, 9), square("FLAG", 0, 9)]
    expected = np.ones((10, 10), np.uint8)
    expected[2:8, 2:8] = 255  # 7.9 is cut off
    expected[4:6, 4:6] = 1
    for order in (shapes, shapes[::-1]):
        assert (reason_seg.draw(order, 10, 10) == expected).all()


def publish(root: Path, name: str, content: Any, split: str = "val", encoding: str = "utf-8") -> None:
    place = root / "rs" / split
    place.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10)).save(place / f"{name}.jpg")
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (place / f"{name}.json").write_bytes(text.encode(encoding))


def read(root: Path) -> list[ImageRecord | Skipped]:
    return list(common.read(reason_seg, root, "rs", "reasonseg"))


def content(**changes: Any) -> dict[str, Any]:
    return {"text": ["who sits?", "the sitter"], "is_sentence": True, "shapes": [square("target", 1, 3)]} | changes


def test_one_record_per_question(tmp_path: Path) -> None:
    publish(tmp_path, "a", content())
    publish(tmp_path, "b", content(is_sentence=False, text=["caf\u00e9 \u2013 door"]), split="train", encoding="cp1252")
    publish(tmp_path, "c", content(shapes=[square("target", 1, 6), square("ignore", 2, 4)]), split="train")
    found = read(tmp_path)
    assert [(record.path, record.regions[0].split, record.regions[0].category, record.image_id) for record in found] == [
        ("rs/train/b.jpg", "train", "short", 0),
        ("rs/train/c.jpg", "train", "long", 1),
        ("rs/train/c.jpg", "train", "long", 1),
        ("rs/val/a.jpg", "val", "long", 2),
    ]
    texts = [record.regions[0].expressions[0].sent for record in found]
    assert texts == ["caf\u00e9 \u2013 door", "who sits?", "the sitter", "who sits?"]
    first, every = found[3].regions
    assert every.split == "val-all" and [one.sent for one in every.expressions] == ["who sits?", "the sitter"]
    assert (first.expressions, first.counts) == (every.expressions[:1], every.counts)
    (region,) = found[1].regions
    assert (region.area, region.bbox) == (36 - 9, (1.0, 1.0, 6.0, 6.0))
    assert masks.decode(region.ignore_counts, 10, 12)[2:5, 2:5].all() and masks.decode(region.ignore_counts, 10, 12).sum() == 9
    assert found[0].regions[0].ignore_counts == ""


@pytest.mark.parametrize(
    ("broken", "reason"),
    (
        (None, "image without JSON"),
        (content(shapes=[]), "no target that is drawn"),
        (content(shapes=[square("ignore", 1, 3)]), "no target that is drawn"),
        (content(text=[]), "no question"),
        (content(text="who?"), "text is 'who?', expected list"),
        (content(shapes=[{"label": "target", "points": [[1, 2, 3]]}]), "shape with a point that is not x and y"),
        (content(shapes=[{"label": "target", "points": [[1e9, 2]]}]), "shape far outside the image"),
        (content(shapes=[{"label": "target", "points": []}]), "shape without points"),
        ("{", "Expecting property name"),
    ),
)
def test_what_is_not_as_published_is_skipped_with_a_reason(tmp_path: Path, broken: Any, reason: str) -> None:
    publish(tmp_path, "a", broken)
    publish(tmp_path, "b", content())
    skipped, record = read(tmp_path)
    assert isinstance(record, ImageRecord) and skipped.key == "rs/val/a" and reason in skipped.reason


def test_the_worlds_questions_are_read_back(smallest_world: Path) -> None:
    found = list(common.read(reason_seg, smallest_world, "reason_seg/ReasonSeg", "reasonseg"))
    images = world_more.reason_images(SMALLEST)
    count = sum(images.values())
    assert len({record.path for record in found}) == count and len(found) == count + images["train"]
    assert {bool(record.regions[0].ignore_counts) for record in found} == {True, False}
    (record,) = (record for record in found if record.path.endswith("_00.jpg") and record.regions[0].expressions[0].sent_id == 0)
    scene, rng = scenes.make_scene(SMALLEST.seed, "reasonseg", 0, SMALLEST.shift)
    drawn = scenes.render(scene, SMALLEST.shift, rng)[1][0]
    found_mask = masks.decode(record.regions[0].counts, record.height, record.width).astype(bool)
    # the outline adds at most a pixel around
    assert (drawn & ~found_mask).sum() < 0.02 * drawn.sum() and (found_mask & ~drawn).sum() < 0.3 * drawn.sum()
    assert "\u2013 caf\u00e9" in record.regions[0].expressions[0].sent
