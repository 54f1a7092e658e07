"""Stage `train`: base, indexes -> models/checkpoint, and curves in reports/train."""

from ans.config import load
from ans.errors import run
from ans.launch import launch


def main() -> None:
    launch("ans.training", load().launch)


if __name__ == "__main__":
    run(main)
