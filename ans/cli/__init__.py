"""The commands of `python -m ans`: one module each, with `HELP`, `arguments` and `run`."""

import argparse
import importlib
from collections.abc import Sequence

COMMANDS = (
    "segment",
    "describe",
    "demo",
    "serve",
    "compare",
    "config",
    "plan",
    "evaluate",
    "ground",
    "score",
    "dlc",
    "validate",
    "import",
    "convert",
    "export",
    "push",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; `arguments` are the process's own by default.

    Raises `ValueError` or `OSError` that says what is wrong and what to do, and `SystemExit` where a command ends with a status.
    """
    chosen = parser().parse_args(arguments)
    chosen.run(chosen)


def parser() -> argparse.ArgumentParser:
    """Return what the commands take. `run` of the parsed arguments runs the chosen one."""
    found = argparse.ArgumentParser(
        prog="python -m ans", description="Segment by words, describe regions, and work with the results of a run."
    )
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"ans.cli.{name}")
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.arguments(command)
        command.set_defaults(run=module.run)
    return found
