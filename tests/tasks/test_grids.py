"""The tasks on a family whose images have grids of their own shape, neither square nor alike."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ans.data.matching import region_mask
from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Segmenter
from ans.tasks.loop2 import region_shares
from tests import odd_family
from tests.golden_case import GoldenSet
from tests.task_case import TaskCase

REFUSED = "was not trained to describe regions; train it on captions first, train.captioning.enabled=true"
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


@pytest.mark.parametrize(("golden_set", "family"), [("sa2va_qwen3vl", "Qwen3-VL"), ("sa2va_qwen25vl", "Qwen2.5-VL")])
def test_what_never_learnt_regions_says_what_to_do(case: TaskCase, tmp_path: Path, golden_set: str, family: str) -> None:
    case.model = Segmenter.from_pretrained(GoldenSet(golden_set).write_model(tmp_path / "model"))
    for name in ("loop1", "loop2"):
        message = f"train.{name}: Sa2VA on {family} {REFUSED} ({PAGE}, {HEADING}); else set train.{name}.enabled=false"
        with pytest.raises(ValueError, match=re.escape(message)):
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
@pytest.mark.second
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


def cells_by_hand(mask: np.ndarray, rows: int, columns: int) -> list[list[bool]]:
    """A cell is inside where the pixel at its upper left corner is; where no cell is, the one with the largest share of the mask."""
    height, width = mask.shape
    upper, left = ([number * edge // count for number in range(count)] for edge, count in ((height, rows), (width, columns)))
    inside = [[bool(mask[y, x]) for x in left] for y in upper]
    if not any(map(any, inside)):
        lower, right = (
            [-(-(number + 1) * edge // count) for number in range(count)] for edge, count in ((height, rows), (width, columns))
        )
        shares = {(r, c): mask[upper[r] : lower[r], left[c] : right[c]].mean() for r in range(rows) for c in range(columns)}
        row, column = max(shares, key=shares.__getitem__)
        inside[row][column] = True
    return inside


@pytest.mark.second
def test_regions_lie_on_the_grid_of_the_described_image(odd: TaskCase) -> None:
    """By hand: each region's cells, and which of its image's tokens the language model reads for them, at every level."""
    batch = odd.task("loop1").batch(range(8))
    grids = [batch.images.pixels[index].grid for index in batch.describe_index]
    assert len({grid.region for grid in grids}) > 1 and any(grid.rows != grid.columns for grid in grids)
    records = {}
    for index in map(odd.indexes, odd.config.task("loop1").sources):
        for record in map(index.record, range(len(index))):
            records[record.second or record.path] = records[record.path] = record
    for cells, grid, (path, _) in zip(batch.cells, grids, batch.where, strict=True):
        assert tuple(cells.shape) == grid.region
        masks = [region_mask(records[path], region) for region in records[path].regions]
        assert cells.tolist() in [cells_by_hand(mask, *grid.region) for mask in masks]

    model, seen = odd.model.eval(), []
    run = model.vlm.run
    model.vlm.run = lambda inputs, cache=None: (seen.append(inputs), run(inputs, cache))[1]
    features = odd.features(batch)
    model.caption_ids(features, batch.describe_index, batch.cells, batch.describe_questions, 1)
    asked = seen[-1]  # behind the images, which were read first
    visual = model.image_tokens(features)
    deep = [level.split([int(cells.sum()) for cells in batch.cells]) for level in asked.deep]
    assert len(deep) == len(visual[0].deep)
    for row, (index, grid, cells) in enumerate(zip(batch.describe_index, grids, batch.cells, strict=True)):
        places = [r * grid.columns + c for r in range(grid.rows) for c in range(grid.columns) if cells[r][c]]
        read = [asked.embeds[row][asked.visual[row]], *(level[row] for level in deep)]
        for found, level in zip(read, visual[index].levels, strict=True):
            assert torch.equal(found, torch.stack([level[0, place] for place in places]))
