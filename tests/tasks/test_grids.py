"""The tasks on a family whose images have grids of their own shape, neither square nor alike."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Segmenter
from ans.tasks.loop2 import region_shares
from tests import odd_family
from tests.golden_case import GoldenSet
from tests.task_case import TaskCase

REFUSED = "Sa2VA on Qwen3-VL was not trained to describe regions; train it on captions of regions first"
PAGE, HEADING = "docs/real-runs.md", "Regions on Qwen-VL"
GROUPS = ("lora", "proj", "fcs", "sam2_decoder")


@pytest.fixture(params=["odd", "sa2va_qwen3vl", "sa2va_qwen25vl"])
def odd(request: pytest.FixtureRequest, case: TaskCase, tmp_path: Path) -> TaskCase:
    """Also the official ones, as if they had learnt regions; with random weights that is no difference."""
    if request.param == "odd":
        case.model = odd_family.model().train()
    else:
        folder = GoldenSet(request.param).write_model(tmp_path / "model", regions=True, min_pixels=1024, max_pixels=24 * 1024)
        case.model = Segmenter.from_pretrained(folder).train()
    add_lora(case.model, 4, 8.0, 0.0, generator_seed=0)
    case.trained = select_trained(case.model, GROUPS if request.param == "odd" else tuple(set(GROUPS) - {"proj"}))
    return case


@pytest.mark.parametrize("name", ["loop1", "loop2"])
def test_what_never_learnt_regions_says_what_to_do(case: TaskCase, tmp_path: Path, name: str) -> None:
    case.model = Segmenter.from_pretrained(GoldenSet("sa2va_qwen3vl").write_model(tmp_path / "model"))
    with pytest.raises(
        ValueError, match=re.escape(f"train.{name}: {REFUSED} ({PAGE}, {HEADING}); else set train.{name}.enabled=false")
    ):
        case.task(name)
    assert f"\n## {HEADING}\n" in (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")


def test_a_mask_is_pooled_on_each_images_own_grid() -> None:
    logits = torch.full((2, 8, 8), -50.0)
    logits[0, :4, :2], logits[1, 6:] = 50.0, 50.0
    first, second = region_shares(logits, [(2, 4), (4, 1)])
    assert first.round().tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]] and second.round().tolist() == [[0], [0], [0], [1]]


@pytest.mark.parametrize(
    ("name", "changes"), [("referring", {}), ("loop1", {"bridge": "gumbel"}), ("loop2", {"soft_region": True})]
)
def test_every_task_learns(odd: TaskCase, name: str, changes: dict[str, object]) -> None:
    task = odd.task(name, **changes)
    batch = task.batch(range(10))
    grids = {pixels.grid for pixels in batch.images.pixels}
    assert len(grids) > 1 and any(grid.rows != grid.columns for grid in grids)
    losses = odd.losses(task, batch)
    assert torch.isfinite(losses.total)
    gradients: dict[str, Tensor | None] = odd.gradients(losses)
    reached = {key for key, gradient in gradients.items() if gradient is not None and gradient.abs().sum() > 0}
    assert any(".lora_B." in key for key in reached)
    assert any(key.startswith("vlm.odd.project") for key in reached) == any("odd" in key for key in odd.trained)
    assert [key for key in odd.trained if key not in reached and ".lora_" not in key and "hypernetworks" not in key] == []


def test_regions_lie_on_the_grid_of_the_described_image(odd: TaskCase) -> None:
    batch = odd.task("loop1").batch(range(4))
    shapes = [batch.images.pixels[index].grid.region for index in batch.describe_index]
    assert [tuple(cells.shape) for cells in batch.cells] == shapes
