"""What is wrong with a folder of your own data, line by line: `python -m ans validate FOLDER` (see docs/your-data.md).

A folder with clips/ in it is one of videos (docs/video.md).

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
    """Run the command. Raises `SystemExit` with status 1 where a line cannot be used."""
    from ans.cli import model
    from ans.data.validate import advice, contact_sheet, steps_of, validate

    if chosen.decode and chosen.folder.is_file():
        _decode(chosen.folder)
        return
    folder = chosen.folder.resolve()
    if (folder / "clips").is_dir():
        _videos(folder)
        return
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


def _videos(folder: Path) -> None:
    """Every frame and mask of a folder of videos."""
    from ans.data.clips import Clip, read, unreadable
    from ans.data.records import Noted, left_out
    from ans.data.video_sources.own_videos import read_lines

    lines, skipped = read_lines(folder)
    problems = {item.key: item.reason for item in skipped}
    notes: dict[tuple[str, str], None] = {}  # a clip of two splits is read twice
    for split in sorted({line.split for line in lines}):
        found = list(read("own_videos", folder.parent, folder.name, split))
        clips = [one for one in found if isinstance(one, Clip)]
        notes |= {(one.key, one.reason): None for one in found if isinstance(one, Noted)}
        problems |= {one.key: one.reason for one in left_out(found)}
        problems |= {clip.name: reason for clip in clips if (reason := unreadable(folder.parent, clip))}
        frames, expressions = sum(len(clip.frames) for clip in clips), sum(len(clip.expressions) for clip in clips)
        print(f"{split}: {len(clips)} clips, {frames} frames, {expressions} expressions")
    for key, reason in problems.items():
        print(f"{folder / key}: {reason}")
    for key, reason in notes:
        print(f"note: {folder / key}: {reason}")
    print(f"{len(problems)} lines and clips cannot be used")
    if problems:
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
