import pytest
import torch

from ans.model.segmenter import Segmenter
from tests.golden_case import GoldenCase


@pytest.fixture(scope="session")
def golden() -> GoldenCase:
    return GoldenCase()


@pytest.fixture(scope="session")
def golden_folder(golden: GoldenCase, tmp_path_factory: pytest.TempPathFactory):
    return golden.write_model(tmp_path_factory.mktemp("golden") / "hf")


@pytest.fixture(scope="session")
def golden_model(golden_folder) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter.from_pretrained(golden_folder)
