"""The base of a run: its weights fetched, put together where they were released apart, and stored in shards by module group."""

from pathlib import Path

from ans.checkpoints.fetch import fetch, fetch_sam2
from ans.checkpoints.shards import shard, working_folder
from ans.config.schema import Weights


def make_base(weights: Weights, out: Path) -> None:
    """Write the base that `weights` names to `out`. What was fetched stays for the next try when something fails."""
    with working_folder(out.with_name(".fetched")) as folder:
        if weights.sam2 is not None:  # first: it is the smaller one
            masks = folder / Path(weights.sam2.location).name
            fetch_sam2(weights.sam2, masks)
        fetch(weights, folder / "base")
        if weights.sam2 is None:
            shard(folder / "base", out)
            return
        from ans.checkpoints.assemble import assemble  # only a base in two parts pays for the import

        assemble(folder / "base", masks, folder / "assembled")
        shard(folder / "assembled", out)
