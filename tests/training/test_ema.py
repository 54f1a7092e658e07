"""The teacher: closed form, and a student that notices nothing."""

import pytest
import torch
from torch import nn

from ans.model.segmenter import Segmenter
from ans.training.ema import Teacher
from tests import pipeline


def test_closed_form() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    teacher = Teacher({"p": p}, 0.9, warmup=False)
    values = torch.linspace(1, 5, 20, dtype=torch.float64)
    for step, value in enumerate(values):
        p.data.fill_(value)
        teacher.update(step)
    expected = sum(0.1 * 0.9 ** (19 - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(teacher.average["p"], expected.expand(3))


def test_warmup_and_no_average() -> None:
    teacher = Teacher({}, 0.99, warmup=True)
    assert [teacher.rate(step) for step in (0, 9, 10**6)] == [pytest.approx(0.1), pytest.approx(10 / 19), 0.99]
    p = nn.Parameter(torch.zeros(2))
    student = Teacher({"p": p}, 0.0, warmup=False)
    p.data.fill_(3.0)
    student.update(0)
    assert torch.equal(student.average["p"], p.data)


def test_a_saved_average_is_copied_in() -> None:
    p = nn.Parameter(torch.zeros(2))
    one, other = (Teacher({"p": p}, 0.5, warmup=False) for _ in range(2))
    one.average["p"].fill_(3.0)
    other.load_state_dict({name: average.clone() for name, average in one.state_dict().items()})
    assert other.average["p"].tolist() == [3.0, 3.0]
    one.average["p"].fill_(4.0)
    assert other.average["p"].tolist() == [3.0, 3.0]
    with pytest.raises(KeyError):
        other.load_state_dict({})


@pytest.mark.second
def test_the_student_is_untouched() -> None:
    model = Segmenter.from_pretrained(pipeline.REPOSITORY / "weights" / "tiny").train()
    trained = {name: p for name, p in model.named_parameters() if name.startswith("vlm.mlp1.")}
    for p in trained.values():
        p.grad = torch.ones_like(p)
    teacher = Teacher(trained, 0.5, warmup=False)
    before = {name: p.detach().clone() for name, p in trained.items()}
    for average in teacher.average.values():
        average.add_(1.0)
    with teacher.of(model):
        assert not model.training and not torch.is_grad_enabled()
        assert all(torch.equal(p.data, before[name] + 1.0) for name, p in trained.items())
    with pytest.raises(KeyError), teacher.of(model):
        raise KeyError
    assert model.training and torch.is_grad_enabled()
    assert all(torch.equal(p.data, before[name]) and (p.grad == 1).all() for name, p in trained.items())


def test_autocast_keeps_nothing_of_an_evaluation() -> None:
    """What was cast without a gradient would have none afterwards."""
    layer, x = nn.Linear(8, 8), torch.randn(2, 8)
    model = Segmenter.from_pretrained(pipeline.REPOSITORY / "weights" / "tiny")
    with torch.autocast("cpu", torch.bfloat16):
        with model.evaluating():
            layer(x)
        loss = layer(x).float().sum()
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, list(layer.parameters())))


def test_autocast_keeps_nothing_of_the_teacher() -> None:
    """Autocast keeps a parameter's bf16 copy until its context ends, and does not see that the parameter's data was swapped."""
    layer, x = nn.Linear(8, 8), torch.randn(2, 8)
    model = Segmenter.from_pretrained(pipeline.REPOSITORY / "weights" / "tiny")
    teacher = Teacher(dict(layer.named_parameters()), 0.5, warmup=False)
    for average in teacher.average.values():
        average.add_(1.0)
    with torch.autocast("cpu", torch.bfloat16):
        alone = layer(x)
        with teacher.of(model):
            taught = layer(x)
        assert torch.equal(layer(x), alone) and not torch.equal(alone, taught)
    with torch.autocast("cpu", torch.bfloat16):
        with teacher.of(model):
            assert torch.equal(layer(x), taught)
        student = layer(x)
    assert torch.equal(student, alone)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(student.float().sum(), list(layer.parameters())))
