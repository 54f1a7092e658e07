"""Stage `select`: the indexes that the parameters name -> data/selected/train.json and data/selected/evaluate.json."""

from pathlib import Path

from ans.config import load
from ans.data.selection import select
from ans.errors import run


def main() -> None:
    config, indexes, out = load(), Path("data/index"), Path("data/selected")
    select(config.training_indexes(), indexes, out / "train.json")
    select(config.evaluation_indexes(), indexes, out / "evaluate.json")


if __name__ == "__main__":
    run(main)
