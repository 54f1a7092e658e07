"""Stage `world`: the synthetic world, written to data/world whatever `paths.root` says (readers look at `paths.root`)."""

import shutil

from ans.config import load
from ans.files import write_json
from ans.stage import run_stage
from ans.toy.world import checksum, write_world
from ans.workspace import Workspace


def main() -> None:
    root = Workspace().world
    if root.exists():  # the stage's own output of an earlier run
        shutil.rmtree(root)
    counts = write_world(root, load().world)
    # What `index` depends on; the folder itself is not a dependency, since a run on other data reads another.
    write_json(root.with_suffix(".json"), {"sha256": checksum(root), **counts})
    print(", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run_stage(main)
