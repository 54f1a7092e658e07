"""What is wrong with a folder of your own data, line by line: `python -m ans validate FOLDER` (see docs/your-data.md)."""

import argparse
from pathlib import Path

HELP = "check a folder of your own data"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder with images/ and expressions.jsonl in it")


def run(chosen: argparse.Namespace) -> None:
    """Raises `SystemExit` with status 1 where a line cannot be used."""
    from ans.data.validate import advice, validate

    folder = chosen.folder.resolve()
    found = validate(folder)
    for problem in found.problems:
        print(f"{folder / problem.key}: {problem.reason}")
    for note in found.notes:
        print(f"note: {folder / note.key}: {note.reason}")
    for split, counts in sorted(found.splits.items()):
        print(f"{split}: {counts['images']} images, {counts['objects']} objects, {counts['expressions']} expressions")
    for said in advice(found):
        print(f"note: {said}")
    print(
        f"{found.images} images, {found.objects} objects, {found.expressions} expressions; "
        f"{len(found.problems)} lines cannot be used"
    )
    if found.problems:
        raise SystemExit(1)
