"""A variant to hand on: `python -m ans export VARIANT OUT`.

OUT becomes a folder for the hub, with a model card from the run. With `--adapter CHECKPOINT` (the `.pth` that was trained) it holds a
plain PEFT adapter of the language model and one safetensors file with the variant's other groups instead.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ans.config import load
from ans.workspace import Workspace

if TYPE_CHECKING:
    from ans.checkpoints.export import Measured

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
        export_hub(chosen.variant, chosen.out, base_model=chosen.base_model, measured=measured(chosen.variant))


def measured(variant: Path) -> "Measured":
    """Return how the numbers of a variant of this run came about, from what the evaluation left; nothing for another run's."""
    from ans.checkpoints.export import Measured
    from ans.evaluation.protocol import protocol_fingerprint

    workspace = Workspace()
    path = workspace.predictions(variant.name) / "protocol.json"
    protocol = protocol_fingerprint(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    synthetic = workspace.params.is_file() and Path(load(workspace.params).paths.root).resolve() == workspace.world.resolve()
    return Measured(protocol, synthetic)
