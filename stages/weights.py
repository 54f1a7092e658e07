"""Stage `weights`: the chosen preset's base weights -> models/base, in shards by module group."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ans.checkpoints.convert import shard
from ans.checkpoints.fetch import fetch
from ans.config import load


def main() -> None:
    Path("models").mkdir(exist_ok=True)
    with TemporaryDirectory(dir="models", prefix=".fetched-") as folder:
        fetched = Path(folder) / "base"
        fetch(load().chosen.weights, fetched)
        shard(fetched, Path("models/base"))


if __name__ == "__main__":
    main()
