"""Stage `select`: the indexes that the parameters name -> data/selected/train.json and data/selected/evaluate.json.

Sets of videos have no index. Those that training learns from, and those of which it leaves the clips out, are read here."""

from pathlib import Path

from ans.config import load
from ans.data.clips import checksum, read
from ans.data.selection import select
from ans.launch import importing
from ans.stage import run_stage
from ans.workspace import Workspace


def main() -> None:
    config, workspace = load(), Workspace()
    with importing():  # of the tasks, which have their settings
        indexes = config.training_indexes()
    validation, evaluate, videos = config.train.validation, config.evaluate, config.validation_videos()
    root, clips = Path(config.paths.root), {}
    for use, sets in (("clips", config.training_clips()), ("clips left out", config.clips_left_out())):
        clips |= {f"{use}: {name}": checksum(read(of.reader, root, of.folder, of.split)) for name, of in sets.items()}
    if videos is not None:
        clips["validation"] = videos.model_dump_json()
    splits = [validation.split] if validation and videos is None else []
    select(indexes, workspace, "train", splits, clips)
    select(config.evaluation_indexes(), workspace, "evaluate", [*evaluate.splits, *evaluate.captions, *evaluate.grounded])


if __name__ == "__main__":
    run_stage(main)
