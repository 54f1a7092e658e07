"""Saving trained tensors as a training checkpoint in the official key layout, atomically and self-described."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ans.checkpoints.layout import model_to_pth_name


def save_trained(path: Path, trained: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    """Write `{"state_dict", "meta"}` under `path`; never a half-written file under that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {model_to_pth_name(name): tensor.detach().cpu().clone() for name, tensor in trained.items()}
    temporary = path.with_suffix(".tmp")
    torch.save({"state_dict": state, "meta": dict(meta)}, temporary)
    os.replace(temporary, path)
