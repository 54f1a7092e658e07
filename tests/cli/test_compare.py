"""The paired comparison on a table whose numbers are computed here by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco

from ans.cli.compare import compare, groups, means, read, splits, text
from ans.report.results import Results, ResultsError
from ans.report.tables import MEAN, score

SENTS = ("red cup", "the cup on the left", "a cup that stands behind the red plate")
SIDES = (10, 25, 50)
"""Sides of square objects in images of 100 x 100: 1 %, 6.25 % and 25 %."""


def tables(shift: int) -> pd.DataFrame:
    """12 images, in each of them three objects; the intersection is half of the object, and `shift` pixels more."""
    rows = []
    for image in range(12):
        for number, (sent, side) in enumerate(zip(SENTS, SIDES, strict=True)):
            truth = np.zeros((100, 100), np.uint8, order="F")
            truth[:side, :side] = 1
            rows.append(
                {
                    "image_path": f"{image}.png",
                    "region_id": number,
                    "sent_id": 10 * image + number,
                    "sent": sent,
                    "intersection": side * side // 2 + shift,
                    "union": side * side,
                    "gt_counts": coco.encode(truth)["counts"].decode(),
                    "height": 100,
                    "width": 100,
                    "category": ("long", "short", "cup")[number],
                }
            )
    return pd.DataFrame(rows)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, shift in (("one", 0), ("two", 10)):
        (tmp_path / name).mkdir()
        tables(shift).sample(frac=1, random_state=shift).to_parquet(tmp_path / name / "refcoco_val.parquet")
        captions = tables(shift).assign(caption="a thing")
        captions = captions.assign(references=[[sent] for sent in captions.pop("sent")]).drop(columns=["sent_id"])
        captions.to_parquet(tmp_path / name / "refcoco_val_captions.parquet")
    return tmp_path / "one", tmp_path / "two"


def test_groups_by_hand(folders: tuple[Path, Path]) -> None:
    table = read(folders[0], "refcoco_val").sort_values("sent_id", ignore_index=True)
    assert table["area"].tolist() == [100, 625, 2500] * 12
    members = {name: [bool(x) for x in chosen[:3]] for name, chosen in groups(table)}
    one, two, three = [True, False, False], [False, True, False], [False, False, True]
    assert list(members.values()) == [[True] * 3, one, two, three, one, two, three, [False, True, True], one, one, two]


def test_differences_by_hand(folders: tuple[Path, Path]) -> None:
    assert splits(*folders) == ["refcoco_val", "refcoco_val_captions"]
    first, second = (read(folder, "refcoco_val") for folder in folders)
    table = compare(first, second, resamples=100).set_index("group")
    halves = [50 + 312 + 1250, 50 + 312 + 1250 + 30]
    assert table.loc["all", ["n", "images", "first", "second"]].tolist() == pytest.approx([36, 12, *(h / 3225 for h in halves)])
    assert table.loc["small, < 3 % of the image", ["difference", "low", "high"]].tolist() == pytest.approx([0.1] * 3)
    assert table.loc["large, > 10 %", "difference"] == pytest.approx(10 / 2500)
    assert (compare(first, first, resamples=100)["difference"] == 0).all()
    shown = text(compare(first, second, resamples=100), "refcoco_val", "one", "two")
    assert "| small, < 3 % of the image | 12 / 12 | 50.0 | 60.0 | **+10.0** (+10.0 to +10.0) |" in shown
    few = first[first["image_path"] < "2.png"]
    assert "too few images" in text(compare(few, few, resamples=10), "x", "one", "two")


def test_other_expressions_are_an_error(folders: tuple[Path, Path]) -> None:
    first = read(folders[0], "refcoco_val")
    with pytest.raises(ValueError, match="same expressions"):
        compare(first, first.assign(sent_id=first["sent_id"] + 1))
    with pytest.raises(ResultsError, match=r"testA.parquet: not there; .*folder: refcoco_val, refcoco_val_captions\)"):
        read(folders[0], "refcoco_testA")


def test_the_command(folders: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "ans", "compare", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "## refcoco_val: two - one" in done.stdout and "| all | 36 / 12 |" in done.stdout
    done = subprocess.run([*command, "--split", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode and done.stderr.startswith("error: ") and "nothing.parquet: not there" in done.stderr
    done = subprocess.run([*command, "--split", "refcoco_val_captions"], capture_output=True, text=True, check=True)
    assert (
        "| cIoU of what was found again by the caption (%) |" in done.stdout and "| all | 36 / 12 | 50.0 | 50.9 |" in done.stdout
    )
    done = subprocess.run([*command[:4], str(folders[0]), "fulll"], capture_output=True, text=True, check=False)
    assert done.returncode and done.stderr.startswith("error: fulll: no such folder, and no such variant in data/eval (there: ")


def test_the_mean_over_results_is_that_of_the_report(folders: tuple[Path, Path]) -> None:
    """Of two splits that share half of their images; the report's own score is the reference."""
    variants, names = ("base", "full"), ("one", "two")
    tables_of = {
        (variant, name): read(folder, "refcoco_val") for variant, folder in zip(variants, folders, strict=True) for name in names
    }
    for variant in variants:
        table = tables_of[variant, "two"]
        tables_of[variant, "two"] = table[table["image_path"] < "5"].assign(intersection=lambda rows: rows["intersection"] // 2)
    results = Results(variants, names, {}, {}, tables_of)
    expected = score(results, 100, 3)["full", MEAN]
    (row,) = means([(tables_of["base", name], tables_of["full", name]) for name in names], 100, 3).itertuples()
    assert (row.second, row.difference, row.low, row.high, row.images) == pytest.approx((expected.ciou, *expected.difference, 12))
    assert row.n == 36 + 3 * tables_of["base", "two"]["image_path"].nunique()
