"""A variant is a choice of shards: the base with some groups' shards from the trained model. No tensor is rewritten."""

import json
from collections.abc import Sequence
from pathlib import Path

from ans.formats.shards import (
    copy_side_files,
    entries,
    files,
    folder_at_once,
    group_in_name,
    link,
    read_sums,
    sha256,
    write_index,
)
from ans.groups import shards_of


def make_variant(base: Path, trained: Path, wanted: Sequence[str], out: Path, whole: bool = False) -> tuple[list[str], list[str]]:
    """Write the base with the `wanted` trained groups to `out`. Returns those that it took, and those that were not trained.

    Shards are hard links (copies where the file system has none); a copy has the sha256 of its source, and the variant the base's
    tensors in the base's shapes. `whole`: the variant must take every group that was trained. Raises `ValueError` naming the group
    or the file.
    """
    record = json.loads((trained / "trained.json").read_text(encoding="utf-8"))
    groups = shards_of(tuple(group for group in wanted if group in record["groups"]))
    dropped = sorted(set(record["shards"]) - set(groups))
    if whole and dropped:
        raise ValueError(
            f"variants.full: would drop what was trained in {', '.join(dropped)}; add the group, or train without it"
        )
    mixed = sorted(set(record["under"]) - set(groups))
    if groups and mixed:
        raise ValueError(
            f"{trained}: was put on convert.under, which differs from {base} in {', '.join(mixed)}, so this variant would mix two "
            "bases; convert that file (python -m ans convert), then name its folder in weights.location"
        )
    before = entries(base)
    sums = {True: read_sums(trained), False: read_sums(base)}
    picked = {}
    with folder_at_once(out) as folder:
        for source, is_trained in ((base, False), (trained, True)):
            for path in files(source):
                if (group_in_name(path) in groups) == is_trained:
                    picked[path.name] = sums[is_trained][path.name]
                    if not link(path, folder / path.name) and sha256(folder / path.name) != picked[path.name]:
                        raise ValueError(
                            f"{path}: does not have the sha256 that its index records; make {source} again by its stage"
                        )
        copy_side_files(trained if groups else base, folder)
        write_index(folder, picked)
        after = entries(folder)
        for key in sorted(before.keys() | after.keys()):
            if key not in before or key not in after or before[key].shape != after[key].shape:
                raise ValueError(f"{out}: tensor {key} differs from the base in name or shape; make {trained} again by `convert`")
        variant = {"groups": sorted(groups.values()), "trained": record if groups else None}
        (folder / "variant.json").write_text(json.dumps(variant, indent=2) + "\n", encoding="utf-8")
    return sorted(groups.values()), sorted(set(wanted) - set(groups.values()))
