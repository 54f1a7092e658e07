"""Masks over an image, with a legend in any script: what `segment` writes and the demo shows."""

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

log = logging.getLogger(__name__)

COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
"""Of Okabe and Ito, told apart by all."""
NARROWEST = 240
"""Pixels; a smaller image gets a wider legend, in which a text has room."""

Run = tuple[str, Path]
"""A piece of a line, and the font that has its characters."""


def paint(image: Image.Image, masks: Sequence[np.ndarray], expressions: Sequence[str]) -> Image.Image:
    """Return the image with each (height, width) bool mask tinted and outlined in its colour, and the expressions as a legend below."""
    pixels = np.asarray(image).astype(float)
    for number, mask in enumerate(masks):
        colour = COLOURS[number % len(COLOURS)]
        padded = np.pad(mask, 1)
        inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        pixels = np.where(inner[..., None], 0.55 * pixels + 0.45 * np.array(colour), pixels)
        pixels = np.where((mask & ~inner)[..., None], colour, pixels)
    size = max(11, image.width // 40)
    width, line = max(image.width, NARROWEST if expressions else 0), round(1.6 * size)
    texts = [_lines(text, size, width - 3 * size) for text in expressions]
    picture = Image.new("RGB", (width, image.height + line * sum(map(len, texts))), "white")
    picture.paste(Image.fromarray(pixels.round().astype(np.uint8)))
    draw, top = ImageDraw.Draw(picture), image.height
    for number, lines in enumerate(texts):
        draw.rectangle((size // 2, top + size // 3, size // 2 + size, top + size // 3 + size), COLOURS[number % len(COLOURS)])
        for runs in lines:
            left = 2.0 * size
            for text, path in runs:
                font = _font(path, size)
                draw.text((left, top + 1.2 * size), text, "black", font, anchor="ls")
                left += font.getlength(text)
            top += line
    return picture


def _lines(text: str, size: int, width: int) -> list[list[Run]]:
    """Return the text in lines of at most `width` pixels: cut between words, and inside a word that is longer by itself."""
    lines: list[str] = []
    for word in text.split():
        whole = f"{lines[-1]} {word}" if lines else word
        if lines and _length(whole, size) <= width:
            lines[-1] = whole
            continue
        lines.append("")
        for character in word:  # of scripts without spaces too
            if lines[-1] and _length(lines[-1] + character, size) > width:
                lines.append("")
            lines[-1] += character
    return [_runs(line) for line in lines]


def _length(text: str, size: int) -> float:
    return sum(_font(path, size).getlength(run) for run, path in _runs(text))


@cache
def _runs(text: str) -> list[Run]:
    runs: list[Run] = []
    for character in text:
        if runs and (character.isspace() or ord(character) in _characters(runs[-1][1])):
            runs[-1] = (runs[-1][0] + character, runs[-1][1])
        else:
            runs.append((character, _font_with(character)))
    return runs


@cache
def _font_with(character: str) -> Path:
    """Return the first font that has a character; the default where none has, which draws an empty box."""
    if found := next((path for path in _fonts() if ord(character) in _characters(path)), None):
        return found
    log.warning(f"note: no font is installed for {character!r} in the legend; one of the Noto family may have it")
    return next(_fonts())


def _fonts() -> Iterator[Path]:
    """Yield matplotlib's own fonts, then those of the system, plain ones first."""
    from matplotlib import font_manager  # seconds on a machine whose fonts it has not listed yet

    yield Path(font_manager.findfont("DejaVu Sans"))
    yield from sorted(map(Path, font_manager.findSystemFonts()), key=lambda path: ("Regular" not in path.stem, path.name))


@cache
def _characters(path: Path) -> frozenset[int]:
    """Return code points that a font can draw; none of a file that is not a scalable font."""
    from matplotlib.ft2font import FT2Font

    try:
        found = frozenset(FT2Font(str(path)).get_charmap())
        ImageFont.truetype(path, 12)
    except (OSError, RuntimeError):
        return frozenset()
    return found


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
