"""Stage `world`: the synthetic world, written to data/world whatever `paths.root` says (readers look at `paths.root`)."""

import json
import shutil
from pathlib import Path

from ans import config
from ans.data.world import checksum, write_world
from ans.stage import run_stage

ROOT = Path("data/world")


def main() -> None:
    if ROOT.exists():  # the stage's own output of an earlier run
        shutil.rmtree(ROOT)
    counts = write_world(ROOT, config.load().world)
    # What `index` depends on; the folder itself is no dependency, since a run on other data reads another.
    ROOT.with_suffix(".json").write_text(json.dumps({"sha256": checksum(ROOT), **counts}, indent=2) + "\n", encoding="utf-8")
    print(", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run_stage(main)
