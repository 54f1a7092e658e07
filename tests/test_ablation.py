"""The ablation's table by hand, and its runs as they are handed to DVC, in a scratch repository."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from ans.config import Config
from studies.ablation import study as ablation
from studies.runs import T_95

ROOT = Path(__file__).parent.parent

DVC = """
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
with open("../asked", "a") as file:
    file.write(json.dumps(words) + "\\n")
if words[:2] == ["exp", "run"]:
    if Path("params.yaml").read_text() == "what a run leaves":
        sys.exit("the work tree is not reset before a run")
    if os.environ.get("BREAKS") in (words[words.index("-n") + 1], "all"):
        sys.exit(1)
    Path("params.yaml").write_text("what a run leaves")
    folder = Path("reports/eval/full")
    folder.mkdir(parents=True, exist_ok=True)
    values = {"ciou": 0.5, "miou": 0.25}
    (folder / "refcoco_testA.json").write_text(json.dumps(values | {"ciou_forced": 0.5}))
    (folder / "refcoco_val_captions.json").write_text(json.dumps(values))
"""
"""What the runs are given to in place of DVC: it notes what it is asked, changes the work tree, and leaves results."""


class Clone:
    """A repository with this one's params.yaml, in which the current folder lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parameters = (ROOT / "params.yaml").read_text(encoding="utf-8")
        (folder / "params.yaml").write_text(self.parameters, encoding="utf-8")
        for needed in (folder / "reports", (folder / ablation.RUNS.path).parent):
            needed.mkdir(parents=True)
        for words in (("init", "-q"), ("add", "."), ("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "parameters")):
            subprocess.run(["git", *words], cwd=folder, check=True)

    def write(self, *rows: str) -> None:
        """The table of runs: arm, seed, split, cIoU, mIoU, seconds, and what params.yaml they are of."""
        ablation.RUNS.path.write_text("\n".join([",".join(ablation.RUNS.columns), *rows]) + "\n", encoding="utf-8")

    def rows(self) -> list[list[str]]:
        return [line.split(",") for line in ablation.RUNS.path.read_text(encoding="utf-8").splitlines()[1:]]

    def experiments(self) -> list[tuple[str, dict[str, str], list[str]]]:
        """Of each run that DVC was asked for since the last call: its name, what it sets, and the stages that it is for."""
        asked, found = self.folder.parent / "asked", []
        for line in asked.read_text(encoding="utf-8").splitlines():
            words = json.loads(line)
            if words[:2] == ["exp", "run"]:
                changes = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "-S")
                found.append((words[words.index("-n") + 1], changes, [word for word in words if word.startswith("evaluate@")]))
        asked.unlink()
        return found


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    package = tmp_path / "packages" / "dvc"
    package.mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("__main__.py", DVC)):
        (package / name).write_text(text, encoding="utf-8")
    (tmp_path / "clone").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.chdir(tmp_path / "clone")
    return Clone(tmp_path / "clone")


