"""Stage `filter`: a variant is the base with some groups' shards replaced -> models/variants/<variant>."""

import sys

from ans.checkpoints.variants import make_variant
from ans.config import load
from ans.stage import run_stage
from ans.workspace import Workspace


def main() -> None:
    name, workspace = sys.argv[1], Workspace()
    groups, left_out = make_variant(
        workspace.base, workspace.converted, load().variants[name], workspace.variant(name), whole=name == "full"
    )
    print(f"{name}: {', '.join(groups) or 'the base'}" + (f" (not trained: {', '.join(left_out)})" if left_out else ""))


if __name__ == "__main__":
    run_stage(main)
