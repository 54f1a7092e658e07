"""What each process holds of frozen layers that are shared out. That the training is the same is held by `test_independent_step.py`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from ans.config import ConfigError, load
from ans.model.adapters import add_lora, select_trained
from ans.model.config import ModelConfig
from ans.model.family import Inputs
from ans.model.segmenter import Query, Segmenter
from ans.planning import memory
from ans.planning.released import RELEASED
from ans.training import setup
from ans.training.sharding import MEETING, Sharing, local, parts_of, share_layers, stack_of
from tests import small_releases
from tests.pipeline import REPOSITORY

PARAMS = load(REPOSITORY / "params.yaml")
TINY = REPOSITORY / "weights" / "tiny"


@pytest.fixture
def eight() -> Iterator[None]:
    """Process 0 of eight, none of which can be talked to."""
    distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield
    distributed.destroy_process_group()


def held(module: nn.Module) -> int:
    """Bytes of the frozen tensors."""
    return sum(local(p).numel() * p.element_size() for p in module.parameters() if not p.requires_grad)


@pytest.mark.parametrize("name", ["tiny", "lisa-tiny", pytest.param("ByteDance/Sa2VA-26B", marks=pytest.mark.slow)])
def test_a_process_holds_what_the_plan_says(name: str, eight: None) -> None:
    """Of models beyond one card the shapes alone; the layers are an eighth, and are nearly all of the parts."""
    config = ModelConfig.from_dict(RELEASED[name]) if name in RELEASED else ModelConfig.from_folder(REPOSITORY / "weights" / name)
    train = PARAMS.changed({"train.precision": "bf16"}).train
    model = memory.empty_model(config)
    model.vlm.to(torch.bfloat16)
    trained = setup.make_trainable(model, train)
    planned = memory.estimate(model, train, memory.Micro(1, 1), teacher=True, loops=True, shares=8)
    whole = {part: held(module) for part, module in parts_of(model).items()}
    layers = sum(held(layer) for part in parts_of(model).values() for layer in stack_of(part)[1])
    mesh = init_device_mesh("cpu", (8,))
    for part in parts_of(model).values():
        share_layers(part, mesh)
    for part, module in parts_of(model).items():
        table = model.vlm.language_model.get_input_embeddings() if part == "language" else nn.Module()
        assert held(module) - held(table) == pytest.approx(1e9 * planned[f"{part}: weights"], rel=1e-9), part
    if name not in ("tiny", "lisa-tiny"):
        around = sum(whole.values()) - layers
        assert sum(held(part) for part in parts_of(model).values()) == pytest.approx(around + layers / 8, rel=1e-3)
    assert all(type(parameter) is nn.Parameter for parameter in trained.values()), "what is trained stays whole"


def test_a_change_of_a_share_is_seen(eight: None) -> None:
    model, trained = setup.load_model(PARAMS.train, TINY, torch.device("cpu"))
    for part in parts_of(model).values():
        share_layers(part, init_device_mesh("cpu", (8,)))
    before = setup.frozen_checksum(model, trained)
    assert setup.frozen_checksum(model, trained) == before
    shared = [p for p in model.parameters() if type(p) is not nn.Parameter]
    assert shared
    local(shared[-1]).view(torch.int32).flatten()[0] += 1
    assert setup.frozen_checksum(model, trained) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "launch.shard_frozen: needs several processes; raise launch.processes, or set it to false"),
        ({"launch.processes": 2, "train.four_bit": ["language"]}, "in 4 bits cannot be sharded"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PARAMS.changed({"launch.shard_frozen": True} | changes)


class Layer:
    """Notes what it is told."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.unshard, self.reshard = (lambda: told.append(f"+{name}")), (lambda: told.append(f"-{name}"))


@pytest.mark.parametrize(
    ("wanted", "others", "told"),
    [
        (MEETING, [MEETING], []),
        (4, [4], []),
        (4, [MEETING], []),  # the other has nothing left, and helps
        (MEETING, [4, 4, MEETING], ["+a", "-a", "+b", "-b"] * 2),
        (5, [6, 5], ["+d", "-d"]),
        (1, [5, 1], ["+c", "-c"]),
        (1, [MEETING], None),
        (MEETING, [4, 2], None),
    ],
)
def test_whose_turn_it_is(wanted: int, others: list[int], told: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three parts: 1 to 3 are forwards with a gradient, 4 to 6 without."""
    left, seen = list(others), []

    def all_reduce(values: Tensor, *_: Any) -> None:
        other = left.pop(0)
        values.copy_(torch.maximum(values, torch.tensor([other, -other])))

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    sharing: Any = Sharing.__new__(Sharing)
    sharing.group = None
    sharing.layers = [[Layer(name, seen) for name in names] for names in ("ab", "c", "d")]
    if told is None:
        with pytest.raises(RuntimeError, match="launch.shard_frozen: the processes run different numbers of forwards"):
            sharing._agree_on(wanted)
    else:
        sharing._agree_on(wanted)
        assert seen == told and not left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", *small_releases.TWINS])
def test_every_family_runs_in_shares(name: str, tmp_path: Path) -> None:
    """Here all shares are one process's own: answers, masks, and the gradient through checkpointed layers are the same bits."""
    folder = TINY if name == "tiny" else small_releases.twin(name, tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)

    def found(model: Segmenter) -> list[Tensor]:
        language = model.vlm.language_model
        add_lora(model, 2, 4, 0.0, 1)
        select_trained(model, ("lora",))
        if distributed.is_initialized():
            for part in parts_of(model).values():
                share_layers(part, init_device_mesh("cpu", (1,)))
                assert any(isinstance(p, DTensor) for p in part.parameters())
        features = model.encode_images([image])
        ids = [answer.ids for answer in model.answer(features, [Query(0, "what is this?")], 4)]
        language.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        width = model.config.language.hidden_size
        embeds = torch.randn(1, 6, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
        places = torch.arange(6)[None]
        inputs = Inputs(
            embeds, torch.ones_like(places), places.expand(3, 1, 6), torch.zeros(1, 6, dtype=torch.bool), padded=False
        )
        first = model.vlm.run(inputs).normed
        second = model.vlm.run(replace(inputs, embeds=first)).normed  # twice before one backward pass, as in both loops
        trained = [embeds, *(p for p in model.parameters() if p.requires_grad)]
        gradients = torch.autograd.grad(second.square().sum(), trained)
        return [*features.levels, features.visual[0].tokens, torch.tensor(ids), second.detach(), *gradients]

    whole = found(Segmenter.from_pretrained(folder))
    distributed.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    try:
        shared = found(Segmenter.from_pretrained(folder))
    finally:
        distributed.destroy_process_group()
    assert len(whole) == len(shared) and all(torch.equal(one, other) for one, other in zip(whole, shared, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in whole[-4:])
