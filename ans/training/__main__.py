"""The process that `stages/train.py` starts."""

from pathlib import Path

from ans.config import load
from ans.errors import run
from ans.training.loop import Run, train

PARAMS = Path("params.yaml")

if __name__ == "__main__":
    run(lambda: train(load(PARAMS), Run(params=PARAMS)))
