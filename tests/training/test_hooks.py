"""Hooks: what stops a run and what only warns, which examples are kept, what curves and metrics say."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pycocotools import mask as coco

from ans.shown import EXAMPLE_SIDE
from ans.tasks import load as load_task
from ans.tasks.base import CHECKED_STEPS, Degenerate, Example
from ans.training.hooks.curves import Curves
from ans.training.hooks.examples import Examples
from ans.training.hooks.health import Health

GOOD = {"ref_seg_rate": 1.0, "loop1_seg_rate": 0.9, "loop1_teacher_empty": 0.0, "loop1_teacher_different": 0.8}
TASKS = {name: object.__new__(load_task(name)) for name in ("referring", "loop1", "loop2")}
"""A check knows nothing of its task's data."""


def checked(values: dict[str, float], steps: int = CHECKED_STEPS) -> Health:
    health = Health(TASKS, 0.5)
    for step in range(steps):
        health.after(step + 1, GOOD | values)
    return health


def test_a_sound_run_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    checked({}, 3 * CHECKED_STEPS)
    assert caplog.text == ""


def test_no_more_seg() -> None:
    said = rf"step {CHECKED_STEPS}: \[SEG\] has a probability of 0.1 or more in only 10% .*loop1_seg_rate.*train\.min_seg_rate \(50%\)"
    with pytest.raises(Degenerate, match=said):
        checked({"loop1_seg_rate": 0.1})
    checked({"loop1_seg_rate": 0.1}, CHECKED_STEPS - 1)  # too few steps to tell


def test_a_teacher_that_says_nothing() -> None:
    with pytest.raises(Degenerate, match="the teacher's captions of nearly all objects are empty"):
        checked({"loop1_teacher_empty": 1.0})


def test_a_teacher_that_says_the_same(caplog: pytest.LogCaptureFixture) -> None:
    checked({"loop1_teacher_different": 0.01}, 2 * CHECKED_STEPS)
    assert caplog.text.count("nearly all objects are the same") == 1


