"""Stage `convert`: a training checkpoint on its base -> models/hf in Hugging Face layout, LoRA merged."""

from pathlib import Path

from ans.checkpoints.convert import convert
from ans.config import load
from ans.stage import run_stage


def main() -> None:
    convert(load().convert, Path("models/base"), Path("models/hf"))


if __name__ == "__main__":
    run_stage(main)
