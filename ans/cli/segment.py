"""Masks of what expressions name: `python -m ans segment IMAGE "expression" ... -o out.png`.

For many images use `ans.Segmenter`, which takes batches of them; this command loads the model for one image.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ans.cli import model

HELP = "masks of what expressions name"
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
"""Of Okabe and Ito, told apart by all."""


def arguments(parser: argparse.ArgumentParser) -> None:
    model.arguments(parser)
    parser.add_argument("expressions", nargs="+", metavar="EXPRESSION", help='what to look for, e.g. "the left cup"')
    parser.add_argument("-o", "--output", type=Path, required=True, help="the image with all masks on it")
    parser.add_argument("--masks", type=Path, help="also write each mask alone into this folder: 0.png, 1.png, ...")


def run(chosen: argparse.Namespace) -> None:
    image = model.read_image(chosen.image)
    for expression in chosen.expressions:
        if not expression.strip():
            raise ValueError("EXPRESSION: one is empty; say what to look for")
    if chosen.output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{chosen.output}: name it .png or .jpg, the picture's format is taken from that")
    segmenter = model.load_model(chosen)
    found = segmenter.segment([image], [chosen.expressions], chosen.max_new_tokens)[0]
    model.save(paint(image, [answer.mask for answer in found], chosen.expressions), chosen.output)
    if unknown := segmenter.unknown_words(" ".join(chosen.expressions)):
        print(
            f"note: {chosen.model} has no word for {', '.join(unknown)}. The tiny model knows coloured shapes and nothing else; "
            "name a model of a real preset with --model",
            file=sys.stderr,
        )
    for number, (expression, answer) in enumerate(zip(chosen.expressions, found, strict=True)):
        share = f"{answer.mask.mean():.1%} of the image" if len(answer.masks) else "no mask: the answer has no [SEG]"
        print(f"{expression}: {share} ({answer.answer})")
        if chosen.masks is not None:
            model.save(Image.fromarray(answer.mask), chosen.masks / f"{number}.png")
    print(f"wrote {chosen.output}")


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
