"""Stage `evaluate`: one variant on all splits -> reports/eval/<variant>, data/eval/<variant>."""

import sys

from ans.config import load
from ans.errors import run
from ans.launch import launch


def main() -> None:
    launch("ans.evaluation", load().launch, sys.argv[1])


if __name__ == "__main__":
    run(main)
