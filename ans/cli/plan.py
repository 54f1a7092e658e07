"""What a run will do and need, before it begins: `python -m ans plan [PRESET] [--params FILE]`.

Effective batch, steps, parameters, memory, time and disk, each with its source, the command that starts the run, and all that is
missing, in one list. Needs no GPU and no data. The exit status is 0 when nothing is missing, else 1.
"""

import argparse
from pathlib import Path

from ans.workspace import Workspace

HELP = "what a run will do and need, and what is missing for it"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "preset",
        nargs="?",
        metavar="PRESET",
        help="a file of ans/presets, without .yaml (default: the one that params.yaml names)",
    )
    parser.add_argument("--params", type=Path, default=Workspace().params, metavar="FILE", help="(default: %(default)s)")


def run(chosen: argparse.Namespace) -> None:
    """Run the command. Raises `SystemExit` with status 1 where something is missing."""
    from ans.launch import importing

    with importing():
        from ans.config import load
        from ans.planning.outlook import look_ahead, text

    config = load(chosen.params)
    found = look_ahead(config.changed({"preset": chosen.preset}) if chosen.preset else config)
    print(text(found))
    if found.missing:
        raise SystemExit(1)
