"""Stage `convert`: a training checkpoint on its base -> models/hf in Hugging Face layout, LoRA merged."""

from pathlib import Path

from ans.checkpoints.convert import convert
from ans.config import load
from ans.errors import run


def main() -> None:
    convert(load().convert, Path("models/base"), Path("models/hf"))


if __name__ == "__main__":
    run(main)
