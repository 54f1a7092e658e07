"""A variant to hand on: `python -m ans export VARIANT OUT`.

OUT becomes a folder for the hub, with a model card from the run. With `--adapter CHECKPOINT` (the `.pth` that was trained) it holds a
plain PEFT adapter of the language model and one safetensors file with the variant's other groups instead.
"""

import argparse
from pathlib import Path

HELP = "a variant as a folder for the hub, or as an adapter"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variant", type=Path, metavar="VARIANT", help="models/variants/<name>")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--adapter", type=Path, metavar="CHECKPOINT", help="export the difference to the base, from this .pth")
    parser.add_argument("--base-model", metavar="NAME", help="the hub's name of the base, for the model card")


def run(chosen: argparse.Namespace) -> None:
    from ans.checkpoints.export import export_adapter, export_hub

    if chosen.adapter:
        export_adapter(chosen.variant, chosen.adapter, chosen.out)
    else:
        export_hub(chosen.variant, chosen.out, base_model=chosen.base_model)
