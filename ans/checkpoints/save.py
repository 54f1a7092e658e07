"""Saving trained tensors as a training checkpoint in the official key layout: atomic, durable, checksummed, self-described."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ans.files import replacing
from ans.formats.pth import tensors_checksum
from ans.model.keys import Keys


def save_trained(path: Path, keys: Keys, trained: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    """Write `{"state_dict", "meta"}` under `path`; never a half-written file under that name.

    `keys`: the model's names; `trained`: tensors by their names in the model. `meta` gains `sha256`, the checksum of the tensors,
    which every reader verifies. Raises as `save_durably`.
    """
    # Clones: a view would be saved with all of its storage.
    state = {keys.trained_name(name): tensor.detach().cpu().clone() for name, tensor in trained.items()}
    save_durably(path, {"state_dict": state, "meta": dict(meta) | {"sha256": tensors_checksum(state)}})


def save_durably(path: Path, content: Mapping[str, object]) -> None:
    """Save as `torch.save` does, whole or not at all. The file is on the disk, not in a cache, when this returns.

    Raises `OSError` naming `path` when it cannot be written; what was there before is untouched then.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: how torch's writer says that a write failed
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        text = f"{path} could not be saved: {reason}; free space and start again; what was saved before is untouched"
        raise OSError(text) from error


def _sync_folder(folder: Path) -> None:
    """Write out the folder: a renamed file survives a power cut only once its folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
