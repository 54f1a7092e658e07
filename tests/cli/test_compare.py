"""The paired comparison on a table whose numbers are computed here by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco

from ans.cli import main
from ans.cli.compare import (
    compare,
    compare_captions,
    compare_grounded,
    compare_videos,
    groups,
    means,
    read,
    read_rows,
    splits,
    text,
)
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
        captions = tables(shift).assign(caption="a thing", facts=None, facts_right=None)
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
    with pytest.raises(ResultsError, match=r"testA.parquet: missing; .*folder: refcoco_val, refcoco_val_captions\)"):
        read(folders[0], "refcoco_testA")


def test_captions_have_two_tables(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *map(str, folders), "--split", "refcoco_val_captions"])
    shown = capsys.readouterr().out
    assert "found again by the caption (%) |" in shown and "| the captions (%) |" in shown
    assert "| CIDEr-D, of 10 | 36 / 12 | 0.6 | 0.6 | +0.0 (+0.0 to +0.0) |" in shown and "facts" not in shown


@pytest.mark.slow
def test_the_command(folders: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "ans", "compare", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "## refcoco_val: two - one" in done.stdout and "| all | 36 / 12 |" in done.stdout
    done = subprocess.run([*command, "--split", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode and done.stderr.startswith("error: ") and "nothing.parquet: missing" in done.stderr
    done = subprocess.run([*command, "--split", "refcoco_val_captions"], capture_output=True, text=True, check=True)
    assert (
        "| cIoU of what was found again by the caption (%) |" in done.stdout and "| all | 36 / 12 | 50.0 | 50.9 |" in done.stdout
    )
    done = subprocess.run([*command[:4], str(folders[0]), "fulll"], capture_output=True, text=True, check=False)
    assert done.returncode and done.stderr.startswith(
        "error: fulll: no such folder, and no such variant in data/eval (existing ones: "
    )


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


def test_captions_by_hand() -> None:
    """12 images of three captions, each of four facts; in the first image nothing is known. CIDEr-D is 10 where a caption is its reference,
    which is alone in its words, and 0 where they share none."""
    table = tables(0).assign(references=[np.array([f"{image}a {k}b c{image}{k}"]) for image in range(12) for k in range(3)])
    unknown = [None] * 3
    told = {"caption": [texts[0] for texts in table["references"]], "facts": [*unknown, *[4] * 33]}
    first = table.assign(**told, facts_right=[*unknown, *[2, 3, 4] * 11])
    said = [text if place % 3 else "nothing" for place, text in enumerate(told["caption"])]
    second = table.assign(**told | {"caption": said}, facts_right=[*unknown, *[4, 3, 4] * 11])
    found = compare_captions(first, second.sample(frac=1, random_state=0)).set_index("group")
    assert found.index.tolist() == ["CIDEr-D, of 10", "facts right", "all facts right"]
    assert found[["n", "images"]].values.tolist() == [[36, 12], [33, 11], [33, 11]]
    assert found["difference"].tolist() == pytest.approx([-found.loc["CIDEr-D, of 10", "first"] / 3, 2 / 12, 1 / 3], abs=1e-3)
    assert found["first"].tolist()[1:] == pytest.approx([9 / 12, 1 / 3])
    assert found.loc["facts right", ["low", "high"]].tolist() == pytest.approx([2 / 12] * 2)
    without = first.assign(facts=None, facts_right=None)
    for pair in ((without, second), (second, without), (first.assign(facts=0), second)):
        assert compare_captions(*pair)["group"].tolist() == ["CIDEr-D, of 10"]


def video_rows(gain: float, clips: int = 12) -> list[dict[str, Any]]:
    """Three expressions a clip, of which the second is not seen in frame 1 and the third is of nothing; J of clip c is c / 20, of the
    second `gain` more, F is J and 0.1."""
    one, none = (coco.encode(np.full((4, 4), value, np.uint8, order="F"))["counts"].decode() for value in (1, 0))
    rows = []
    for clip in range(clips):
        for number, (kind, true) in enumerate((("referring", [one, one]), ("reasoning", [one, none]), ("absent", [none, none]))):
            j = clip / 20 + gain * (number == 1)
            row = {"clip": f"{clip}", "id": f"{number}", "text": SENTS[number], "kind": kind, "true": true}
            rows.append(row | {"j": j, "f": j + 0.1})
    return rows


@pytest.mark.second
def test_videos_by_hand(tmp_path: Path) -> None:
    table = compare_videos(video_rows(0.0)[::-1], video_rows(0.2)).set_index("group")
    mean = np.mean([clip / 20 for clip in range(12)]) + 0.05
    assert table.index.tolist() == [
        *("all", "1 to 2 words", "3 to 5 words", "seen in every frame", "not in every frame", "reasoning", "referring")
    ]
    assert table["n"].tolist() == [24, *[12] * 6] and set(table["images"]) == {12}
    assert table["first"].tolist() == pytest.approx([mean] * 7)
    gains = [0.1, 0, 0.2, 0, 0.2, 0.2, 0]  # the same in every clip, and so in every resample
    for column in ("difference", "low", "high"):
        assert table[column].tolist() == pytest.approx(gains, abs=1e-12)
    for name, gain in (("one", 0.0), ("two", 0.2)):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in video_rows(gain))
        (tmp_path / name / "motion_video.jsonl").write_text(lines)
        hidden = "".join(json.dumps(row | {"j": None, "f": None}) + "\n" for row in video_rows(gain))
        (tmp_path / name / "hidden_video.jsonl").write_text(hidden)
    assert splits(tmp_path / "one", tmp_path / "two") == ["motion_video"]
    done = subprocess.run(
        [sys.executable, "-m", "ans", "compare", str(tmp_path / "one"), str(tmp_path / "two")],
        capture_output=True,
        text=True,
    )
    assert "| J&F (%) | n / clips | one | two |" in done.stdout
    assert "| all | 24 / 12 | 32.5 | 42.5 | **+10.0** (+10.0 to +10.0) |" in done.stdout
    with pytest.raises(ResultsError, match=r"other_video.jsonl: missing.*hidden_video, motion_video"):
        read_rows(tmp_path / "one", "other_video")


def test_two_sets_of_the_same_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the memory and frame by frame, here of one variant."""
    for name, gain in (("images", 0.0), ("memory", 0.2)):
        lines = "".join(json.dumps(row) + "\n" for row in video_rows(gain))
        (tmp_path / f"{name}_video.jsonl").write_text(lines)
    asked = ["compare", str(tmp_path), str(tmp_path), "--split", "memory_video", "--against"]
    main([*asked, "images_video"])
    shown = capsys.readouterr().out
    assert "in memory_video - " in shown and "**+10.0**" in shown, "one of two expressions that count has 20 more"
    with pytest.raises(ValueError, match="--against: goes with --split"):
        main([*asked, "refcoco_val"])


