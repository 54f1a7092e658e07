"""The study of captions: its arms are settings that can be used, and its table is what its rows say."""

import copy
import csv
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ans.config import Config
from studies.captions import study
from studies.runs import Runs

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("arm", study.ARMS)
def test_every_arm_is_a_valid_setting(arm: str) -> None:
    values = copy.deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    for change in study.changes(arm):
        path, value = change.split("=", 1)
        *parents, last = path.removeprefix("+").split(".")
        node = values
        for parent in parents:
            node[parent] = node = node.get(parent) or ({} if path.startswith("+") else pytest.fail(path))
        assert path.startswith("+") or last in node, path
        node[last] = yaml.safe_load(value)
    Config(values)


def test_the_questions_are_the_arms() -> None:
    assert {arm for question in study.QUESTIONS for arm in question} == set(study.ARMS)


def test_the_committed_table_says_what_the_rows_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gain too, recomputed from the rows: Student's t of five pairs is 2.776."""
    rows = Runs(ROOT / study.RUNS.path, study.RUNS.measures, study.RUNS.reads)
    monkeypatch.setattr(study, "RUNS", rows)
    monkeypatch.setattr(study, "TABLE", tmp_path / "table.md")
    study.table()
    text = (ROOT / "studies/captions/table.md").read_text(encoding="utf-8")
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text
    means: dict[str, dict[str, list[float]]] = {"true": {}, "teacher": {}}
    for row in rows.rows():
        if row["arm"] in means and not row["split"].removesuffix("_captions").endswith("_val"):
            means[row["arm"]].setdefault(row["seed"], []).append(100 * float(row["ciou"]))
    gains = [sum(values) / 5 - sum(means["teacher"][seed]) / 5 for seed, values in means["true"].items()]
    assert len(gains) == 5 and all(len(values) == 5 for of in means.values() for values in of.values())
    mean = sum(gains) / 5
    half = 2.776 * (sum((gain - mean) ** 2 for gain in gains) / 4 / 5) ** 0.5
    assert f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})" in text
    readme = (ROOT / "studies/captions/README.md").read_text(encoding="utf-8")
    assert f"{mean:.1f} points" in readme and f"({mean - half:.1f} to {mean + half:.1f}, five seeds" in readme


@pytest.mark.parametrize(
    ("first", "other", "seeds", "said"),
    [("labels_described", "both", 4, "four paired seeds, test splits"), ("rloo", "teacher", 5, "five paired seeds, test splits")],
)
def test_what_the_pages_say(first: str, other: str, seeds: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first arm less the other, paired by seed: the rows, computed by hand."""
    monkeypatch.chdir(ROOT)
    with open(study.RUNS.path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["ciou"] and not row["split"].endswith("_val")]
    means = {
        (arm, seed): sum(float(row["ciou"]) for row in rows if (row["arm"], row["seed"]) == (arm, seed)) / 5
        for arm, seed in {(row["arm"], row["seed"]) for row in rows}
    }
    gains = [
        100 * (value - means[other, seed]) for (arm, seed), value in means.items() if arm == first and (other, seed) in means
    ]
    assert len(gains) == seeds
    mean = sum(gains) / seeds
    student = {4: 3.182, 5: 2.776}[seeds]  # 95 %, two-sided
    half = student * (sum((gain - mean) ** 2 for gain in gains) / (seeds - 1) / seeds) ** 0.5
    for page in ("README.md", "docs/measured.md", "studies/captions/README.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert f"{mean:.1f} points" in text and f"({mean - half:.1f} to {mean + half:.1f}, {said}" in text


def test_runs_of_another_parameter_file_are_not_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rows are of an earlier params.yaml; the second question has none, so nothing stands in its way."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(study, "RUNS", replace(study.RUNS, path=tmp_path / "runs.csv"))
    study.RUNS.path.write_text(",".join(study.RUNS.columns) + "\ntrue,1,refcoco_val,0.5,,,,9,0123456789ab\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="has runs of another params.yaml"):
        study.run(["true"])
    asked: list[str] = []
    monkeypatch.setattr(Runs, "run", lambda self, todo, *_: asked.extend(arm for arm, _ in todo))
    study.run(["both"])
    assert set(asked) == {"both"}
