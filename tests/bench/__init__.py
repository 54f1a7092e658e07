"""Benchmarks, each run as `python -m tests.bench.<name>`. The last line that one prints is its numbers as one JSON object."""

import argparse


def add_scales(parser: argparse.ArgumentParser, quick: str) -> None:
    """Give `parser` the flags `--quick` and `--smoke`; what was chosen is `.scale`: full, quick or smoke."""
    flags = parser.add_mutually_exclusive_group()
    flags.add_argument("--quick", dest="scale", action="store_const", const="quick", default="full", help=quick)
    text = "the least that runs all of the code, for the tests: its numbers are no measurement"
    flags.add_argument("--smoke", dest="scale", action="store_const", const="smoke", help=text)
