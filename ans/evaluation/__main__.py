"""The process that `stages/evaluate.py` starts."""

import sys
from pathlib import Path

from ans.config import load
from ans.errors import run
from ans.evaluation.evaluate import evaluate


def main(variant: str) -> None:
    reports, data = Path("reports/eval") / variant, Path("data/eval") / variant
    evaluate(load(), variant, Path("models/variants") / variant, Path("data/index"), reports, data)


if __name__ == "__main__":
    run(main, sys.argv[1])
