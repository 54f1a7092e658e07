"""`make tiny-weights`: train the embedded base from nothing -> weights/tiny. Resumes in runs/tiny."""

import os
import subprocess
import sys
from pathlib import Path

from ans.training import tiny_base

WORLD, RUN, OUT = Path("data/tiny_world"), Path("runs/tiny"), Path("weights/tiny")


def main(name: str | None = None) -> None:
    if name is not None:
        tiny_base.stage(name, WORLD, RUN)
        return
    tiny_base.make_world(WORLD)
    for together in (("sam2", "vlm"), ("joint",)):
        command = [sys.executable, "-m", "stages.tiny_weights"]
        # Two stages that each take every core stand in each other's way.
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(together)))}
        running = [subprocess.Popen([*command, part], env=threads | os.environ) for part in together]
        if any([process.wait() for process in running]):
            raise SystemExit("a stage of the recipe failed; see above. Started again, it resumes")
    tiny_base.export(RUN, OUT, tiny_base.new_model())
    tiny_base.measure(WORLD, OUT)


if __name__ == "__main__":
    main(*sys.argv[1:])
