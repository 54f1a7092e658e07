"""What a step refuses, and what it hands on."""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from ans.config import load
from ans.tasks.base import Now
from ans.training.schedule import lr_factor
from ans.training.step import Gradients, Stepper, count
from tests.pipeline import REPOSITORY


@pytest.fixture
def stepper() -> Stepper:
    parameter = nn.Parameter(torch.ones(3))
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    task = SimpleNamespace(role="primary", finish=lambda values: values | {"doubled": 2 * values["loss"]})
    settings = load(REPOSITORY / "params.yaml").train
    optimizer = torch.optim.SGD([parameter], lr=settings.lr)
    model: Any = None
    return Stepper(
        model, cast(Any, {"task": task}), settings, 4, [parameter], {"all": [slice(0, 3)]}, optimizer, cast(Any, None), nullcontext,
        cast(Any, accelerator),
    )  # fmt: skip


class Two:
    """An accelerator of two processes that do the same."""

    device, num_processes, autocast = torch.device("cpu"), 2, nullcontext

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        return 2 * value


@pytest.mark.parametrize("auxiliary", [True, False])
def test_gradients_and_values_are_sums_over_micro_batches_and_processes(auxiliary: bool) -> None:
    """By hand; the loss is the primary tasks' alone, and an example is kept where one is wanted and there is one."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    asked: list[Any] = []

    class Task:
        def __init__(self, role: str, example: str | None) -> None:
            self.role, self.example = role, example

        def losses(self, model: Any, features: Any, batch: Any, counts: Any, now: Now) -> Any:
            asked.append((model, features, counts, now.step, now.steps, now.examples))
            total = (parameter * torch.tensor(batch.weights)).sum() / counts["objects"]
            return SimpleNamespace(total=total, values={f"{self.role}_x": total.detach()}, example=self.example)

    def batch(*weights: float) -> Any:
        return SimpleNamespace(weights=weights, images=weights[0], counts={"objects": 1})

    tasks: Any = {"one": Task("primary", "seen"), "silent": Task("primary", None)}
    tasks |= {"help": Task("auxiliary", "helped")} if auxiliary else {}
    help_batches = [[("help", batch(3.0, 0.0))], [("help", batch(0.0, 5.0))]] if auxiliary else [[], []]
    micro = [[("one", batch(1.0, 0.0)), *help_batches[0]], [("silent", batch(0.5, 2.0)), *help_batches[1]]]
    settings = load(REPOSITORY / "params.yaml").train
    kept: list[Any] = []
    met: list[int] = []
    model: Any = SimpleNamespace(meet=lambda: met.append(len(asked)))
    examples: Any = SimpleNamespace(wanted=lambda name: name != "help", keep=lambda *what: kept.append(what))
    stepper = Stepper(
        model, tasks, settings, 4, [parameter], {"all": [slice(0, 2)]}, torch.optim.SGD([parameter], lr=1.0),
        cast(Any, lambda images: ("features", images)), nullcontext, cast(Any, Two()),
    )  # fmt: skip
    found = stepper.gradients(cast(Any, micro), dict.fromkeys(tasks, {"objects": 2}), 3, examples)
    assert found.primary.tolist() == [1.5, 2.0]  # twice half of both
    assert (None if found.auxiliary is None else found.auxiliary.tolist()) == ([3.0, 5.0] if auxiliary else None)
    values = {"primary_x": 1.0 + 4.5, "loss": 1.0 + 4.5} | ({"auxiliary_x": 3.0 + 10.0} if auxiliary else {})
    assert {name: float(value) for name, value in found.values.items()} == values
    assert kept == [("one", "seen")] and parameter.grad is None
    assert asked[0] == (model, ("features", 1.0), {"objects": 2}, 3, 4, True) and asked[1][-1] is (not auxiliary)
    assert met == list(range(1, len(asked) + 1)), "before each backward pass, in which shared layers are gathered again"


def test_counts_are_sums_and_one_process_stops_all() -> None:
    tasks: Any = {"a": SimpleNamespace(counted=("objects", "tokens")), "b": SimpleNamespace(counted=("objects",))}
    micro: Any = [
        [("a", SimpleNamespace(counts={"objects": 1, "tokens": 10}))],
        [("a", SimpleNamespace(counts={"objects": 2, "tokens": 20})), ("b", SimpleNamespace(counts={"objects": 7}))],
    ]
    alone: Any = SimpleNamespace(num_processes=1)
    two: Any = Two()
    assert count(micro, tasks, alone, False) == ({"a": {"objects": 3, "tokens": 30}, "b": {"objects": 7}}, False)
    assert count(micro, tasks, two, False) == ({"a": {"objects": 6, "tokens": 60}, "b": {"objects": 14}}, False)
    assert count([], tasks, alone, True) == ({"a": {"objects": 0, "tokens": 0}, "b": {"objects": 0}}, True)
    assert count([], tasks, two, True)[1] is True


def test_the_rate_is_each_group_s_own_times_the_schedule(stepper: Stepper) -> None:
    (group,) = stepper.optimizer.param_groups
    for step in (0, 3):
        factor = lr_factor(step, 4, stepper.settings.warmup, stepper.settings.schedule)
        values = stepper.update(Gradients(torch.ones(3), None, {"loss": torch.tensor(1.0)}), step)
        assert values["lr"] == pytest.approx(stepper.settings.lr * factor) and group["lr"] == pytest.approx(values["lr"])
    assert stepper.parameters[0].grad is None and "cosine_all" not in values


def test_values_are_numbers_when_the_step_is_over(stepper: Stepper) -> None:
    first, second = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.0, 2.0, 0.0])
    values = stepper.update(Gradients(first, second, {"loss": torch.tensor(1.5)}), 3)
    assert all(type(value) is float for value in values.values())
    assert (values["loss"], values["doubled"], values["norm1_all"], values["norm2_all"]) == (1.5, 3.0, 5.0, 2.0)
    assert values["grad_norm"] == pytest.approx(math.hypot(5, 2 * stepper.settings.beta)) and values["cosine_all"] == 0.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run(stepper: Stepper, wrong: float) -> None:
    with pytest.raises(FloatingPointError, match="the gradient holds NaN or infinity; lower train.lr"):
        stepper.update(Gradients(torch.tensor([1.0, wrong, 0.0]), None, {"loss": torch.tensor(1.0)}), 0)


def test_a_value_that_is_no_number_is_named(stepper: Stepper) -> None:
    values = {"loss": torch.tensor(1.0), "ref_mask": torch.tensor(math.nan)}
    with pytest.raises(FloatingPointError, match="^step 3: NaN in ref_mask; lower train.lr"):
        stepper.update(Gradients(torch.ones(3), None, values), 2)
