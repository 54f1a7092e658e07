"""What each process holds of frozen layers that are shared out. That the training is the same is held by `test_independent_step.py`."""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from ans.config import ConfigError, load
from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from ans.planning import memory
from ans.planning.released import RELEASED
from ans.training import setup
from ans.training.sharding import layers_of, local, parts_of, share_layers
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
    layers = sum(held(layer) for part in parts_of(model).values() for layer in layers_of(part))
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
        ({}, "launch.shard_frozen: one process has none to share with; set launch.processes, or false"),
        ({"launch.processes": 2, "train.four_bit": ["language"]}, "in 4 bits cannot be shared out"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PARAMS.changed({"launch.shard_frozen": True} | changes)
