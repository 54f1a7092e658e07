"""A folder of your own data from what an annotation tool exported: `python -m ans import SOURCE OUT` (see docs/your-data.md).

SOURCE is a JSON in COCO's format (CVAT, Roboflow, Label Studio), a folder with labelme's JSONs, a folder in Pascal VOC's layout, or,
with --masks, a folder of images.
"""

import argparse
from pathlib import Path

HELP = "your own data from COCO's JSON, labelme, VOC, or a folder of masks"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the JSON, or the folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; must not exist")
    parser.add_argument("--images", type=Path, help="where the images lie (default: where the format has them)")
    parser.add_argument("--masks", type=Path, help="SOURCE has images, and this folder their masks, of the same names")
    parser.add_argument("--val", type=float, default=0.0, metavar="SHARE", help="share of the photographs that is for evaluation")
    parser.add_argument("--group", default="", metavar="REGEX", help="photographs whose names have the same match stay together")
    parser.add_argument("--category-as-text", action="store_true", help="learn and ask for objects by their category")


def run(chosen: argparse.Namespace) -> None:
    from ans.data.importing import bring
    from ans.data.records import Noted

    if not 0 <= chosen.val < 1:
        raise ValueError(f"--val: a share of the photographs, at least 0 and below 1, is {chosen.val:g}")
    images, masks = (path.resolve() if path else None for path in (chosen.images, chosen.masks))
    found = bring(chosen.source.resolve(), chosen.out, images, masks, chosen.val, chosen.group, chosen.category_as_text)
    for item in found.said:
        print(f"{'note' if isinstance(item, Noted) else 'left out'}: {item.key}: {item.reason}")
    left_out = sum(not isinstance(item, Noted) for item in found.said)
    images = ", ".join(f"{count} images of {split}" for split, count in found.images.items())
    print(f"wrote {chosen.out}: {images}, {found.objects} objects; {left_out} left out")
    if chosen.val and "val" not in found.images:
        print("note: there is one photograph, or one group, so none is for evaluation")
    if not chosen.category_as_text:
        print(f"objects have no text yet: add `text` to lines of {chosen.out / 'expressions.jsonl'}, or use --category-as-text")
