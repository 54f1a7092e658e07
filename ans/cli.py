"""The model by hand: `python -m ans segment IMAGE "expression" ... -o out.png` and `python -m ans describe IMAGE MASK ...`.

For many images use `ans.model.segmenter.Segmenter`, which takes batches of them; these commands load the model for one image.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ans.data.images import BROKEN_IMAGE, open_image
from ans.files import replacing

if TYPE_CHECKING:  # torch takes seconds to import, which `--help` and a wrong path need not wait for
    from ans.model.segmenter import Segmenter

MODEL = Path("models/variants/full")
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
"""Of Okabe and Ito, told apart by all."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; `arguments` are the process's own by default.

    Raises `ValueError` or `OSError` naming the file that is wrong and what to do.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ans", description="Segment by words, or describe a region, with a trained model."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="segment | describe")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", type=Path, default=MODEL, help=f"a folder in the Hugging Face layout (default: {MODEL})")
    shared.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    shared.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: %(default)s)")

    segment = commands.add_parser("segment", parents=[shared], help="masks of what expressions name")
    segment.add_argument("image", type=Path, metavar="IMAGE")
    segment.add_argument("expressions", nargs="+", metavar="EXPRESSION", help='what to look for, e.g. "the left cup"')
    segment.add_argument("-o", "--output", type=Path, required=True, help="the image with all masks on it")
    segment.add_argument("--masks", type=Path, help="also write each mask alone into this folder: 0.png, 1.png, ...")

    describe = commands.add_parser("describe", parents=[shared], help="captions of regions")
    describe.add_argument("image", type=Path, metavar="IMAGE")
    describe.add_argument("masks", type=Path, nargs="+", metavar="MASK", help="an image of IMAGE's size, not 0 inside the region")

    chosen = parser.parse_args(arguments)
    if chosen.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: must be at least 1, is {chosen.max_new_tokens}")
    image = read_image(chosen.image)
    if chosen.command == "segment":
        _segment(image, chosen)
    else:
        _describe(image, chosen)


def read_image(path: Path) -> Image.Image:
    """The upright RGB image. Raises `FileNotFoundError` or `ValueError` naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    return open_image(path.parent, path.name)


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: where the file's pixel is not 0 (in a palette image: not entry 0; in colours: not black).

    `size`: (width, height) of the image in pixels. Raises `FileNotFoundError`, or `ValueError` where the file is no image, has
    another size, or marks nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mask")
    try:
        with Image.open(path) as file:
            values = np.asarray(file.convert("RGB") if file.mode in ("RGBA", "LA", "PA", "CMYK") else file)
    except BROKEN_IMAGE as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error
    mask = values.any(2) if values.ndim == 3 else values > 0
    if mask.shape != (size[1], size[0]):
        raise ValueError(
            f"{path}: is {mask.shape[1]} x {mask.shape[0]} pixels, the image {size[0]} x {size[1]}; they must be equal"
        )
    if not mask.any():
        raise ValueError(f"{path}: every pixel is 0, so there is no region to describe")
    return mask


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


def _segment(image: Image.Image, chosen: argparse.Namespace) -> None:
    for expression in chosen.expressions:
        if not expression.strip():
            raise ValueError("EXPRESSION: one is empty; say what to look for")
    suffix = chosen.output.suffix.lower()
    if suffix not in Image.registered_extensions():
        raise ValueError(f"{chosen.output}: name it .png or .jpg, the picture's format is taken from that")
    model = _load(chosen)
    found = model.segment([image], [chosen.expressions], chosen.max_new_tokens)[0]
    _save(paint(image, [answer.mask for answer in found], chosen.expressions), chosen.output)
    if unknown := model.unknown_words(" ".join(chosen.expressions)):
        print(
            f"note: {chosen.model} has no word for {', '.join(unknown)}. The tiny model knows coloured shapes and nothing else; "
            "name a model of a real preset with --model",
            file=sys.stderr,
        )
    for number, (expression, answer) in enumerate(zip(chosen.expressions, found, strict=True)):
        share = f"{answer.mask.mean():.1%} of the image" if len(answer.masks) else "no mask: the answer has no [SEG]"
        print(f"{expression}: {share} ({answer.answer})")
        if chosen.masks is not None:
            _save(Image.fromarray(answer.mask), chosen.masks / f"{number}.png")
    print(f"wrote {chosen.output}")


def _describe(image: Image.Image, chosen: argparse.Namespace) -> None:
    masks = np.stack([read_mask(path, image.size) for path in chosen.masks])
    model = _load(chosen)
    for path, caption in zip(chosen.masks, model.describe([image], [masks], chosen.max_new_tokens)[0], strict=True):
        print(f"{path}: {caption}")


def _load(chosen: argparse.Namespace) -> "Segmenter":
    if not (chosen.model / "config.json").is_file():
        raise FileNotFoundError(
            f"{chosen.model}: no model there (a folder with config.json and *.safetensors). `make repro` makes {MODEL}; or name "
            "another with --model, e.g. --model weights/tiny, the base of the tiny preset"
        )
    import torch

    from ans.model.segmenter import Segmenter

    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: PyTorch finds no GPU here; leave --device out to use the CPU")
    return Segmenter.from_pretrained(chosen.model, device)


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary)
