"""Stage `filter`: a variant is the base with some groups' shards replaced -> models/variants/<variant>."""

import sys
from pathlib import Path

from ans.checkpoints.shards import SHARD_OF_GROUP, make_variant
from ans.config import load


def main() -> None:
    name = sys.argv[1]
    groups = {SHARD_OF_GROUP[group]: group for group in load().variants[name]}
    make_variant(Path("models/base"), Path("models/hf"), groups, Path("models/variants") / name)


if __name__ == "__main__":
    main()
