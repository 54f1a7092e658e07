"""What a step refuses, and what it hands on."""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from ans.config import load
from ans.training.step import Gradients, Stepper
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
