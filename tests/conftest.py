import gc
import os
from collections.abc import Iterator

gc.disable()  # until all is imported: PyTorch and the like leave a million objects, among which there is no garbage

# One thread each, here and in what tests start: pytest runs as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

from ans.model.segmenter import Segmenter  # noqa: E402
from tests.golden_case import GoldenCase, recorded_resize  # noqa: E402

LONG = (
    "test_resume", "test_commands", "test_independent_step", "test_extending", "test_pipeline", "test_killed", "test_ranks",
    "test_lisa_pipeline", "test_families_pipeline", "test_families", "test_errors", "test_golden_curves", "test_report", "test_hub",
    "test_docs", "test_gpu", "test_synchronisations", "test_predict", "test_smoke", "test_validation", "test_official_client",
    "test_package", "test_clips", "test_small_run", "test_push",
)  # fmt: skip
"""Files that take a quarter of a minute and more: begun first, so that no process waits for another at the end."""


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def golden() -> GoldenCase:
    return GoldenCase()


@pytest.fixture(scope="module")
def as_recorded() -> Iterator[None]:
    """See `recorded_resize`."""
    with recorded_resize():
        yield


@pytest.fixture(scope="session")
def golden_folder(golden: GoldenCase, tmp_path_factory: pytest.TempPathFactory):
    return golden.write_model(tmp_path_factory.mktemp("golden") / "hf")


@pytest.fixture(scope="session")
def golden_model(golden_folder) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter.from_pretrained(golden_folder)
