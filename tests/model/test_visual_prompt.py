"""Region cells: the official rule, and the cell that a small mask keeps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ans.model.visual_prompt import region_cells


def test_by_hand() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 0:4, 4:8] = 1
    assert region_cells(mask, (4, 4))[0].int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_small_mask_keeps_its_best_cell() -> None:
    mask = torch.zeros(1, 16, 16)
    mask[0, 5:7, 7] = 1  # no sample of a 4 x 4 grid (rows and columns 0, 4, 8, 12) lies in it
    cells = region_cells(mask, (4, 4))[0]
    assert cells.nonzero().tolist() == [[1, 1]]


def test_grids_need_not_be_square() -> None:
    mask = torch.zeros(1, 8, 12)
    mask[0, 4:, :4] = 1
    assert region_cells(mask, (2, 3))[0].int().tolist() == [[0, 0, 0], [1, 0, 0]]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_never_empty(height: int, width: int, seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    mask = torch.zeros(1, height, width)
    mask[0, rng.integers(height), rng.integers(width)] = 1
    assert region_cells(mask, (rows, columns)).any()


def test_an_empty_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="region 1 is empty"):
        region_cells(torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]), (2, 2))
