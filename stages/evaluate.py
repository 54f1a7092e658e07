"""Stage `evaluate`: one variant on all splits -> reports/eval/<variant>, data/eval/<variant>."""

import sys

from ans.config import load
from ans.launch import launch
from ans.stage import run_stage


def main() -> None:
    launch("ans.evaluation", load().launch, sys.argv[1])


if __name__ == "__main__":
    run_stage(main)