def grounded_rows(gain: float, images: int = 12) -> list[dict[str, Any]]:
    """An image has two true phrases, then three, and so on in turns; mIoU of image i is i / 24, of those with three `gain` more."""
    return [
        {"image": f"{i}.png", "true_counts": ["x"] * (2 + i % 2), "miou": i / 24 + gain * (i % 2), "phrases": []}
        for i in range(images)
    ]


def test_grounded_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command too: two variants, and one variant's two splits of the same images."""
    table = compare_grounded(grounded_rows(0.0)[::-1], grounded_rows(0.2)).set_index("group")
    assert table[["n", "images"]].values.tolist() == [[30, 12], [12, 6], [18, 6]]
    assert table.index.tolist() == ["all", "1 to 2 phrases", "3 to 4 phrases"]
    assert table["first"].tolist() == pytest.approx([5.5 / 24, 5 / 24, 6 / 24])
    assert table["difference"].tolist() == pytest.approx([0.1, 0.0, 0.2])
    assert table.loc["3 to 4 phrases", ["low", "high"]].tolist() == pytest.approx([0.2, 0.2])
    drawn = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=2000) @ np.array([0, 0.2] * 6) / 12
    assert np.sort(drawn)[[49, 1949]] == pytest.approx(table.loc["all", ["low", "high"]].tolist(), abs=0.02)
    for name, split, gain in (("one", "a", 0.0), ("two", "a", 0.2), ("one", "b", 0.2)):
        (tmp_path / name).mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in grounded_rows(gain))
        (tmp_path / name / f"{split}_grounded.jsonl").write_text(lines)
    (tmp_path / "two" / "others.jsonl").write_text("{}\n")
    assert splits(tmp_path / "one", tmp_path / "two") == ["a_grounded"]
    main(["compare", str(tmp_path / "one"), str(tmp_path / "two")])
    line = "| all | 30 / 12 | 22.9 | 32.9 | **+10.0** ("
    shown = capsys.readouterr().out
    assert "## a_grounded: two - one" in shown and "| mIoU of paired masks (%) | n / images |" in shown and line in shown
    asked = ["compare", str(tmp_path / "one"), str(tmp_path / "one"), "--split", "b_grounded", "--against"]
    main([*asked, "a_grounded"])
    assert "one in b_grounded" in (shown := capsys.readouterr().out) and line in shown
    with pytest.raises(ValueError, match="both name results of one kind: <...>_video or <...>_grounded"):
        main([*asked, "motion_video"])
    with pytest.raises(ValueError, match="not about the same images"):
        compare_grounded(grounded_rows(0.0), grounded_rows(0.0, images=11))


def test_videos_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="not about the same"):
        compare_videos(video_rows(0.0), video_rows(0.0, clips=11))
    hidden = [row | {"j": None, "f": None, "true": []} for row in video_rows(0.0)]
    with pytest.raises(ValueError, match="not published"):
        compare_videos(hidden, hidden)
