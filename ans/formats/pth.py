"""Reading a `.pth` that a user has: whatever its wrapping, without running anything in it and without believing its sizes."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ans.formats.shards import read_shard_index, refuse_link

_WRAPPINGS = ("state_dict", "model")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What weights may be in, under the names of safetensors."""


@dataclass(frozen=True)
class Checkpoint:
    """`state`: the tensors under their names in the file (`module.` cut), mapped from disk. `meta`: what it says of itself."""

    path: Path
    state: dict[str, Tensor]
    meta: dict[str, Any]


def read_pth(path: Path) -> Checkpoint:
    """Read a checkpoint: a run's folder (`best.pth`, else `last.pth`), a `.pth`, or a folder of `pytorch_model.bin`, sharded too.

    A file may be a bare dict of tensors, `{state_dict}`, `{meta, state_dict}` or `{model}`. Tensors stay on disk until used.
    Raises `FileNotFoundError`, or `ValueError` naming file and reason for one that is damaged, hostile or no checkpoint.
    """
    beside = path if path.is_dir() else path.parent
    if (beside / "adapter_config.json").exists() and (path == beside or path.name.startswith("adapter_model")):
        raise ValueError(
            f"{path}: an adapter as PEFT saves it, without the model; load it on its model, merge it (merge_and_unload) and save that"
        )
    if not path.is_dir():
        content, meta = _unwrap(path, _load(path))
    elif found := [path / name for name in ("best.pth", "last.pth") if (path / name).exists()]:
        return read_pth(found[0])
    elif (path / "pytorch_model.bin.index.json").exists():
        content, meta = _read_shards(path), {}
    elif (path / "pytorch_model.bin").exists():
        refuse_link(path / "pytorch_model.bin")
        content, meta = _unwrap(path / "pytorch_model.bin", _load(path / "pytorch_model.bin"))
    else:
        steps = ", ".join(sorted(file.name for file in path.glob("*.pth")))
        raise FileNotFoundError(
            f"{path}: holds neither last.pth nor pytorch_model.bin" + (f", but {steps}; name one of them" if steps else "")
        )
    state = _checked(path, content)
    if "sha256" in meta and meta["sha256"] != tensors_checksum(state):
        raise ValueError(f"{path}: its tensors do not have the sha256 that it records; the file is damaged, use an earlier one")
    return Checkpoint(path, state, meta)


def tensors_checksum(state: Mapping[str, Tensor]) -> str:
    """Return sha256 over names, types, shapes and bytes of all tensors, in name order."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        total.update(tensor_bytes(state[name]))
    return total.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's values as bytes, in row-major order; no copy where they lie so already."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _read_shards(folder: Path) -> dict[str, Any]:
    """Return all tensors of a folder with `pytorch_model.bin.index.json`, each from the file that the index names."""
    index = folder / "pytorch_model.bin.index.json"
    weight_map = read_shard_index(index)["weight_map"]
    content: dict[str, Any] = {}
    for name in sorted(set(weight_map.values())):
        refuse_link(folder / name)
        part, _ = _unwrap(folder / name, _load(folder / name))
        for key in part:
            if weight_map.get(key) != name:
                raise ValueError(f"{index}: tensor {key} lies in {name}, the index says {weight_map.get(key, 'nowhere')}")
        content |= part
    missing = sorted(weight_map.keys() - content.keys())
    if missing:
        raise ValueError(f"{folder / weight_map[missing[0]]}: tensor {missing[0]} is missing, although the index names it")
    return content


def _load(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such checkpoint")
    with open(file, "rb") as begin:
        archive = begin.read(4) == b"PK\x03\x04"
    if not archive:
        raise ValueError(
            f"{file}: not a checkpoint as torch >= 1.6 saves it, or cut short; load it where it works and save it again"
        )
    try:
        _check_archive(file)
        with torch.serialization.safe_globals(_INERT):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would run {found[1]}" if found else _first_line(error)
        raise ValueError(f"{file}: refused, a checkpoint holds tensors and plain values only ({reason})") from error
    except Exception as error:  # the file's bytes drive an interpreter here, so damage can come out as any error
        raise ValueError(f"{file}: damaged, not a whole checkpoint ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _check_archive(file: Path) -> None:
    """Refuse what torch does not write: it stores its members as they are: compressed ones, or more bytes than the file has, are there
    to fill a memory. It compares no checksum (0 where it wrote none), so a changed byte would be another weight."""
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"member {member.filename} is compressed to unpack to {member.file_size} bytes")
        if sum(member.file_size for member in members) > size:
            raise pickle.UnpicklingError(f"its members claim more bytes than the file's {size}")
        for member in members:
            if member.CRC:
                with archive.open(member) as content:
                    while content.read(1 << 20):  # at its end the sum is compared
                        pass


def _unwrap(file: Path, content: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the dict of tensors, what the file says of itself)."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file}: holds {type(content).__name__}, not a dict of tensors")
    wrappings = [name for name in _WRAPPINGS if isinstance(content.get(name), dict)]
    if len(wrappings) > 1:
        raise ValueError(f"{file}: holds both `state_dict` and `model`; save the one that you mean alone")
    meta = content.get("meta", {}) if wrappings else {}
    if not isinstance(meta, dict):
        raise ValueError(f"{file}: `meta` is not a dict")
    state = content[wrappings[0]] if wrappings else content
    if not state:
        raise ValueError(f"{file}: holds no tensor")
    return dict(state), meta


def _checked(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {key!r} is {type(value).__name__}, not a tensor under a name; save the dict of tensors alone"
            )
        if (
            value.layout != torch.strided
            or value.is_quantized
            or value.dtype not in DTYPES.values()
            or value.device.type != "cpu"
        ):
            raise ValueError(f"{path}: {key} is {value.dtype}, {value.layout}; only dense floating point tensors are weights")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path}: {key} claims {tuple(value.shape)} over {value.untyped_storage().nbytes()} stored bytes")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


class _Ignored:
    """Stands in for the log that mmengine keeps beside the weights: rebuilt as an empty object, its code never run."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _ignored(*_: object) -> _Ignored:
    return _Ignored()


# mmengine's `.pth` holds its message hub: a log class with numpy arrays in it. Each name is bound to something inert.
_INERT: list[Any] = [
    (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_ignored, "numpy.core.multiarray._reconstruct"),
    (_ignored, "numpy._core.multiarray._reconstruct"),
    (_ignored, "numpy.core.multiarray.scalar"),
    (_ignored, "numpy._core.multiarray.scalar"),
    (_Ignored, "numpy.ndarray"),
    (_Ignored, "numpy.dtype"),
]
