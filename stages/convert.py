"""Stage `convert`: a training checkpoint on its base -> models/hf in Hugging Face layout, LoRA merged."""

from pathlib import Path

from ans.checkpoints.convert import convert
from ans.config import load


def main() -> None:
    config = load()
    convert(Path(config.convert.source), Path("models/base"), Path("models/hf"), config.chosen.train.lora.scale())


if __name__ == "__main__":
    main()
