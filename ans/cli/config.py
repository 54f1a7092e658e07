"""The configuration in force: `python -m ans config [--preset NAME] [--params FILE] [KEY]`.

Every setting with its documentation, its type and range, and where its value comes from: params.yaml, the chosen preset, or the
default. KEY names a section or a setting: train, train.lr, variants.
"""

import argparse
from pathlib import Path

from ans.workspace import Workspace

HELP = "the settings in force, what they mean, and where each value comes from"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", metavar="KEY", help="a section or a setting, e.g. train.lr (default: all)")
    parser.add_argument("--preset", metavar="NAME", help="show this preset in place of the one in params.yaml")
    parser.add_argument("--params", type=Path, default=Workspace().params, metavar="FILE", help="(default: %(default)s)")


def run(chosen: argparse.Namespace) -> None:
    from ans.cli.document import document
    from ans.config import load

    config = load(chosen.params)
    config = config.changed({"preset": chosen.preset}) if chosen.preset else config
    assert config.tasks  # whatever is shown, the whole file has to be usable
    print(document(config, chosen.key), end="")
