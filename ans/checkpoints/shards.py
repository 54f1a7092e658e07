"""A model folder as shards by module group, so that a variant is a choice of files.

`model-<group>-00001-of-00002.safetensors`, at most 2 GB each, and the usual index JSON. Imports no torch: reading a header
and linking files needs none.
"""

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

INDEX = "model.safetensors.index.json"


def keys(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, from its header. Raises `ValueError` naming a file that is none."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (struct.error, ValueError, MemoryError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    return [key for key in header if key != "__metadata__"]


def files(folder: Path) -> list[Path]:
    """The folder's safetensors files in name order. Raises `FileNotFoundError` when there is none."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise FileNotFoundError(f"{folder}: no *.safetensors file here; run the stage that makes this folder")
    return found


def group_in_name(path: Path) -> str:
    """The group of a shard, from its name."""
    return path.name.removeprefix("model-").rsplit("-", 3)[0]


def shard_name(group: str, number: int, count: int) -> str:
    return f"model-{group}-{number:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path) -> None:
    """Write the index of the shards that lie in `folder`."""
    weight_map = {key: path.name for path in files(folder) for key in keys(path)}
    size = sum(path.stat().st_size for path in files(folder))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copy_side_files(source: Path, target: Path) -> None:
    """Config and tokenizer: every JSON and text file beside the weights, but the index."""
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".txt", ".jinja") and path.name != INDEX:
            shutil.copyfile(path, target / path.name)


@contextmanager
def folder_at_once(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place at the end; on failure nothing is left under either name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        temporary.chmod(0o755)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_variant(base: Path, trained: Path, groups: Mapping[str, str], out: Path) -> None:
    """The base with some groups' shards from `trained`. `groups`: shard group -> the trained group that brings it.

    Raises `ValueError` when `trained` did not train such a group.
    """
    changed = json.loads((trained / "trained.json").read_text(encoding="utf-8"))["shards"]
    for shard, group in groups.items():
        if shard not in changed:
            raise ValueError(f"{trained}: group {group} was not trained in this run, so a variant cannot take it")
    with folder_at_once(out) as folder:
        for source, wanted in ((base, False), (trained, True)):
            for path in files(source):
                if (group_in_name(path) in groups) == wanted:
                    link(path, folder / path.name)
        copy_side_files(base, folder)
        write_index(folder)


SHARD_OF_GROUP = {"lora": "llm", "proj": "proj", "fcs": "fcs", "sam2_decoder": "sam2_decoder", "embed_head": "embed_head"}
"""Trained group -> the shard that its export changes."""
