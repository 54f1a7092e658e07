"""Stage `select`: the indexes that the parameters name -> data/selected/train.json and data/selected/evaluate.json."""

from ans.config import load
from ans.data.selection import select
from ans.stage import run_stage
from ans.workspace import Workspace


def main() -> None:
    config, workspace = load(), Workspace()
    validation, evaluate = config.train.validation, config.evaluate
    select(config.training_indexes(), workspace, "train", [validation.split] if validation else [])
    select(config.evaluation_indexes(), workspace, "evaluate", [*evaluate.splits, *evaluate.captions])


if __name__ == "__main__":
    run_stage(main)
