"""`make tiny-weights`, `make lisa-weights`: an embedded base from nothing -> weights/<name>. Resumes in runs/<name>."""

import os
import subprocess
import sys
from pathlib import Path

from ans.toy import lisa, tiny
from ans.toy.measure import measure
from ans.toy.recipe import export, make_world

WORLD = Path("data/tiny_world")
RECIPES = {"tiny": (tiny, (("sam2", "vlm"), ("joint",), ("memory",))), "lisa-tiny": (lisa, (("sam",), ("joint",)))}
"""Name -> its module, and its stages: those in one bracket run side by side."""


def main(name: str, stage: str | None = None) -> None:
    recipe, stages = RECIPES[name]
    folder = Path("runs") / name
    if stage is not None:
        recipe.stage(stage, WORLD, folder)
        return
    make_world(WORLD)
    for together in stages:
        command = [sys.executable, "-m", "stages.tiny_weights", name]
        # Two stages that each take every core stand in each other's way.
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(together)))}
        running = [subprocess.Popen([*command, part], env=threads | os.environ) for part in together]
        if any([process.wait() for process in running]):
            raise SystemExit("a stage of the recipe failed; see above. Started again, it resumes")
    export(folder, Path("weights") / name, recipe.new_model(), stages[-1][-1])
    measure(WORLD, Path("weights") / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
