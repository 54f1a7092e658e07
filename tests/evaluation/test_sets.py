"""gRefCOCO and ReasonSeg from their published files to the report, on the tiny base."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco

from ans.cli.compare import compare, read
from ans.evaluation.evaluate import evaluate
from ans.report.results import Results, decode, read_results
from ans.report.tables import markdown, score, write_csv
from tests import pipeline
from tests.evaluation.test_metrics import rela

SPLITS = ("refcoco_val", "grefcoco_val", "grefcoco_testA", "reasonseg_val", "reasonseg_val-all", "reasonseg_test")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `reports/` and `data/` of the variant `base`."""
    changes = {"evaluate__splits": list(SPLITS), "evaluate__captions": []}
    work = pipeline.prepare(tmp_path_factory.mktemp("sets"))
    at = pipeline.beside(work, work.parent / "sets")
    evaluate(pipeline.small_config(work.parent / "world", **changes), "base", at)
    return at.root


def result(done: Path, split: str) -> tuple[dict[str, float], pd.DataFrame]:
    metrics = json.loads((done / "reports" / "eval" / "base" / f"{split}.json").read_text())
    return metrics, pd.read_parquet(done / "data" / "eval" / "base" / f"{split}.parquet")


def drawn(table: pd.DataFrame, column: str) -> list[np.ndarray]:
    return [decode(row[column], row["height"], row["width"]) for _, row in table.iterrows()]


@pytest.mark.parametrize("split", ["grefcoco_val", "grefcoco_testA"])
@pytest.mark.slow
def test_grefcoco_is_what_its_rules_make_of_the_masks(done: Path, split: str) -> None:
    metrics, table = result(done, split)
    pairs = list(zip(drawn(table, "counts"), drawn(table, "gt_counts"), strict=True))
    expected = rela(pairs)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert metrics["n"] == len(table) == 3 * metrics["images"] and table["no_target"].sum() == metrics["images"]
    assert table["no_target"].tolist() == [not truth.any() for _, truth in pairs]
    assert table["said_nothing"].tolist() == [not found.any() for found, _ in pairs]


@pytest.mark.second
def test_another_split_has_no_such_keys(done: Path) -> None:
    metrics, _ = result(done, "refcoco_val")
    assert not {"giou", "n_acc", "t_acc", "ciou_long", "ciou_short"} & set(metrics)


def test_reasonseg_counts_no_ignored_pixel(done: Path) -> None:
    """By pycocotools: what is left of both masks without the ignored pixels."""
    tables = [result(done, split)[1] for split in ("reasonseg_val", "reasonseg_test", "reasonseg_val-all")]
    table = pd.concat(tables, ignore_index=True)
    table = table[table["ignore_counts"] != ""]
    assert len(table) == 4
    changed = 0
    for _, row in table.iterrows():
        found, truth, ignored = (
            decode(row[name], row["height"], row["width"]) for name in ("counts", "gt_counts", "ignore_counts")
        )
        kept = [coco.encode(np.asfortranarray((each & ~ignored).astype(np.uint8))) for each in (found, truth)]
        assert row["intersection"] == coco.area(coco.merge(kept, intersect=True)) and row["union"] == coco.area(coco.merge(kept))
        changed += bool((found & ignored).any())
    assert changed, "a mask has to lie on ignored pixels, or this shows nothing"


def test_reasonseg_first_query_or_all_and_long_or_short(done: Path) -> None:
    first, every = result(done, "reasonseg_val"), result(done, "reasonseg_val-all")
    assert first[0]["n"] == first[0]["images"] == every[0]["images"] == 3 and every[0]["n"] == 6
    asked = every[1]["sent_id"] % 1000 == 0
    same = ["image_path", "sent", "counts", "gt_counts", "ignore_counts", "category"]
    pd.testing.assert_frame_equal(every[1][asked][same].reset_index(drop=True), first[1][same])
    metrics, table = every
    for kind in ("long", "short"):
        rows = table[table["category"] == kind]
        assert metrics[f"n_{kind}"] == len(rows) > 0 and metrics[f"miou_{kind}"] == pytest.approx(rows["iou"].mean())
        assert metrics[f"ciou_{kind}"] == rows["intersection"].sum() / rows["union"].sum()


def test_the_report_shows_them_where_they_are(done: Path, tmp_path: Path) -> None:
    results = read_results(done / "reports", done / "data", ("base",), SPLITS)
    scores = score(results, 20, 0)
    text = markdown(results, scores, {}, ())
    special = text[text.index("## gRefCOCO and ReasonSeg") :]
    assert special.count("\n| grefcoco_val | base |") == special.count("\n| reasonseg_val-all | base |") == 1
    assert "\n| refcoco_val |" not in special
    n_acc, t_acc = (f"{100 * result(done, 'grefcoco_val')[0][name]:.1f}" for name in ("n_acc", "t_acc"))
    assert f"| grefcoco_val | base | {n_acc} | {t_acc} |  |  |  |  |" in special
    write_csv(results, scores, tmp_path / "all.csv")
    table = pd.read_csv(tmp_path / "all.csv", index_col="split")
    assert table.loc["grefcoco_val", "n_acc"] == result(done, "grefcoco_val")[0]["n_acc"] and pd.isna(
        table.loc["refcoco_val", "n_acc"]
    )
    plain = dataclasses.replace(results, splits=SPLITS[:1], metrics={("base", SPLITS[0]): results.metrics["base", SPLITS[0]]})
    assert "gRefCOCO" not in markdown(plain, scores, {}, ()) and columns(plain, scores, tmp_path) == list(table.columns[:16])


def columns(results: Results, scores: dict, folder: Path) -> list[str]:
    write_csv(results, scores, folder / "some.csv")
    return list(pd.read_csv(folder / "some.csv", index_col="split").columns)


def test_compared_by_kind_of_query(done: Path) -> None:
    table = read(done / "data" / "eval" / "base", "reasonseg_val-all")
    found = compare(table, table, resamples=10).set_index("group")["n"]
    assert found["long query"] + found["short query"] == found["all"] == 6


def test_the_documentation_names_every_key(done: Path) -> None:
    text = (pipeline.REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
    tables = text[text.index("/<split>.json`:") :].split("`reports/eval/<variant>/<split>_captions.json`:")
    named = {
        key for line in tables[0].splitlines() if line.startswith("| `") for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == {key for split in SPLITS for key in result(done, split)[0]}