@pytest.mark.slow
def test_every_arm_is_a_valid_setting(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is handed to DVC, over what params.yaml has. (Runs that break down take less time.)"""
    monkeypatch.setenv("BREAKS", "all")
    defaults = yaml.safe_load(clone.parameters)
    for arms, seed in ((ablation.ARMS | ablation.AFTER, 1001), (ablation.STUDY, 2001)):
        with pytest.raises(RuntimeError, match="broke down"):
            ablation.run(list(arms), [seed])
        ran = clone.experiments()
        assert [name for name, *_ in ran] == [f"{arm.replace('.', '_')}-{seed}" for arm in arms]
        for name, changes, _ in ran:
            values = copy.deepcopy(defaults)
            for path, value in changes.items():
                *parents, last = path.split(".")
                node = values
                for parent in parents:
                    node = node[parent]
                assert last in node, f"{name}: {path}"
                node[last] = yaml.safe_load(value)
            Config(values)
            assert values["train"]["seed"] == seed
            if name == "study_corrupted_denoising-2001":  # an arm's own setting comes before what all of the study start from
                loop1 = values["train"]["loop1"]
                assert (loop1["rescored"], loop1["mask_ratio"], loop1["denoising"]) == ("corrupted", 0.25, 0.5)
    compared = {arm for one, others in ablation.COMPARED.items() for arm in (one, *others)}
    assert {*ablation.MANY, ablation.REFERENCE} <= compared == set(ablation.ARMS)


def test_the_table_by_hand(clone: Clone) -> None:
    """Differences 2, 4, 6 points: mean 4, standard deviation 2, t(2) 4.303: 4 +- 4.303 * 2 / sqrt(3) = 4 +- 4.97."""
    rows = []
    for seed, gain in ((1, 0.02), (2, 0.04), (3, 0.06)):
        for split, offset in (("refcoco_testA", 0.1), ("refcoco_testB", -0.1), ("refcoco_val", 0.3)):
            rows.append(f"supervised_equal_steps,{seed},{split},{0.4 + offset},0.5,100,abc")
            rows.append(f"both_orthogonal,{seed},{split},{0.4 + offset + gain},0.5,300,abc")
    clone.write(*rows)
    ablation.table()
    text = ablation.TABLE.read_text(encoding="utf-8")
    test, tuning = text.split("## Tuning")
    assert "| both_orthogonal | 3 | 44.00 | +4.00 (-0.97 to +8.97) | 300 |" in test
    assert "| supervised_equal_steps | 3 | 40.00 | (reference) | 100 |" in test
    assert "| both_orthogonal | 3 | 74.00 |" in tuning
    assert "| both_orthogonal | supervised_equal_steps | 3 | +4.00 (-0.97 to +8.97) |" in tuning
    assert "| loop1_gumbel |" not in text  # nothing of it in the table


def test_tables_of_clones_are_joined_and_no_run_counts_twice(clone: Clone) -> None:
    rows = [",".join(ablation.RUNS.columns), *(f"both_orthogonal,{seed},refcoco_val,0.5,0.5,1,abc" for seed in (1, 2, 3))]
    for path, lines in ((ablation.RUNS.path, rows[:2]), (Path("x.csv"), rows[:3]), (Path("y.csv"), rows[:2] + rows[3:])):
        path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    ablation.RUNS.join([Path("x.csv"), Path("y.csv")])
    assert ablation.RUNS.path.read_bytes().decode() == "\r\n".join(rows) + "\r\n"
    Path("x.csv").write_text(f"{rows[0]}\n{rows[2].replace('0.5', '0.6')}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.csv: both_orthogonal 2 refcoco_val is in .* with other numbers"):
        ablation.RUNS.join([Path("x.csv")], lambda arm: arm not in ablation.STUDY)
    Path("x.csv").write_text(f"{rows[0]}\nsupervised_50_steps,1,refcoco_val,0.5,0.5,1,other\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"different params.yaml \(abc, other\)"):
        ablation.RUNS.join([Path("x.csv")], lambda arm: arm not in ablation.STUDY)
    with pytest.raises(FileNotFoundError):
        ablation.RUNS.join([Path("z.csv")])
    assert ablation.RUNS.path.read_bytes().decode() == "\r\n".join(rows) + "\r\n"


def test_the_committed_table_and_the_readme_say_what_the_rows_say(clone: Clone) -> None:
    shutil.copyfile(ROOT / ablation.RUNS.path, ablation.RUNS.path)
    ablation.table()
    assert ablation.TABLE.read_bytes() == (ROOT / ablation.TABLE).read_bytes()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    scores: dict[str, dict[str, list[float]]] = {}
    for arm, seed, split, ciou, *_ in clone.rows():
        if not split.endswith("_val"):
            scores.setdefault(arm, {}).setdefault(seed, []).append(100 * float(ciou))
    for other in (ablation.REFERENCE, "supervised_50_steps"):
        ours, theirs = scores["both_orthogonal"], scores[other]
        pairs = [mean(ours[seed]) - mean(theirs[seed]) for seed in ours if seed in theirs]
        half = T_95[len(pairs) - 1] * stdev(pairs) / len(pairs) ** 0.5
        gain, low, high = (f"{number:.1f}" for number in (mean(pairs), mean(pairs) - half, mean(pairs) + half))
        assert re.search(rf"{gain} (points )?\({low} to {high}\)", readme), (other, gain, low, high)


@pytest.mark.second
def test_runs_go_seed_by_seed_and_continue(clone: Clone) -> None:
    """What the table has is not run again, `only` some seeds can be asked for, and every run has its own seed."""
    clone.write("both_orthogonal,1001,refcoco_testA,0.5,0.5,1,other")
    with pytest.raises(RuntimeError, match="runs of another params.yaml"):
        ablation.run(["loop1_hard"])
    ablation.RUNS.path.unlink()
    ablation.run(["both_orthogonal"], [1001])
    ((*run, ciou, miou, _, of),) = clone.rows()
    assert (run, ciou, miou) == (["both_orthogonal", "1001", "refcoco_testA"], "0.5", "0.25")
    assert Path("params.yaml").read_text(encoding="utf-8") == clone.parameters, "the work tree is as it was"
    clone.experiments()
    ablation.run(["both_orthogonal", "loop1_hard"], [1002, 1001, 1009])
    ran = [(name, changes["train.seed"], targets) for name, changes, targets in clone.experiments()]
    assert ran == [
        ("loop1_hard-1001", "1001", ["evaluate@full"]),
        ("both_orthogonal-1002", "1002", ["evaluate@full"]),
        ("loop1_hard-1002", "1002", ["evaluate@full"]),
        ("both_orthogonal-1009", "1009", ["evaluate@full"]),
    ]
    assert [row[:2] for row in clone.rows()][1:] == [name.split("-") for name, *_ in ran]
    assert {row[6] for row in clone.rows()} == {of}
    assert "| both_orthogonal | 3 |" in ablation.TABLE.read_text(encoding="utf-8")
    ablation.run(["study_hard"])
    assert [name for name, *_ in clone.experiments()] == ["study_hard-2001", "study_hard-2002"]


def test_a_run_that_breaks_down_is_named_and_the_others_go_on(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAKS", "loop1_hard-1002")
    with pytest.raises(RuntimeError, match="broke down and are not in the table: loop1_hard with seed 1002$"):
        ablation.run(["loop1_hard"])
    assert [row[:2] for row in clone.rows()] == [["loop1_hard", "1001"], ["loop1_hard", "1003"]]
    assert Path("params.yaml").read_text(encoding="utf-8") == clone.parameters


def test_a_work_tree_with_changes_is_not_reset(clone: Clone) -> None:
    Path("params.yaml").write_text(clone.parameters + "# mine\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="the work tree has changes, and every run resets it"):
        ablation.run(["loop1_hard"])
    assert Path("params.yaml").read_text(encoding="utf-8").endswith("# mine\n")
