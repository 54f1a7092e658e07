"""Stage `weights`: the chosen preset's base weights -> models/base, in shards by module group."""

from pathlib import Path

from ans.checkpoints.fetch import fetch, fetch_sam2
from ans.checkpoints.shards import shard, working_folder
from ans.config import load
from ans.stage import run_stage


def main() -> None:
    weights = load().chosen.weights
    with working_folder(Path("models/.fetched")) as folder:
        if weights.sam2 is not None:  # first: it is the smaller one
            masks = folder / Path(weights.sam2.location).name
            fetch_sam2(weights.sam2, masks)
        fetch(weights, folder / "base")
        if weights.sam2 is None:
            shard(folder / "base", Path("models/base"))
        else:
            from ans.checkpoints.assemble import assemble

            assemble(folder / "base", masks, folder / "assembled")
            shard(folder / "assembled", Path("models/base"))


if __name__ == "__main__":
    run_stage(main)
