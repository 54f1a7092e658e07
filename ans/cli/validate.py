"""What is wrong with a folder of your own data, line by line: `python -m ans validate FOLDER` (see docs/your-data.md).

`python -m ans validate --decode data/index/refcoco.arrow` opens every image of an index, as training does; of your own data, validating
and indexing do so in any case.
"""

import argparse
from pathlib import Path

HELP = "check a folder of your own data"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder with images/ and expressions.jsonl in it")
    parser.add_argument("--sheet", type=Path, metavar="PICTURE", help="write a picture of masks over their images")
    parser.add_argument(
        "--decode", action="store_true", help="open every image; FOLDER may then be an index, data/index/<name>.arrow"
    )


def run(chosen: argparse.Namespace) -> None:
    """Raises `SystemExit` with status 1 where a line cannot be used."""
    from ans.cli import model
    from ans.data.validate import advice, contact_sheet, steps_of, validate

    if chosen.decode and chosen.folder.is_file():
        _decode(chosen.folder)
        return
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
    if said := steps_of(found):
        print(said)
    print(
        f"{found.images} images, {found.objects} objects, {found.expressions} expressions; "
        f"{len(found.problems)} lines cannot be used"
    )
    if chosen.sheet is not None:
        model.save(contact_sheet(found, folder.parent), chosen.sheet)
        print(f"wrote {chosen.sheet}")
    if found.problems:
        raise SystemExit(1)


def _decode(path: Path) -> None:
    from ans.config import load
    from ans.data.validate import decode
    from ans.workspace import Workspace

    workspace = Workspace()
    images, found = decode(path, Path(load(workspace.params).paths.root), workspace.runs)
    for item in found:
        print(f"{item.key}: {item.reason}")
    print(f"{images} images opened; {len(found)} cannot be used")
    if found:
        raise SystemExit(1)
