"""Masks of what expressions name: `python -m ans segment IMAGE "expression" ... -o out.png`.

IMAGE may be a video, or a folder of its frames; then the result is a video too: `-o out.mp4`. For many images use `ans.Segmenter`, which
takes batches of them; this command loads the model for one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ans.cli import model, videos
from ans.cli.videos import COLOURS
from ans.data.videos import is_video, open_video

if TYPE_CHECKING:
    from ans.model.segmenter import Segmenter

HELP = "masks of what expressions name"


def arguments(parser: argparse.ArgumentParser) -> None:
    model.arguments(parser)
    parser.add_argument("expressions", nargs="+", metavar="EXPRESSION", help='what to look for, e.g. "the left cup"')
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
    if is_video(chosen.image):
        videos.check(chosen.output, chosen.masks)
        open_video(chosen.image)  # what is wrong with it is said before the model is loaded
        segmenter = model.load_model(chosen)
        videos.segment(segmenter, chosen, paint)
        _note_unknown_words(segmenter, chosen)
        return
    image = model.read_image(chosen.image)
    if chosen.output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{chosen.output}: name it .png or .jpg, the picture's format is taken from that")
    segmenter = model.load_model(chosen)
    found = segmenter.segment([image], [chosen.expressions], chosen.max_new_tokens)[0]
    model.save(paint(image, [answer.mask for answer in found], chosen.expressions), chosen.output)
    _note_unknown_words(segmenter, chosen)
    for number, (expression, answer) in enumerate(zip(chosen.expressions, found, strict=True)):
        share = f"{answer.mask.mean():.1%} of the image" if len(answer.masks) else "no mask: the answer has no [SEG]"
        print(f"{expression}: {share} ({answer.answer})")
        if chosen.masks is not None:
            model.save(Image.fromarray(answer.mask), chosen.masks / f"{number}.png")
    print(f"wrote {chosen.output}")


def _note_unknown_words(segmenter: "Segmenter", chosen: argparse.Namespace) -> None:
    if unknown := segmenter.unknown_words(" ".join(chosen.expressions)):
        print(
            f"note: {chosen.model} has no word for {', '.join(unknown)}. The tiny model knows coloured shapes and nothing else; "
            "name a model of a real preset with --model",
            file=sys.stderr,
        )


def paint(image: Image.Image, masks: Sequence[np.ndarray], expressions: Sequence[str]) -> Image.Image:
    """The image with each (height, width) bool mask tinted and outlined in its colour, and the expressions as a legend below."""
    pixels = np.asarray(image).astype(float)
    for number, mask in enumerate(masks):
        colour = COLOURS[number % len(COLOURS)]
        padded = np.pad(mask, 1)
        inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        pixels = np.where(inner[..., None], 0.55 * pixels + 0.45 * np.array(colour), pixels)
        pixels = np.where((mask & ~inner)[..., None], colour, pixels)
    size = max(11, image.width // 40)
    line = round(1.6 * size)
    picture = Image.new("RGB", (image.width, image.height + line * len(expressions)), "white")
    picture.paste(Image.fromarray(pixels.round().astype(np.uint8)))
    draw = ImageDraw.Draw(picture)
    for number, expression in enumerate(expressions):
        top = image.height + line * number
        draw.rectangle((size // 2, top + size // 3, size // 2 + size, top + size // 3 + size), COLOURS[number % len(COLOURS)])
        draw.text((2 * size, top + size // 5), expression, "black", ImageFont.load_default(size))
    return picture
