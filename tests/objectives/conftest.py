"""One tiny model ready to train and one micro-batch of every kind."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ans.data.dataset import Referring, Regions, Sampling, TrainingData, training_rows
from torch import nn

from ans.config import Config
from ans.data.arrow import read_index
from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Segmenter
from tests import pipeline


@pytest.fixture(scope="package")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("objectives"))


@pytest.fixture
def case(small_world: Path) -> SimpleNamespace:
    """model, trained (name -> parameter), data, config: the loops' settings as in `params.yaml`."""
    config = Config(pipeline.small_values(small_world.parent / "world"))
    model = Segmenter.from_pretrained(pipeline.REPOSITORY / "weights" / "tiny")
    add_lora(model, 4, 8.0, 0.0, generator_seed=0)
    trained = select_trained(model, ("lora", "proj", "fcs", "sam2_decoder"))
    torch.manual_seed(0)
    for name, parameter in trained.items():
        if ".lora_B." in name:  # as after some steps: from zero, nothing reaches A
            nn.init.normal_(parameter, std=0.02)
    indexes = [read_index(small_world / "data" / "index" / f"{name}.arrow") for name in pipeline.REFERRING]
    masks = [Regions(n, read_index(small_world / "data" / "index" / f"{n}.arrow"), None) for n in config.train.loop1.sources]
    captions = Regions("describe", read_index(small_world / "data" / "index" / "describe.arrow"), None)
    data = TrainingData(
        Referring(indexes, training_rows(indexes)[0]),
        masks,
        [1.0] * len(masks),
        captions,
        small_world.parent / "world",
        model.config,
        model.tokenizer,
        Sampling(1, 4, 1, 0, 3, 1, 1, 12, 16, 1),
        items=8,
    )
    return SimpleNamespace(model=model.train(), trained=trained, data=data, config=config)
