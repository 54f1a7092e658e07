"""What the readers share. Published files may be damaged: what these give is sound, or an error says what is not."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ans.data.images import member
from ans.data.records import ImageRecord, Skipped


def read(source: ModuleType, root: Path, folder: str, name: str) -> Iterator[ImageRecord | Skipped]:
    """All records of a source in order, in this process. `index.build` does the same in several.

    A source is a module with `plan(root, folder, name)`, the list of its images, not opened, each as a `Skipped` or as what
    `read_one(root, task)` makes records of; and with `fingerprint(root, folder, name)`.
    """
    for task in source.plan(root, folder, name):
        yield from (task,) if isinstance(task, Skipped) else source.read_one(root, task)


def source_folder(root: Path, folder: str, name: str) -> Path:
    """`root`/`folder`. Raises `FileNotFoundError` naming both keys of params.yaml when it is not there."""
    path = root / folder
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: not found; it is looked for below paths.root ({root}), in sources.{name} ({folder})")
    return path


def field(record: Any, key: str, kind: type) -> Any:
    """`record[key]`, an instance of `kind`; an integer of 64 bits, a text of whole characters (others cannot be stored).

    Raises `ValueError`, which the caller completes with the file's name.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected a record with {key!r}, found {record!r:.80}")
    if key not in record:
        raise ValueError(f"no {key!r} in {record!r:.80}")
    value = record[key]
    if not isinstance(value, kind) or (kind is int and not -(2**63) <= value < 2**63):
        raise ValueError(f"{key} is {value!r:.80}, expected {kind.__name__}")
    if kind is str:
        value.encode("utf-8")  # a UnicodeEncodeError is a ValueError
    return value


END = 64 * tarfile.RECORDSIZE
"""Bytes that may follow a tar's last member; tools fill their last record, of 10 kB as a rule."""


def tar_members(root: Path, tar: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """(stem, suffix, locator) of the members of a tar that end in one of `suffixes`; folders within the tar are left out.

    Raises `ValueError` naming a tar that cannot be read to its end.
    """
    below = tar.relative_to(root).as_posix()
    try:
        with tarfile.open(tar, "r:") as shard:
            for info in shard:
                stem, suffix = os.path.splitext(os.path.basename(info.name))
                if info.isfile() and suffix in suffixes:
                    yield stem, suffix, member(below, info.offset_data, info.size)
                shard.members = []  # pyrefly: ignore[missing-attribute]  # tarfile keeps every header otherwise
            shard.fileobj.seek(shard.offset)
            if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise ValueError(f"damaged at byte {shard.offset}")
            if tar.stat().st_size - shard.offset > END:  # as tools leave it that ask for a download's space beforehand
                raise ValueError(f"nothing but its end from byte {shard.offset} on; is the download complete?")
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ValueError(f"{tar}: not a readable tar: {error}") from error
