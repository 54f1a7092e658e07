"""The ablation's table by hand, and arms that `params.yaml` knows."""

import re
import subprocess
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from ans import ablation
from ans.config import Config


def test_every_arm_is_a_valid_setting() -> None:
    for arm in ablation.ARMS | ablation.AFTER | ablation.STUDY:
        values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
        for change in ablation._changes(arm):
            path, _, value = change.partition("=")
            *parents, last = path.split(".")
            node = values
            for parent in parents:
                node = node[parent]
            assert last in node, f"{arm}: {path}"
            node[last] = yaml.safe_load(value)
        Config(values)
        if arm == "study_corrupted_denoising":  # an arm's own setting comes before what all of the study start from
            loop1 = values["train"]["loop1"]
            assert (loop1["rescored"], loop1["mask_ratio"], loop1["denoising"]) == ("corrupted", 0.25, 0.5)
    compared = {arm for one, others in ablation.COMPARED.items() for arm in (one, *others)}
    assert {*ablation.MANY, ablation.REFERENCE} <= compared == set(ablation.ARMS)


def test_the_table_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences 2, 4, 6 points: mean 4, standard deviation 2, t(2) 4.303: 4 +- 4.303 * 2 / sqrt(3) = 4 +- 4.97."""
    monkeypatch.setattr(ablation, "CSV", tmp_path / "a.csv")
    monkeypatch.setattr(ablation, "TABLE", tmp_path / "a.md")
    rows = [",".join(ablation.COLUMNS)]
    for seed, gain in ((1, 0.02), (2, 0.04), (3, 0.06)):
        for split, offset in (("refcoco_testA", 0.1), ("refcoco_testB", -0.1), ("refcoco_val", 0.3)):
            rows.append(f"supervised_equal_steps,{seed},{split},{0.4 + offset},0.5,100,abc")
            rows.append(f"both_orthogonal,{seed},{split},{0.4 + offset + gain},0.5,300,abc")
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    ablation.table()
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    test, tuning = text.split("## Tuning")
    assert "| both_orthogonal | 3 | 44.00 | +4.00 (-0.97 to +8.97) | 300 |" in test
    assert "| supervised_equal_steps | 3 | 40.00 | (reference) | 100 |" in test
    assert "| both_orthogonal | 3 | 74.00 |" in tuning
    assert "| both_orthogonal | supervised_equal_steps | 3 | +4.00 (-0.97 to +8.97) |" in tuning
    assert "| loop1_gumbel |" not in text  # nothing of it in the table


def test_tables_of_clones_are_joined_and_no_run_counts_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "CSV", tmp_path / "a.csv")
    rows = [",".join(ablation.COLUMNS), *(f"both_orthogonal,{seed},refcoco_val,0.5,0.5,1,abc" for seed in (1, 2, 3))]
    for name, lines in (("a", rows[:2]), ("x", rows[:3]), ("y", rows[:2] + rows[3:])):
        (tmp_path / f"{name}.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    ablation.join([tmp_path / "x.csv", tmp_path / "y.csv"])
    assert (tmp_path / "a.csv").read_bytes().decode() == "\r\n".join(rows) + "\r\n"
    (tmp_path / "x.csv").write_text(f"{rows[0]}\n{rows[2].replace('0.5', '0.6')}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.csv: both_orthogonal 2 refcoco_val is in .* with other numbers"):
        ablation.join([tmp_path / "x.csv"])
    (tmp_path / "x.csv").write_text(f"{rows[0]}\nsupervised_50_steps,1,refcoco_val,0.5,0.5,1,other\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"different params.yaml \(abc, other\)"):
        ablation.join([tmp_path / "x.csv"])
    with pytest.raises(FileNotFoundError):
        ablation.join([tmp_path / "z.csv"])
    assert (tmp_path / "a.csv").read_bytes().decode() == "\r\n".join(rows) + "\r\n"


def test_the_committed_table_and_the_readme_say_what_the_rows_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = ablation.TABLE.read_text(encoding="utf-8")
    monkeypatch.setattr(ablation, "TABLE", tmp_path / "a.md")
    ablation.table()
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == committed
    scores, readme = ablation._scores("test"), Path("README.md").read_text(encoding="utf-8")
    for other in (ablation.REFERENCE, "supervised_50_steps"):
        pairs = ablation._pairs(scores["both_orthogonal"], scores[other])
        half = ablation.T_95[len(pairs) - 1] * stdev(pairs) / len(pairs) ** 0.5
        gain, low, high = (f"{number:.1f}" for number in (mean(pairs), mean(pairs) - half, mean(pairs) + half))
        assert re.search(rf"{gain} (points )?\({low} to {high}\)", readme), (other, gain, low, high)


def test_runs_go_seed_by_seed_and_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table has is not run again, `only` some seeds can be asked for, and every run has its own seed."""
    monkeypatch.setattr(ablation, "CSV", tmp_path / "a.csv")
    monkeypatch.setattr(ablation, "TABLE", tmp_path / "a.md")
    monkeypatch.setattr(ablation, "_git", lambda *words: "")
    header = ",".join(ablation.COLUMNS)
    row = "both_orthogonal,1001,refcoco_testA,0.5,0.5,1"
    (tmp_path / "a.csv").write_text(f"{header}\n{row},other\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="runs of another params.yaml"):
        ablation.run(["loop1_hard"])
    (tmp_path / "a.csv").write_text(f"{header}\n{row},{ablation._defaults()}\n", encoding="utf-8")
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(ablation, "_experiment", lambda name, changes, *targets: ran.append((name, *changes[-1:], *targets)))
    monkeypatch.setattr(ablation, "_append", lambda arm, seed, seconds: None)
    ablation.run(["both_orthogonal", "loop1_hard"], [1002, 1001, 1009])
    assert ran == [
        ("loop1_hard-1001", "train.seed=1001", "evaluate@full"),
        ("both_orthogonal-1002", "train.seed=1002", "evaluate@full"),
        ("loop1_hard-1002", "train.seed=1002", "evaluate@full"),
        ("both_orthogonal-1009", "train.seed=1009", "evaluate@full"),
    ]
    ran.clear()
    ablation.run(["study_hard"])
    assert [name for name, *_ in ran] == ["study_hard-2001", "study_hard-2002"]


def test_a_run_that_breaks_down_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "CSV", tmp_path / "a.csv")
    monkeypatch.setattr(ablation, "TABLE", tmp_path / "a.md")
    resets, added = [], []
    monkeypatch.setattr(ablation, "_git", lambda *words: resets.append(words[0]) or "")
    monkeypatch.setattr(ablation, "_append", lambda arm, seed, seconds: added.append((arm, seed)))

    def experiment(name: str, *rest: object) -> None:
        if name == "loop1_hard-1002":
            raise subprocess.CalledProcessError(1, name)

    monkeypatch.setattr(ablation, "_experiment", experiment)
    with pytest.raises(RuntimeError, match="broke down and are not in the table: loop1_hard with seed 1002$"):
        ablation.run(["loop1_hard"])
    assert added == [("loop1_hard", 1001), ("loop1_hard", 1003)] and resets[-1] == "checkout"
