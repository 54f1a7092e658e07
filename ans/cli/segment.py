"""Masks of what expressions name: `python -m ans segment IMAGE "expression" ... -o out.png`.

Objects may also be pointed at, with --point X,Y or --box X0,Y0,X1,Y1 in pixels from the upper left corner, each as often as there are
objects; the mask decoder finds them without language. `ans.Segmenter.segment_at` also takes several points for one object.

IMAGE may be a video, or a folder of its frames; then the result is a video too: `-o out.mp4`. For many images use `ans.Segmenter`, which
takes batches of them; this command loads the model for one.

The tiny model, which `make repro` leaves, knows coloured shapes alone; for photographs name another with --model.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ans.cli import model, places, videos
from ans.data.videos import is_video, open_video
from ans.painting import paint

if TYPE_CHECKING:
    from ans.model.segmenter import Segmenter

HELP = "masks of what expressions name"


def arguments(parser: argparse.ArgumentParser) -> None:
    model.arguments(parser)
    expressions = parser.add_argument(
        "expressions", nargs="+", default=[], metavar="EXPRESSION", help='what to look for, e.g. "the left cup"'
    )
    expressions.required = False  # where there is a place; with "*" argparse takes none that come behind an option
    places.arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the image, or the video, with all masks on it")
    parser.add_argument(
        "--masks",
        type=Path,
        help="also write each mask alone into this folder: 0.png, ...; of a video a palette PNG per frame, or, as .json, run lengths",
    )
    videos.arguments(parser)


def run(chosen: argparse.Namespace) -> None:
    for expression in chosen.expressions:
        if not expression.strip():
            raise ValueError("EXPRESSION: one is empty; say what to look for")
    if not chosen.expressions and not chosen.places:
        raise ValueError("EXPRESSION: there is none; say what to look for, or point at it with --point or --box")
    if is_video(chosen.image):
        _run_video(chosen)
    else:
        _run_image(chosen)


def _run_video(chosen: argparse.Namespace) -> None:
    if chosen.places:
        raise ValueError(f"--point, --box: {chosen.image} is a video, in which objects are named by an EXPRESSION alone")
    videos.check(chosen.output, chosen.masks)
    open_video(chosen.image)  # what is wrong with it is said before the model is loaded
    segmenter = model.load_model(chosen)
    videos.segment(segmenter, chosen, paint)
    _note_unknown_words(segmenter, chosen)


def _run_image(chosen: argparse.Namespace) -> None:
    image = model.read_image(chosen.image)
    places.check(chosen.places, image.size)
    if chosen.output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{chosen.output}: name it .png or .jpg, the picture's format is taken from that")
    segmenter = model.load_model(chosen)
    read = segmenter.read([image])
    found = segmenter.segment(read, [chosen.expressions], chosen.max_new_tokens)[0]
    pointed = segmenter.segment_at(read, [chosen.places])[0]
    names = [*chosen.expressions, *map(str, chosen.places)]
    masks = [*(answer.mask for answer in found), *pointed]
    model.save(paint(image, masks, names), chosen.output)
    _note_unknown_words(segmenter, chosen)
    for expression, answer in zip(chosen.expressions, found, strict=True):
        share = _share(answer.mask) if len(answer.masks) else "no mask: the answer has no [SEG]"
        print(f"{expression}: {share} ({answer.answer})")
    for place, mask in zip(chosen.places, pointed, strict=True):
        print(f"{place}: {_share(mask)}")
    if chosen.masks is not None:
        for number, mask in enumerate(masks):
            model.save(Image.fromarray(mask), chosen.masks / f"{number}.png")
    print(f"wrote {chosen.output}")


def _share(mask: np.ndarray) -> str:
    return f"{mask.mean():.1%} of the image"


def _note_unknown_words(segmenter: "Segmenter", chosen: argparse.Namespace) -> None:
    if unknown := segmenter.unknown_words(" ".join(chosen.expressions)):
        print(
            f"note: {chosen.model} has no word for {', '.join(unknown)}. The tiny model knows coloured shapes and nothing else; "
            "name a model of a real preset with --model",
            file=sys.stderr,
        )
