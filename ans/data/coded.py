"""Whether the coded pixels of a JPEG or a WebP are all there. Their libraries fill what is missing with grey, or make up what a hole of
zeros codes, and say nothing; this costs a look over the bytes, and a second decoding where they look suspicious."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The next after coded pixels, in which 0xff is followed by a 0, or begins a restart."""

_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_SCAN, _RESTARTS, _END = 0xDA, 0xDD, 0xD9

_GREY = (127, 128)
"""What libjpeg gives for pixels that are not there, in every channel."""

_HOLE = bytes(256)
_MORE = bytes(range(1, 201))
"""Coded pixels that a decoder will take if it lacks some, and passes over if it does not."""

_FLAT = 4096
"""Pixels of a WebP that one byte of zeros may stand for, where all are alike; measured: 10,000."""


@dataclass
class _Jpeg:
    """The parts of a JPEG's first picture. `scans`: (header, first byte of the coded pixels, their end, MCUs between restarts)."""

    kind: int = 0
    frame: bytes = b""
    scans: list[tuple[bytes, int, int, int]] = field(default_factory=list)


def lacking(data: bytes, image: Image.Image) -> str:
    """Return which of the pixels of a file, read as `image`, are not there; "" where nothing says so."""
    if image.format in ("JPEG", "MPO"):
        try:
            return _lacking_of_jpeg(data, image)
        except (ValueError, LookupError, ArithmeticError):
            return "headers that no decoder makes sense of"
    if image.format == "WEBP":
        most = 64 + image.width * image.height // _FLAT
        if any(bytes(most) in chunk for chunk in _coded_chunks(data)):
            return f"more than {most} bytes of zeros among its pixels; is the download complete?"
    return ""


def _coded_chunks(data: bytes) -> Iterator[bytes]:
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] in (b"VP8 ", b"VP8L"):
            yield data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _parts(data: bytes) -> _Jpeg | None:
    """Return None where the mark of the end is missing."""
    found, place, interval = _Jpeg(), 2, 0
    scan = b""  # header of the one whose pixels begin at `place`
    while marker := _MARKER.search(data, place):
        if scan:
            found.scans.append((scan, place, marker.start(), interval))
        kind, place, scan = data[marker.end() - 1], marker.end(), b""
        if kind == _END:
            return found
        length = int.from_bytes(data[place : place + 2])
        segment = data[place + 2 : place + length]
        if kind in _SEQUENTIAL + _PROGRESSIVE:
            found.kind, found.frame = kind, segment
        elif kind == _RESTARTS:
            interval = int.from_bytes(segment[:2])
        elif kind == _SCAN:
            scan = segment
        place += length
    return None


def _lacking_of_jpeg(data: bytes, image: Image.Image) -> str:
    jpeg = _parts(data)
    if jpeg is None:
        return "no mark of its end; is the download complete?"
    if not jpeg.kind:
        return ""  # without loss, which has other units
    if jpeg.kind in _PROGRESSIVE and not _refined(jpeg):
        return "its last scans are missing"
    for header, start, end, interval in jpeg.scans:
        if interval:
            restarts = [int(code[0]) % 8 for code in _RESTART.findall(data, start, end)]
            wanted = -(-_units(jpeg.frame, header) // interval) - 1
            if len(restarts) < wanted or restarts != [number % 8 for number in range(len(restarts))]:
                return f"{len(restarts)} restarts among its pixels, where its size asks for {wanted}"
    corner = image.getpixel((image.width - 1, image.height - 1))
    grey = all(value in _GREY for value in (corner if isinstance(corner, tuple) else (corner,)))
    for _, start, end, interval in jpeg.scans:
        hole = data.find(_HOLE, start, end) >= 0
        if interval or not (hole or (grey and jpeg.kind in _SEQUENTIAL)):
            continue
        pixels = np.asarray(image)
        if not _same(data[:end] + _MORE + data[end:], pixels):
            return "coded pixels that end before the picture does"
        if hole and not grey and jpeg.kind in _SEQUENTIAL and _same(data[: max(end - 16, start)] + data[end:], pixels):
            return "more coded pixels than the picture has, zeros among them"
    return ""


def _same(data: bytes, pixels: np.ndarray) -> bool:
    with Image.open(BytesIO(data), formats=("JPEG",)) as image:
        try:
            return np.array_equal(np.asarray(image), pixels)
        except OSError:
            return False


def _refined(jpeg: _Jpeg) -> bool:
    """Return whether the scans of a progressive JPEG bring every coefficient of every component to its last bit."""
    components = jpeg.frame[6::3]
    missing = {(component, number) for component in components for number in range(64)}
    for header, *_ in jpeg.scans:
        first, last, bits = header[-3:]
        if bits & 15 == 0:
            missing -= {(component, number) for component in header[1:-3:2] for number in range(first, last + 1)}
    return not missing


def _units(frame: bytes, header: bytes) -> int:
    """Return how many MCUs a scan has, between which restarts are counted."""
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    factors = {name: (factor >> 4, factor & 15) for name, factor in zip(frame[6::3], frame[7::3], strict=True)}
    most = [max(sides) for sides in zip(*factors.values(), strict=True)]
    if header[0] == 1:  # of one component blocks are counted, and of those only what is in the picture
        width, height = (
            math.ceil(side * of / all_of) for side, of, all_of in zip((width, height), factors[header[1]], most, strict=True)
        )
        most = [1, 1]
    return math.ceil(width / (8 * most[0])) * math.ceil(height / (8 * most[1]))
