"""The process that `stages/evaluate.py` starts."""

import sys

from ans.config import load
from ans.errors import run
from ans.evaluation.evaluate import evaluate

if __name__ == "__main__":
    run(lambda: evaluate(load(), sys.argv[1]))
