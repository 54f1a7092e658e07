"""Which indexes the parameters name. DVC's dependencies cannot depend on parameters: this file of them can be one instead."""

import hashlib
from collections.abc import Iterable, Mapping

from ans.data.arrow import is_absent, read_index
from ans.files import write_json
from ans.workspace import Workspace


def select(
    names: Iterable[str],
    workspace: Workspace,
    stage: str,
    splits: Iterable[str] = (),
    others: Mapping[str, str] | None = None,
) -> None:
    """Write down, for `stage`, index name -> sha256 of the index's file, and `others`, checksums of what is read without an index.

    Raises `FileNotFoundError` naming a missing index, or all whose data was not there to be indexed, and `ValueError` naming one
    of `splits` (`<index>_<part>`) of which its index has no region: now, not after hours of training.
    """
    sums, absent = {}, []
    for name in sorted(names):
        path = workspace.index(name)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such index, but {stage} reads it; name {name} below `sources` or `own`")
        if is_absent(path):
            absent.append(name)
        with open(path, "rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    if absent:
        again = " ".join(f"index@{name.removesuffix('_subset')}" for name in absent)
        raise FileNotFoundError(
            f"{', '.join(absent)}: not below paths.root when it was indexed, but {stage} reads it. Either take it out "
            "of the sources and splits that params.yaml names, or put it there (folders are `sources.<name>.folder`) and run "
            f"`dvc repro --force --single-item {again}`"
        )
    for split in splits:
        name, _, part = split.rpartition("_")
        parts = read_index(workspace.index(name)).splits()
        if part not in parts:
            known = ", ".join(f"{name}_{other}" for other in sorted(parts)) or "none"
            raise ValueError(f"split {split}: {name} has no region of it; its splits are {known}")
    write_json(workspace.selected(stage), sums | dict(others or {}))
