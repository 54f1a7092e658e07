"""Stage `select`: the indexes that the parameters name -> data/selected/train.json and data/selected/evaluate.json."""

from pathlib import Path

from ans.config import load
from ans.data.selection import select
from ans.stage import run_stage


def main() -> None:
    config, indexes, out = load(), Path("data/index"), Path("data/selected")
    validation = config.chosen.train.validation
    select(config.training_indexes(), indexes, out / "train.json", [validation.split] if validation else [])
    asked = (*config.questions.splits, *config.questions.captions)
    select(config.evaluation_indexes(), indexes, out / "evaluate.json", asked)


if __name__ == "__main__":
    run_stage(main)
