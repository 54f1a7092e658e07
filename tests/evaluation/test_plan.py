"""The plan of an evaluation: what is asked, of which images together, in which batches."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ans.config import ConfigError, load
from ans.config.scope import Scope
from ans.data.readers import ListingChanged, listing_checksum
from ans.data.records import Expression, ImageRecord, Region
from ans.evaluation.plan import Plan, Planned, make_plan
from tests.indexes import write_records

SETTINGS = Scope(splits=("refcoco_val", "refcoco_plus_val"), captions=("refcoco_val",))


def region(number: int, split: str, texts: int, area: int = 4) -> Region:
    expressions = tuple(Expression(10 * number + i, f"thing {number} {i}", "") for i in range(texts))
    return Region(number, split, "", area, (0.0, 0.0, 2.0, 2.0), "PPYo0", expressions)


@pytest.fixture
def indexes(tmp_path: Path) -> Path:
    """refcoco: images a and b in val, c in train; refcoco_plus: b and d in val."""
    root = tmp_path / "root"
    sources = {
        "refcoco": {
            "a": [region(0, "val", 2), region(1, "train", 5)],
            "b": [region(2, "val", 1), region(3, "val", 2, 0)],
            "c": [],
        },
        "refcoco_plus": {"b": [region(4, "val", 3)], "d": [region(5, "val", 1)]},
    }
    for name, images in sources.items():
        folder = "ref_seg/refcoco" + "+" * ("plus" in name)
        (root / folder).mkdir(parents=True)
        for file in ("instances.json", "refs(unc).p"):
            (root / folder / file).write_text("x")
        records = [ImageRecord(i, f"{path}.jpg", 40, 30, tuple(regions)) for i, (path, regions) in enumerate(images.items())]
        metadata = {"source": name, "reader": "refcoco", "folder": folder}
        metadata["root_listing"] = listing_checksum(root, folder, name, "refcoco")
        write_records(tmp_path / "index" / f"{name}.arrow", records, metadata)
    return tmp_path


def plan_of(folder: Path, **changes: object) -> Plan:
    return make_plan(replace(SETTINGS, **changes), folder / "index", folder / "root")


def asked(plan: Plan) -> list[tuple[str, list[tuple[str, int, str | None]]]]:
    items = [plan.item(image) for image in plan.images]
    return [
        (item.record.path, [(q.result, q.region.region_id, q.expression and q.expression.sent) for q in item.questions])
        for item in items
    ]


def test_an_image_comes_once_with_all_questions(indexes: Path) -> None:
    plan = plan_of(indexes)
    caption, val, plus = "refcoco_val_captions", "refcoco_val", "refcoco_plus_val"
    assert asked(plan) == [
        ("a.jpg", [(val, 0, "thing 0 0"), (val, 0, "thing 0 1"), (caption, 0, None)]),
        (
            "b.jpg",
            [(val, 2, "thing 2 0"), (val, 3, "thing 3 0"), (val, 3, "thing 3 1")]
            + [(plus, 4, f"thing 4 {i}") for i in range(3)]
            + [(caption, 2, None)],  # region 3 has no pixel to describe
        ),
        ("d.jpg", [(plus, 5, "thing 5 0")]),
    ]
    assert [image.rows for image in plan.images] == [2, 6, 1]
    counts = {name: (count["n"], count["images"]) for name, count in plan.counts.items()}
    assert counts == {val: (5, 2), plus: (4, 2), caption: (2, 2)}


def test_caps_and_their_names(indexes: Path) -> None:
    plan = plan_of(indexes, max_samples=1, max_texts_per_image=1, captions=())
    assert asked(plan) == [
        ("a.jpg", [("refcoco_val_capped_1x1", 0, "thing 0 0")]),
        ("b.jpg", [("refcoco_plus_val_capped_1x1", 4, "thing 4 0")]),
    ]
    assert replace(SETTINGS, max_samples=3).split_results()[0] == "refcoco_val_capped_3xall"
    assert not SETTINGS.capped and SETTINGS.caption_results() == ("refcoco_val_captions",)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_samples", 0, r"evaluate.max_samples: must be at least 1, found 0"),
        ("captions", ["a_val", "a_val"], r"evaluate.captions: names a_val twice"),
        ("splits", [], r"evaluate.splits: "),
    ],
)
def test_settings_that_cannot_be(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load().changed({f"evaluate.{key}": value})


def test_the_checksum_is_of_what_is_asked(indexes: Path) -> None:
    whole, capped = plan_of(indexes), plan_of(indexes, max_texts_per_image=99)
    sums = [plan.counts[name]["sha256"] for plan, name in ((whole, "refcoco_val"), (capped, "refcoco_val_capped_allx99"))]
    assert sums[0] == sums[1] != whole.counts["refcoco_plus_val"]["sha256"]
    assert plan_of(indexes, max_samples=1).counts["refcoco_val_capped_1xall"]["sha256"] != sums[0]


def test_mistakes_are_named(indexes: Path) -> None:
    with pytest.raises(ValueError, match=r"split refcocog_val: there is no index .*refcocog.arrow"):
        plan_of(indexes, splits=("refcocog_val",))
    with pytest.raises(ValueError, match=r"split x_val: there is no index"):
        plan_of(indexes, captions=("x_val",))
    with pytest.raises(ValueError, match="refcoco_testA: .*refcoco.arrow has no region of split 'testA'"):
        plan_of(indexes, splits=("refcoco_testA",))
    (indexes / "root" / "ref_seg" / "refcoco" / "instances.json").write_text("other")
    with pytest.raises(ListingChanged):
        plan_of(indexes)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=40), st.integers(1, 300))
def test_batches_keep_the_order_and_the_budget(images: list[tuple[int, int]], budget: int) -> None:
    """Here a row of an image of height h has h tokens."""
    planned = tuple(Planned((height, 1), [], rows) for height, rows in images)
    batches = Plan((), planned, {}).batches(lambda height, width: height, budget)
    assert [image for batch in batches for image in batch] == list(planned)
    costs = [sum(image.rows for image in batch) * max(image.size[0] for image in batch) for batch in batches]
    assert all(cost <= budget or len(batch) == 1 for cost, batch in zip(costs, batches, strict=True))
    for batch, following in zip(batches, batches[1:], strict=False):  # the next image would not have fitted
        joined = [*batch, following[0]]
        assert sum(image.rows for image in joined) * max(image.size[0] for image in joined) > budget
