"""The process that `stages/evaluate.py` starts under `accelerate launch`."""

import sys
from pathlib import Path

from ans.config import load
from ans.evaluation.predict import evaluate

if __name__ == "__main__":
    variant = sys.argv[1]
    evaluate(
        load(),
        variant,
        Path("models/variants") / variant,
        Path("data/index"),
        Path("reports/eval") / variant,
        Path("data/eval") / variant,
    )
