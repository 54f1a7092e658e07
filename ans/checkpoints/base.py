"""The base of a run: its weights fetched, put together where they were released apart, and stored in shards by module group."""

from pathlib import Path

from ans.checkpoints.fetch import fetch, fetch_sam2
from ans.config.schema import Weights
from ans.formats import shards
from ans.groups import SHARDS


def make_base(weights: Weights, out: Path) -> None:
    """Write the base that `weights` names to `out`. What was fetched stays for the next try when something fails."""
    with shards.working_folder(out.with_name(".fetched")) as folder:
        if weights.sam2 is None:
            fetch(weights, folder / "base")
            shard(folder / "base", out)
            return
        masks = folder / Path(weights.sam2.location).name
        fetch_sam2(weights.sam2, masks)  # first: it is the smaller one
        fetch(weights, folder / "base")
        from ans.checkpoints.assemble import assemble  # only a base in two parts pays for the import

        assemble(folder / "base", masks, folder / "assembled")
        shard(folder / "assembled", out)


def shard(source: Path, out: Path) -> None:
    """Write a model folder's tensors as shards by module group. Values and types stay as they are.

    Raises `ValueError` naming a file that is damaged or not to be trusted, or a tensor that belongs to no part of the model.
    """
    from ans.model.config import ModelConfig  # what fetches and checks files does not wait for torch
    from ans.model.tokens import for_older_versions

    found, config = shards.entries(source), ModelConfig.from_folder(source)
    names, keys = config.decoder.hf_names(found), config.keys
    where = {names[name]: entry for name, entry in found.items()}
    try:
        groups = {name: keys.shard_of(name) for name in where}
    except KeyError as error:
        raise ValueError(f"{source}: {error.args[0]}") from error
    with shards.folder_at_once(out) as folder:
        sums = {}
        for group in SHARDS:
            tensors = {name: (entry.dtype, entry.shape) for name, entry in where.items() if groups[name] == group}
            sums |= shards.write_group(folder, group, tensors, lambda name: where[name].read())
        shards.copy_side_files(source, folder)
        for_older_versions(folder)
        shards.write_index(folder, sums)
