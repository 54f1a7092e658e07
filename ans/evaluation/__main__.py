"""The process that `stages/evaluate.py` starts."""

import sys

from ans.errors import run
from ans.launch import importing

with importing():
    from ans.config import load
    from ans.evaluation.evaluate import evaluate
    from ans.evaluation.grounded import evaluate_grounded
    from ans.evaluation.videos import evaluate_videos


def main() -> None:
    config = load()
    evaluate(config, sys.argv[1])
    evaluate_videos(config, sys.argv[1])
    evaluate_grounded(config, sys.argv[1])


if __name__ == "__main__":
    run(main)
