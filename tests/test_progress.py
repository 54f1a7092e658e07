"""Lines without a terminal, at the times that they are promised for; durations as people say them."""

import re

import pytest

from ans import progress
from ans.progress import Progress, duration


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run(clock: Clock, steps: int, seconds: float, done: int = 0, quiet: bool = False) -> None:
    with Progress(steps, "train", "step", quiet) as bar:
        bar.start_at(done)
        for step in range(done, steps):
            clock.now += seconds
            bar.update(values={"loss": 10.0 / (step + 1)})


def test_a_line_at_the_first_step_then_every_30_seconds_and_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 100, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"step (\d+) of 100", line)[1] for line in lines] == ["1", "31", "61", "91", "100"]
    assert lines[0] == "train: step 1 of 100, loss 10, started within 1 s"
    assert lines[1] == "train: step 31 of 100, loss 0.3226, 1.00 s a step, 69 s left"
    assert lines[-1] == "train: step 100 of 100, loss 0.1, 1.00 s a step"


def test_what_a_unit_holds_is_counted_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, "train", "step", holds=(32, "images")) as bar:
        for _ in range(31):
            clock.now += 2.0
            bar.update(values={"loss": 1.0, "lr": 2e-5})
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "train: step 16 of 100, loss 1, lr 2e-05, 2.00 s a step, 16 images a second, 3 min left"


def test_slow_units_have_a_line_each_and_short_work_has_none(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 4, 3600.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "train: step 1 of 4, loss 10, started within 60 min",
        "train: step 2 of 4, loss 5, 3600.00 s a step, 2 h 0 min left",
    ]
    run(clock, 29, 1.0)
    assert capsys.readouterr().err == ""


def test_what_was_done_before_counts_for_no_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 200, 0.01, done=199)
    assert capsys.readouterr().err == ""
    run(clock, 10_000, 0.01, done=100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: step 101 of 10,000, loss 0.09901, started within 0 s"
    assert re.fullmatch(r"train: step 3,1\d\d of 10,000, loss 0.003\d+, 100 steps a second, 69 s left", lines[1]), lines[1]


def test_a_slow_start_is_no_forecast(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, "train", "step") as bar:
        for seconds in (40.0, 1.0, 30.0):
            clock.now += seconds
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "train: step 1 of 100, started within 40 s",
        "train: step 3 of 100, 15.50 s a step, 25 min left",
    ]


def test_quiet_processes_say_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 100, 1.0, quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5969, "99 min"), (6000, "1 h 40 min"), (172_799, "2 d 0 h"), (4e5, "4 d 15 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
