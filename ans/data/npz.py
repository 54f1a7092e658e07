"""Arrays of npz files, whose contents are not trusted: nothing is unpickled, and no header decides how much memory is asked for."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np

from ans.data.disk import MAX_BYTES

BROKEN_NPZ = (OSError, EOFError, ValueError, SyntaxError, TypeError, struct.error, tokenize.TokenError, zlib.error)

BROKEN_NPZ += (zipfile.BadZipFile, NotImplementedError, RuntimeError, RecursionError, MemoryError)
"""What zipfile and numpy raise on damaged files."""


def read_array(path: Path, name: str) -> np.ndarray:
    """Return the array `name` of an npz; nothing in it is unpickled. Raises `FileNotFoundError`, or `ValueError` naming the file."""
    with _npz(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise ValueError(f"it has no array {name!r}")
        if archive.getinfo(f"{name}.npy").file_size > MAX_BYTES:
            raise ValueError(f"array {name} unpacks to more than any image has")
        content = archive.read(f"{name}.npy")  # whole, since its checksum is tested at its end
        _header(BytesIO(content), len(content))
        return np.lib.format.read_array(BytesIO(content), allow_pickle=False)


def array_shapes(path: Path, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of those of `names` that an npz has; their values are not read. Raises as `read_array`."""
    shapes = {}
    with _npz(path) as archive:
        for name in names:
            if f"{name}.npy" in archive.namelist():
                with archive.open(f"{name}.npy") as file:
                    shapes[name] = _header(file, archive.getinfo(f"{name}.npy").file_size)
    return shapes


@contextmanager
def _npz(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a plain file")
        with zipfile.ZipFile(path) as archive:
            if len(set(archive.namelist())) < len(archive.namelist()):
                raise ValueError("an array of that name occurs twice")
            yield archive
    except FileNotFoundError:
        raise
    except BROKEN_NPZ as error:
        raise ValueError(f"{path}: not a readable npz: {error}") from error


def _header(file: IO[bytes], size: int) -> tuple[int, ...]:
    """Return the shape of an npy file of `size` bytes. Raises `ValueError` when they do not hold it: numpy would ask for the memory."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if file.tell() + int(np.prod(shape, dtype=object)) * kind.itemsize != size:
        raise ValueError(f"{size} bytes do not hold {kind} of shape {shape}")
    return shape
