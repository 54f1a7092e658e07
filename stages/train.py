"""Stage `train`: base, indexes -> models/checkpoint, and curves in reports/train."""

from ans.config import load
from ans.launch import launch
from ans.stage import run_stage


def main() -> None:
    launch("ans.training", load().launch)


if __name__ == "__main__":
    run_stage(main)
