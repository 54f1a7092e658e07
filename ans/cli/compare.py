"""Two evaluations of the same expressions, side by side: `python -m ans compare A B [--split SPLIT]`.

A and B are variants of this run (full, base) or folders of another's tables (/elsewhere/data/eval/full).
"""

import argparse
from pathlib import Path

HELP = "two variants side by side: by size of the object, length of the expression, ..."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a variant, or a folder of tables")
    parser.add_argument("second", metavar="B", help="the one whose gain over A is shown")
    parser.add_argument("--split", help="one result, e.g. refcoco_val (default: all that both have)")


def run(chosen: argparse.Namespace) -> None:
    from ans.report.compare import compare, read, splits, text

    names = [Path(chosen.first).name, Path(chosen.second).name]
    if names[0] == names[1]:  # the same variant of two runs
        names = [chosen.first, chosen.second]
    for split in [chosen.split] if chosen.split else splits(chosen.first, chosen.second):
        table = compare(read(chosen.first, split), read(chosen.second, split))
        print(text(table, split, *names), end="\n\n")
