"""Pixels that are not there, of files whose beginning and end are sound: libjpeg and libwebp make some up."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ans.data.coded import lacking
from ans.data.images import decoded

NOISE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
SMOOTH = np.repeat((np.add.outer(np.arange(96), np.arange(128)) * 2 % 256).astype(np.uint8)[..., None], 3, 2)

BASELINE: dict[str, Any] = {}
PROGRESSIVE = {"progressive": True}
RESTARTS = {"restart_marker_rows": 1}


def coded(pixels: np.ndarray | Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).save(buffer, form, **options)
    return buffer.getvalue()


def cut(data: bytes) -> bytes:
    """The half that was there when a download ended, closed by a tool."""
    return data[: len(data) // 2] + b"\xff\xd9"


def preallocated(data: bytes) -> bytes:
    """As long as it should be."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def closed(data: bytes) -> bytes:
    return preallocated(data)[:-2] + b"\xff\xd9"


def hole(data: bytes) -> bytes:
    """A block that was never written."""
    start = len(data) // 2
    return data[:start] + bytes(1024) + data[start + 1024 :]


def joined(data: bytes) -> bytes:
    """Two parts of three."""
    return data[: len(data) // 3] + data[2 * len(data) // 3 :]


@pytest.mark.parametrize("damage", (cut, preallocated, closed, hole, joined))
@pytest.mark.parametrize("options", (BASELINE, PROGRESSIVE, RESTARTS, {"optimize": True, "subsampling": 0}, {"quality": 30}))
@pytest.mark.parametrize("pixels", (NOISE, NOISE[..., 0]), ids=("colours", "grey"))
def test_pixels_that_a_jpeg_lacks(pixels: np.ndarray, options: dict[str, Any], damage: Callable[[bytes], bytes]) -> None:
    if options is PROGRESSIVE and damage is joined:
        pytest.skip("a scan that is too short leaves no trace in the picture; docs/testing.md names it")
    whole = coded(pixels, **options)
    assert decoded(whole).size == (128, 96)
    with pytest.raises((ValueError, OSError)):
        decoded(damage(whole))


@pytest.mark.parametrize(
    ("options", "damage", "reason"),
    (
        (BASELINE, cut, "coded pixels that end before the picture does"),
        (BASELINE, preallocated, "no mark of its end"),
        (BASELINE, hole, "more coded pixels than the picture has"),
        (PROGRESSIVE, cut, "its last scans are missing"),
        (RESTARTS, cut, "2 restarts among its pixels, where its size asks for 5"),
    ),
)
def test_each_with_its_reason(options: dict[str, Any], damage: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decoded(damage(coded(NOISE, **options)))


@pytest.mark.parametrize("lossless", (False, True))
@pytest.mark.parametrize("pixels", (NOISE, SMOOTH), ids=("noise", "smooth"))
@pytest.mark.parametrize("damage", (preallocated, hole))
def test_pixels_that_a_webp_lacks(damage: Callable[[bytes], bytes], pixels: np.ndarray, lossless: bool) -> None:
    whole = coded(np.tile(pixels, (2, 2, 1)), "WEBP", lossless=lossless)
    assert decoded(whole).size == (256, 192)
    with pytest.raises((ValueError, OSError)):
        decoded(damage(whole))


@pytest.mark.parametrize("side", (1, 7, 8, 17, 160))
@pytest.mark.parametrize("options", ({"optimize": True}, PROGRESSIVE, RESTARTS, {"restart_marker_blocks": 3, "subsampling": 0}))
@pytest.mark.parametrize("colour", ((128, 128, 128), (255, 255, 255), (0, 0, 0), None))
def test_sound_files_lack_nothing(side: int, options: dict[str, Any], colour: tuple[int, ...] | None) -> None:
    """Of one colour too, whose pixels take a few bits, or of the grey that stands for pixels that are not there."""
    image = Image.new("RGB", (2 * side, side), colour or (128, 128, 128))
    if colour is None:  # the picture ends before its grey does
        image.paste(Image.fromarray(NOISE).resize((2 * side, -(-side // 2))))
    for mode in ("RGB", "L", "CMYK"):
        data = coded(image.convert(mode), **options)
        read = Image.open(io.BytesIO(data))
        read.load()
        assert lacking(data + bytes(600), read) == "", "what some cameras fill their last block with"


@pytest.mark.parametrize("colour", ((255, 255, 255), (200, 10, 10)))
def test_large_files_of_one_colour_are_sound(colour: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (1200, 800), colour)
    for data in (coded(image, optimize=True), coded(image, "WEBP"), coded(image, "WEBP", lossless=True)):
        assert bytes(100) in data or data.startswith(b"RIFF")
        read = Image.open(io.BytesIO(data))
        assert lacking(data, read) == ""


def test_a_jpeg_s_last_parts(tmp_path: Path) -> None:
    """Some phones write a second picture behind the first, and a small one in its EXIF data."""
    exif = Image.Exif()
    first, second = coded(NOISE, exif=exif), coded(SMOOTH)
    small = b"Exif\0\0" + coded(NOISE[:16, :16])
    first = first[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2) + small + first[2:]
    assert decoded(first + second).size == (128, 96)
    with pytest.raises(ValueError, match="coded pixels that end"):
        decoded(cut(first) + second)
