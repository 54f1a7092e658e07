"""A step waits for the device once, when all of its work has been handed over; see `tests/synchronisations.py`."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ans.model import generate
from ans.training.loop import train
from tests.model.test_generate import model as text_model
from tests.pipeline import beside, prepare, small_config
from tests.synchronisations import OnDevice, Synchronisations

END = "training/step.py update"
"""Where a step's values are fetched."""

FETCHED = "model/host.py get"
"""What was sent to the host before: the tokens of several decoding steps, which decide whether more are taken; and the masks that loop 2
has just made, on which the number of its prompts' tokens depends."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("waits"))


def waits(work: Path, folder: Path, steps: int, **changes: object) -> Counter[str]:
    """Where a training of so many steps waits, and how often."""
    quiet = {"launch__workers": 0, "launch__save_state_seconds": 1e6, "train__steps": steps, "train__gallery": 1}
    config = small_config(work.parent / "world", **quiet, **changes)
    with Synchronisations() as mode:
        train(config, beside(work, folder / f"steps{steps}"))
    return mode.counts


def each_step(work: Path, folder: Path, **changes: object) -> dict[str, float]:
    """What steps after the first add, by place."""
    short, long = (waits(work, folder, steps, **changes) for steps in (2, 4))
    return {place: (long[place] - short[place]) / 2 for place in long if long[place] != short[place]}


@pytest.mark.slow
def test_a_supervised_step_waits_once(work: Path, tmp_path: Path) -> None:
    found = each_step(work, tmp_path, train__loop1__enabled=False, train__loop2__enabled=False)
    assert found == {END: 1}


@pytest.mark.slow
@pytest.mark.parametrize("bridge", ["gumbel", "hard"])
def test_a_dual_step_waits_once_and_for_its_captions(
    work: Path, tmp_path: Path, bridge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end; for the last of the teacher's tokens; and in loop 2 for the masks that become a prompt."""
    monkeypatch.setitem(generate.PACES, "cpu", generate.PACES["cuda"])
    found = each_step(work, tmp_path, train__referring__enabled=False, train__loop1__bridge=bridge, train__caption_len=8)
    assert found == {END: 1, FETCHED: 2}


@pytest.mark.parametrize(("tokens", "end"), [(1, None), (8, None), (20, None), (60, 20)])
def test_decoding_leaves_the_device_without_work_once_at_most(
    tokens: int, end: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its last tokens. Where all answers have `end`ed before, not even then: the next eight tokens, which nobody needs, are on
    their way."""
    monkeypatch.setitem(generate.PACES, "cpu", generate.PACES["cuda"])
    row, device = torch.arange(8, 13), torch.device("cpu")
    with Synchronisations():
        vlm = text_model().to(device)
        prefix = vlm.read([row[:2]]).rows(torch.arange(1))
        inputs = vlm.rows(prefix, [row[2:]])
        inputs = replace(inputs, embeds=inputs.embeds.to(device))
    with Synchronisations() as mode:
        (said,) = generate.greedy(vlm, prefix, inputs, lambda ids: len(ids) == end, 7, tokens, confidence=True)
    assert len(said.ids) == (end or tokens)
    assert mode.counts == ({FETCHED: 1} if end is None else {})
    assert mode.ahead.total() == math.ceil((end or tokens) / 8) - mode.counts.total()


def test_what_would_wait_is_counted() -> None:
    device = torch.device("cpu")
    with Synchronisations() as mode:
        here = torch.arange(4.0)
        there = here.to(device, non_blocking=True)
        assert isinstance(there * 2 + here, OnDevice) and not isinstance(here + 1, OnDevice)
        here[here > 1].sum().item()  # all of it on the host
        assert not mode.counts
        for ask in (
            lambda: float(there.sum()),
            lambda: there.tolist(),
            lambda: bool((there > 1).any()),
            lambda: there[there > 1],
            lambda: (there > 1).nonzero(),
            lambda: torch.ones(2, device=device).cpu(),
            lambda: here.to(device),
            lambda: torch.tensor([1.0], device=device),
        ):
            before = mode.counts.total()
            ask()
            assert mode.counts.total() == before + 1
        there[torch.tensor([0, 1])], there.clamp(max=1.0), torch.where(there > 1, there, 0.0), there.cpu()
        assert mode.counts.total() == before + 2
