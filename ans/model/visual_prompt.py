"""Region prompts: a mask becomes the cells of the image-token grid that it covers."""

import torch.nn.functional as F
from torch import Tensor


def region_cells(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Map (N, h, w) masks to (N, rows, columns) bool: the cells whose nearest sample lies in the mask (the official rule).

    A mask that no sample hits would give the model nothing to look at; it keeps the one cell that holds most of it.
    Raises `ValueError` for an empty mask.
    """
    masks = masks.float()
    cells = F.interpolate(masks[:, None], size=grid, mode="nearest")[:, 0] > 0
    for index in (~cells.flatten(1).any(1)).nonzero()[:, 0].tolist():
        if not masks[index].any():
            raise ValueError(f"region {index} is empty: a region prompt needs at least one pixel")
        share = F.adaptive_avg_pool2d(masks[index][None, None], grid).flatten()
        cells[index].view(-1)[share.argmax()] = True
    return cells
