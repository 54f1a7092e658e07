"""Stage `convert`: a training checkpoint on its base -> models/hf in Hugging Face layout, LoRA merged."""

from ans.config import load
from ans.launch import importing
from ans.stage import run_stage
from ans.workspace import Workspace

with importing():
    from ans.checkpoints.convert import convert


def main() -> None:
    convert(load().convert, Workspace().base, Workspace().converted)


if __name__ == "__main__":
    run_stage(main)
