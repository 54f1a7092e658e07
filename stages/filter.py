"""Stage `filter`: a variant is the base with some groups' shards replaced -> models/variants/<variant>."""

import sys
from pathlib import Path

from ans.checkpoints.shards import groups_of, make_variant
from ans.config import load
from ans.stage import run_stage


def main() -> None:
    name = sys.argv[1]
    config = load()
    groups = groups_of(config.variant(name))
    left_out = sorted(set(config.variants[name]) - set(groups.values()))
    print(f"{name}: {', '.join(groups.values()) or 'the base'}" + (f" (not trained: {', '.join(left_out)})" if left_out else ""))
    make_variant(Path("models/base"), Path("models/hf"), groups, Path("models/variants") / name, whole=name == "full")


if __name__ == "__main__":
    run_stage(main)