def test_each_task_is_checked_over_its_last_steps() -> None:
    """By its own mean over exactly so many steps; what a task warns of is said once, after a restart too."""
    said: list[tuple[str, int, float]] = []

    def task(name: str) -> Any:
        def check(step: int, means: dict[str, float]) -> str | None:
            said.append((name, step, means.get("loss", -1.0)))
            return f"{name} warns" if means else None

        return SimpleNamespace(prefix=name, check=check)

    tasks = {name: task(name) for name in "ab"}
    health = Health(tasks, 0.5)
    for step in range(1, CHECKED_STEPS + 2):
        health.after(step, {"loss": float(step), "a_seg_rate": 0.5, "b_seg_rate": 0.0 if step <= CHECKED_STEPS // 2 else 1.0})
    half = (CHECKED_STEPS + 1) / 2
    assert said[-4:] == [(n, CHECKED_STEPS + late, half + late) for late in (0, 1) for n in "ab"] and said[-5][2] == -1.0
    assert health.warned == ["a", "b"]
    other = Health(tasks, 0.5)
    other.load_state_dict(health.state_dict())
    other.after(CHECKED_STEPS + 2, {"loss": CHECKED_STEPS + 2.0})
    assert other.warned == ["a", "b"] and said[-1] == ("b", CHECKED_STEPS + 2, half + 2)
    assert list(health.state_dict()["history"]["loss"]) == [float(n) for n in range(2, CHECKED_STEPS + 2)]


def test_a_state_continues_the_history() -> None:
    half = checked({"loop1_seg_rate": 0.1}, CHECKED_STEPS // 2)
    other = Health(TASKS, 0.5)
    other.load_state_dict(half.state_dict())
    with pytest.raises(Degenerate):
        for step in range(CHECKED_STEPS // 2):
            other.after(step, GOOD | {"loop1_seg_rate": 0.1})


def test_examples_are_kept_evenly_and_once() -> None:
    examples = Examples(times=4, steps=101, first_process=True)
    assert examples.chosen == [22, 48, 72, 98]  # not the very last step, which may have none of a task

    def wanted(task: str, step: int) -> bool:
        examples.after(step, {})
        return examples.wanted(task)

    assert [step for step in range(101) if wanted("loop1", step)] == list(range(22, 101))
    soft = torch.zeros(5, 8, 8)
    soft[:, :, :4] = 1
    texts = {"teacher": [f"said {i}" for i in range(5)], "student": [f"heard {i}" for i in range(5)]}
    examples.after(27, {})
    examples.keep("loop1", Example([("a.jpg", "sav")] * 5, texts, 20 * soft - 10, soft))
    assert [wanted("loop1", step) for step in (28, 47, 48)] == [False, False, True]  # 22 to 26 were on another task
    assert wanted("loop2", 28), "each task has its own"
    assert [(kept["task"], kept["step"], kept["texts"]) for kept in examples.kept] == [
        ("loop1", 28, {"teacher": f"said {i}", "student": f"heard {i}"}) for i in range(4)
    ]
    assert all(kept["mask"] == kept["truth"] and (kept["image"], kept["source"]) == ("a.jpg", "sav") for kept in examples.kept)
    seen = coco.decode({"size": [EXAMPLE_SIDE] * 2, "counts": examples.kept[0]["mask"]})
    assert (seen[:, : EXAMPLE_SIDE // 2] == 1).all() and (seen[:, EXAMPLE_SIDE // 2 :] == 0).all()
    examples.after(50, {})
    examples.keep("loop1", Example([("b.jpg", "sa1b")] * 2, {}, soft[:2], soft[:2]))
    assert [(kept["step"], kept["image"], kept["texts"]) for kept in examples.kept[4:]] == [(51, "b.jpg", {})] * 2
    assert not Examples(0, 100, True).wanted("loop1")


def rows_of(folder: Path, name: str) -> list[str]:
    return (folder / "plots" / f"{name}.tsv").read_text().splitlines()


def test_curves_grow_step_by_step(tmp_path: Path) -> None:
    """Whatever ends a run at step n leaves n rows; what lies there of another run goes, what a state does not have too."""
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.tsv").write_text("step\tloss\n1\t9\n2\t9\n")
    curves = Curves(tmp_path)
    for step in (1, 2, 3):
        curves.after(step, {"loss": float(step)} | ({"rare": 0.5} if step == 3 else {}))
        assert rows_of(tmp_path, "loss") == ["step\tloss", *(f"{n}\t{n}" for n in range(1, step + 1))]
    assert rows_of(tmp_path, "rare") == ["step\trare", "3\t0.5"]
    again = Curves(tmp_path)
    again.load_state_dict({"rows": {"loss": [(1, 1.0), (2, 2.0)]}})
    assert rows_of(tmp_path, "loss") == ["step\tloss", "1\t1", "2\t2"]
    again.after(3, {"loss": 3.0, "rare": 0.25})
    assert (rows_of(tmp_path, "loss")[-1], rows_of(tmp_path, "rare")) == ("3\t3", ["step\trare", "3\t0.25"])


def test_metrics_are_the_mean_of_the_last_tenth(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    for step in range(20):
        curves.after(step + 1, {"loss": float(step), "ref_mask": float(step)})
    curves.finish()
    assert (tmp_path / "plots" / "loss.tsv").read_text().splitlines()[:2] == ["step\tloss", "1\t0"]
    assert json.loads((tmp_path / "last_steps.json").read_text()) == {"loss": 18.5, "ref_mask": 18.5}
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"loss": 18.5}, "the main ones"


def test_metrics_of_a_validated_run_are_those_of_the_epoch_that_is_kept(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    for step, ciou in ((10, 0.3), (20, 0.5), (30, 0.4)):
        curves.after(step, {"loss": 1.0, "val_ciou": ciou})
    curves.best = {"val_ciou": 0.5}
    curves.finish()
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"loss": 1.0, "val_ciou": 0.5}
