"""`.ci/check_results.py`: what a run left is compared with the committed numbers, and what does not fit is named."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from ans.config import load
from ans.report.results import BASE

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "check_results.py"
CONFIG = load(ROOT / "params.yaml")
SPLIT = CONFIG.evaluate.splits[0]
CAPTIONS = CONFIG.evaluate.scope.caption_results()[0]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_results", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the committed results, for a run's."""
    for name in ("eval", "figures", "train"):
        shutil.copytree(ROOT / "reports" / name, tmp_path / "reports" / name)
    for name in ("reports/summary.csv", "reports/variants.csv", "params.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaints(script: ModuleType, clone: Path) -> list[str]:
    rows = script.read_rows(script.from_disk, CONFIG)
    committed = script.read_rows(lambda name: (ROOT / "reports" / name).read_text(encoding="utf-8"), CONFIG)
    return script.gaps(clone / "reports", rows, CONFIG) + script.disagreements(rows, committed)


def change(clone: Path, variant: str, name: str, metric: str, by: float) -> float:
    """Add to one number of the run's, where it is compared with the committed one; returns the new value."""
    if name in (CAPTIONS, "training"):
        file = clone / "reports" / (f"eval/{variant}/{name}.json" if name == CAPTIONS else "train/last_steps.json")
        values = json.loads(file.read_text(encoding="utf-8"))
        values[metric] += by
        file.write_text(json.dumps(values), encoding="utf-8")
        return values[metric]
    file = clone / "reports" / ("variants.csv" if name == "mean" else "summary.csv")
    table = pd.read_csv(file)
    row = table["variant"].eq(variant) & (True if name == "mean" else table["split"].eq(name))
    table.loc[row, metric] += by
    table.to_csv(file, index=False)
    return float(table.loc[row, metric].iloc[0])


def half(variant: str, name: str) -> float:
    """How far a variant's difference to the base may fall, by the committed 95 % interval."""
    table = pd.read_csv(ROOT / "reports" / ("variants.csv" if name == "mean" else "summary.csv"))
    row = table[table["variant"].eq(variant) & (True if name == "mean" else table["split"].eq(name))].iloc[0]
    return row["difference"] - row["difference_low"]


def test_the_committed_results_are_whole_and_agree_with_themselves(script: ModuleType, clone: Path) -> None:
    assert complaints(script, clone) == []


@pytest.mark.parametrize("variant", [variant for variant in CONFIG.variants if variant != BASE])
@pytest.mark.parametrize("name", [SPLIT, "mean"])
@pytest.mark.second
def test_a_difference_to_the_base_outside_its_interval(script: ModuleType, clone: Path, variant: str, name: str) -> None:
    width = half(variant, name)
    assert 0.0005 < width < 0.05  # in cIoU: an interval that holds something, and lets something through
    change(clone, variant, name, "difference", -0.95 * width)
    assert complaints(script, clone) == []
    value = change(clone, variant, name, "difference", -0.1 * width)
    (found,) = complaints(script, clone)
    assert found.startswith(f"{variant} {name}: difference is {value:.6g}, expected ")


def test_the_value_itself_is_held_by_the_same_interval(script: ModuleType, clone: Path) -> None:
    """Though the column with the difference says otherwise."""
    table = pd.read_csv(ROOT / "reports" / "summary.csv").set_index(["variant", "split"])
    row, base = table.loc[("full", SPLIT)], table.loc[(BASE, SPLIT)]
    value = change(clone, "full", SPLIT, "ciou", -1.05 * half("full", SPLIT))
    low, high = base["ciou"] + row["difference_low"], base["ciou"] + row["difference_high"]
    expected = f"expected {low:.6g} to {high:.6g} (committed: {row['ciou']:.6g})"
    unlike, found = complaints(script, clone)
    assert found == f"full {SPLIT}: ciou is {value:.6g}, {expected}"
    assert f"{SPLIT}.json: n {int(row['n'])}" in unlike and "but summary.csv has" in unlike


@pytest.mark.parametrize(
    ("variant", "name", "metric", "within", "more"),
    [
        (BASE, SPLIT, "miou", 0.0029, 0.0002),
        (BASE, "mean", "ciou", 0.0029, 0.0002),
        (BASE, SPLIT, "n", 0, 1),
        (BASE, CAPTIONS, "cider", 0.0029, 0.0002),
        ("full", SPLIT, "miou", -0.015, -0.002),
        ("lora", SPLIT, "p50", 0.059, 0.002),
        ("proj", SPLIT, "seg_rate", -0.009, -0.002),
        ("proj", SPLIT, "n", 0, -1),
        ("full", CAPTIONS, "cycle_ciou", 0.022, 0.002),
        ("full", CAPTIONS, "images", 0, 1),
        ("training", "training", "loss", 0.014, 0.002),
        ("training", "training", "norm2_proj", 0.15, 0.02),
        ("training", "training", "cosine_all", -0.04, -0.006),
        ("training", "training", "lr", 0, 1e-9),
        ("training", "training", "ref_mask", 0, float("nan")),
    ],
)
@pytest.mark.second
def test_any_other_number(
    script: ModuleType, clone: Path, variant: str, name: str, metric: str, within: float, more: float
) -> None:
    change(clone, variant, name, metric, within)
    assert complaints(script, clone) == []
    value = change(clone, variant, name, metric, more)
    found = [line for line in complaints(script, clone) if "but summary.csv has" not in line]
    label = " ".join(script.TRAINING) if name == "training" else f"{variant} {name}"
    assert len(found) == 1 and found[0].startswith(f"{label}: {metric} is {value:.6g}, expected ")


def test_what_is_missing_or_too_much(script: ModuleType, clone: Path) -> None:
    table = pd.read_csv(clone / "reports" / "summary.csv")
    table.loc[0, "split"] = "another"
    table.to_csv(clone / "reports" / "summary.csv", index=False)
    (clone / "reports" / "figures" / "loss.png").write_bytes(b"no picture")
    found = complaints(script, clone)
    assert f"{BASE} another: is in the results or in params.yaml, not in both" in found
    assert f"{BASE} {SPLIT}: is in the results or in params.yaml, not in both" in found
    assert f"{BASE} {SPLIT}: is in the run or in what is committed, not in both" in found
    assert f"{clone / 'reports' / 'figures' / 'loss.png'}: no such picture" in found


def test_a_metric_that_the_run_does_not_have(script: ModuleType, clone: Path) -> None:
    file = clone / "reports" / "train" / "last_steps.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    del values["loop1_denoising"]
    file.write_text(json.dumps(values), encoding="utf-8")
    (found,) = complaints(script, clone)
    assert "loop1_denoising is nan, expected" in found


@pytest.mark.slow
def test_the_script_compares_with_the_last_commit(clone: Path) -> None:
    """Run as .ci/run runs it: in a clone, where the run has written its results over the committed ones."""

    def git(*words: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", *identity, *words], cwd=clone, check=True, capture_output=True)

    def check() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, SCRIPT], cwd=clone, env=environment, capture_output=True, text=True, check=False)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "results")
    done = check()
    assert done.returncode == 0 and SPLIT in done.stdout, done.stderr
    change(clone, "full", "mean", "difference", -1.1 * half("full", "mean"))
    done = check()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: full mean: difference is 0.0")
