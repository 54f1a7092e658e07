"""Saving trained tensors as a training checkpoint in the official key layout: atomic, durable, checksummed, self-described."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ans.checkpoints.layout import model_to_pth_name
from ans.checkpoints.pth import digest


def save_trained(path: Path, trained: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    """Write `{"state_dict", "meta"}` under `path`; never a half-written file under that name.

    `meta` gains `sha256`, the checksum of the tensors, which every reader verifies. The file is on the disk, not in a cache,
    when this returns. Raises `OSError` naming `path` when it cannot be written; what was there before is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Clones: a view would be saved with all of its storage.
    state = {model_to_pth_name(name): tensor.detach().cpu().clone() for name, tensor in trained.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"state_dict": state, "meta": dict(meta) | {"sha256": digest(state)}}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: how torch's writer says that a write failed
        temporary.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise OSError(
            f"{path} could not be saved: {reason}; free space and start again; earlier checkpoints there are untouched"
        ) from error


def _sync_folder(folder: Path) -> None:
    """A renamed file survives a power cut only once its folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
