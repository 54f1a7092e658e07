"""What stops a run, and what only warns."""

import json
from types import SimpleNamespace

import pytest
import torch
from ans.training.chains import Chains
from ans.training.curves import Curves
from ans.training.watch import WINDOW, Degenerate, Watch

from ans.objectives.losses import Chain

GOOD = {"ref_seg_rate": 1.0, "loop1_seg_rate": 0.9, "loop1_teacher_empty": 0.0, "loop1_teacher_different": 0.8}


def looked(values: dict[str, float], steps: int = WINDOW) -> Watch:
    watch = Watch(0.5)
    for step in range(steps):
        watch.look(step + 1, GOOD | values)
    return watch


def test_a_sound_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    looked({}, 3 * WINDOW)
    assert capsys.readouterr().err == ""


def test_no_more_seg(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Degenerate, match=rf"step {WINDOW}: .*\[SEG\] in only 10% .*loop1_seg_rate.*train\.min_seg_rate \(50%\)"):
        looked({"loop1_seg_rate": 0.1})
    looked({"loop1_seg_rate": 0.1}, WINDOW - 1)  # too few steps to tell


def test_a_teacher_that_says_nothing() -> None:
    with pytest.raises(Degenerate, match="the teacher says nothing"):
        looked({"loop1_teacher_empty": 1.0})


def test_a_teacher_that_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    looked({"loop1_teacher_different": 0.01}, 2 * WINDOW)
    assert capsys.readouterr().err.count("the teacher says the same") == 1


def test_a_state_continues_the_history() -> None:
    half = looked({"loop1_seg_rate": 0.1}, WINDOW // 2)
    other = Watch(0.5)
    other.load_state_dict(half.state_dict())
    with pytest.raises(Degenerate):
        for step in range(WINDOW // 2):
            other.look(step, GOOD | {"loop1_seg_rate": 0.1})


def test_chains_are_kept_evenly_and_once() -> None:
    chains = Chains(times=4, steps=101)
    assert chains.left[1] == chains.left[2] == [22, 48, 72, 98]  # not the very last step, which may have no chain
    assert [step for step in range(101) if chains.wanted(1, step)] == list(range(22, 101))
    soft = torch.zeros(5, 8, 8)
    soft[:, :, :4] = 1
    batch = SimpleNamespace(where=[("a.jpg", "sav")] * 5, targets=SimpleNamespace(soft=soft))
    chains.keep(1, 27, batch, Chain([f"said {i}" for i in range(5)], [f"heard {i}" for i in range(5)], 20 * soft - 10))
    assert [chains.wanted(1, step) for step in (28, 47, 48)] == [False, False, True]  # 22 to 26 were on referring images
    assert chains.wanted(2, 28), "each loop has its own"
    assert [(c["loop"], c["step"], c["before"], c["after"]) for c in chains.kept] == [
        (1, 28, f"said {i}", f"heard {i}") for i in range(4)
    ]
    assert all(chain["mask"] == chain["truth"] for chain in chains.kept)
    assert not Chains(0, 100).wanted(1, 99)


def test_metrics_are_the_mean_of_the_last_tenth(tmp_path) -> None:
    curves = Curves(tmp_path)
    for step in range(20):
        curves.add(step + 1, {"loss": float(step)})
    curves.finish()
    assert (tmp_path / "plots" / "loss.tsv").read_text().splitlines()[:2] == ["step\tloss", "1\t0"]
    assert '"loss": 18.5' in (tmp_path / "metrics.json").read_text()


def test_metrics_of_a_validated_run_are_those_of_the_epoch_that_is_kept(tmp_path) -> None:
    curves = Curves(tmp_path)
    for step, ciou in ((10, 0.3), (20, 0.5), (30, 0.4)):
        curves.add(step, {"loss": 1.0, "val_ciou": ciou})
    curves.finish({"epoch": 2, "step": 20, "loss": 2.0, "val_ciou": 0.5})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"loss": 1.0, "val_ciou": 0.5}
