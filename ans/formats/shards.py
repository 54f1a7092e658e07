"""A model folder as shards by module group, so that a variant is a choice of files.

`model-<group>-00001-of-00002.safetensors`, at most 2 GB each, and the usual index JSON, which also keeps each shard's sha256.
Imports no torch: headers and bytes need none. A file that somebody else made is read with distrust: what its header says is
checked against the file before anything is believed.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ans.files import temporary_name

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 * 10**9
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a model folder holds beside its weights: config and tokenizer."""

_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER = 100 * 10**6
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file. `start`, `stop`: its bytes, counted from the beginning of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> bytearray:
        """Return the tensor's bytes."""
        data = bytearray(self.stop - self.start)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            if file.readinto(data) != len(data):
                raise ValueError(f"{self.path}: ends too early")
        return data


def header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors that a safetensors file holds, by name.

    Raises `ValueError` naming the file and the reason when its header does not describe exactly the bytes that follow it.
    """
    try:
        return _header(path)
    except (struct.error, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); fetch or write it again") from error


def _header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        values = json.loads(file.read(length), object_pairs_hook=_unique)
    if not isinstance(values, dict):
        raise ValueError("its header is not a JSON object")
    values.pop("__metadata__", None)
    entries = {}
    for name, value in values.items():
        dtype, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, start, stop]
        if dtype not in _ITEM_BYTES or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"tensor {name} has dtype {dtype}, shape {shape}, offsets {start}:{stop}")
        if math.prod(shape) * _ITEM_BYTES[dtype] != stop - start:
            raise ValueError(f"tensor {name} {dtype}{shape} does not take the {stop - start} bytes that its offsets claim")
        entries[name] = StoredTensor(path, dtype, tuple(shape), 8 + length + start, 8 + length + stop)
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise ValueError(f"tensor {name} overlaps another, or bytes before it belong to none")
        end = entry.stop
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return values


def files(folder: Path) -> list[Path]:
    """Return the folder's safetensors files in name order. Raises `FileNotFoundError` when there is none."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise FileNotFoundError(f"{folder}: no *.safetensors file here; run the stage that makes this folder")
    return found


def entries(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a model folder, by name.

    Raises `ValueError` naming file and reason: a link, a damaged file, a tensor in two files, an index that says otherwise.
    """
    found: dict[str, StoredTensor] = {}
    for path in files(folder):
        refuse_link(path)
        for name, entry in header(path).items():
            if name in found:
                raise ValueError(f"{path}: tensor {name} is also in {found[name].path.name}; remove one of the two files")
            found[name] = entry
    if (folder / INDEX).exists():
        weight_map = read_shard_index(folder / INDEX)["weight_map"]
        actual = {name: entry.path.name for name, entry in found.items()}
        for name in sorted(weight_map.keys() | actual.keys()):
            if weight_map.get(name) != actual.get(name):
                raise ValueError(
                    f"{folder / INDEX}: tensor {name} should lie in {weight_map.get(name, 'no file')}, "
                    f"it lies in {actual.get(name, 'none')}; fetch the folder again"
                )
    return found


def read_shard_index(path: Path) -> dict[str, Any]:
    """Return an index JSON, `{"metadata", "weight_map"}`. Raises `ValueError` when it is none or points out of its folder."""
    refuse_link(path)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        names = set(index["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not an index of shards ({error})") from error
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ValueError(f"{path}: weight_map points to {name!r}; only plain names of files beside it are read")
    return index


def refuse_link(path: Path) -> None:
    """Raise `ValueError` for a symbolic link: its target may lie anywhere and change under a checked name."""
    if path.is_symlink():
        raise ValueError(f"{path}: a symbolic link (to {os.readlink(path)}); copy the folder with `cp -rL` and give the copy")


def group_in_name(path: Path) -> str:
    """Return the group of a shard, from its name."""
    return path.name.removeprefix("model-").rsplit("-", 3)[0]


def shard_name(group: str, number: int, count: int) -> str:
    return f"model-{group}-{number:05d}-of-{count:05d}.safetensors"


def write_group(
    folder: Path, group: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], data: Callable[[str], Any]
) -> dict[str, str]:
    """Write one group as shards of at most 2 GB (a larger tensor has one of its own); one tensor is in memory at a time.

    `tensors`: name -> (dtype, shape); `data(name)`: its bytes. Returns file name -> sha256.
    """
    # Widest first, as safetensors itself orders them: so every tensor lies at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-_ITEM_BYTES[tensors[name][0]], name))
    shards: list[list[str]] = []
    size = 0
    for name in order:
        nbytes = _nbytes(tensors[name])
        if not shards or size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    written = {}
    for number, names in enumerate(shards, 1):
        path = folder / shard_name(group, number, len(shards))
        written[path.name] = _write(path, {name: tensors[name] for name in names}, data)
    return written


def _write(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], data: Callable[[str], Any]) -> str:
    values: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + _nbytes((dtype, shape))
        values[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(values, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (struct.pack("<Q", len(head)), head):
            file.write(part)
            digest.update(part)
        for name in tensors:
            part = data(name)
            if len(part) != _nbytes(tensors[name]):
                raise ValueError(f"{name}: {len(part)} bytes do not fill {tensors[name]}")
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def _nbytes(tensor: tuple[str, tuple[int, ...]]) -> int:
    return math.prod(tensor[1]) * _ITEM_BYTES[tensor[0]]


def write_index(folder: Path, sha256: Mapping[str, str]) -> None:
    """Write the index of the shards that lie in `folder`; `sha256`: file name -> checksum, of every shard."""
    weight_map = {key: path.name for path in files(folder) for key in header(path)}
    metadata = {
        "total_size": sum(entry.stop - entry.start for path in files(folder) for entry in header(path).values()),
        "sha256": {path.name: sha256[path.name] for path in files(folder)},
    }
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """Return file name -> sha256 of a folder's shards, from its index. Raises `ValueError` for a folder that `ans` did not shard."""
    sums = read_shard_index(folder / INDEX)["metadata"].get("sha256", {})
    for path in files(folder):
        if path.name not in sums:
            raise ValueError(f"{folder / INDEX}: no sha256 of {path.name}; make the folder again by its stage")
    return sums


def shards_checksum(folder: Path) -> str:
    """Return one sha256 for all weights of a sharded folder, from its index: the parent's checksum in a training checkpoint."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(read_sums(folder).items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link(source: Path, target: Path) -> bool:
    """Make a hard link, or a copy where the file system has none, and return whether it is a link."""
    try:
        os.link(source, target)
        return True
    except OSError:
        shutil.copyfile(source, target)
        return False


def copy_side_files(source: Path, target: Path) -> None:
    """Copy config and tokenizer, as they are."""
    for name in SIDE_FILES:
        if (source / name).exists():
            refuse_link(source / name)
            shutil.copyfile(source / name, target / name)


@contextmanager
def folder_at_once(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its place at the end; on failure `out` is as it was, and nothing else is left.

    Raises `OSError` naming `out` when the disk is full.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(out)
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(
            error.errno, f"{out} could not be written: {error.strerror}; free space; what was there is untouched"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Give a folder that goes away at the end; on failure it stays, so that the next run goes on from what was fetched."""
    path.mkdir(parents=True, exist_ok=True)
    yield path
    shutil.rmtree(path)
