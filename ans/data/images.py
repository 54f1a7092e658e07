"""Reading files below `paths.root`: plain ones, members of tar shards, arrays in npz files, and frames of videos.

A locator is a path relative to the root, with forward slashes. A tar's member is `<path of the tar>::<offset>:<size>`, in bytes,
so that it is read without opening the archive; an array is `<path of the npz>::<name>`; a frame `<path of the
video>.mp4::<number>`.
"""

import hashlib
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ans.data.coded import lacking
from ans.data.disk import MAX_BYTES, below, read_file
from ans.data.npz import read_array

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

SEPARATOR = "::"

JPEG_PIXELS = 8 * 64
"""Of a byte of a JPEG at most: of 64 pixels the mean takes a bit, whatever they show."""

PNG = b"\x89PNG\r\n\x1a\n"
"""How a PNG begins."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What an image may be. Pillow goes by the content, whatever the name, and knows 40 more: for PostScript it starts Ghostscript."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
"""How the names of such files end, in any case; looked at only where nothing names the files."""

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
"""What a video file may be, by its suffix: FFmpeg knows hundreds more, among them lists that name other files and addresses."""

TURNED = "turned"
"""Key of an opened image's `info`: the EXIF orientation by which it was turned."""

LOSSY = ("JPEG", "MPO", "WEBP")
"""What a mask may not be."""

BROKEN_IMAGE = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on damaged files."""

BITS, PHOTOMETRIC = 258, 262
"""Tags of a TIFF: bits of a value, and whether 0 is black (1) or white (0)."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright; from 5 on width and height are swapped."""

FRAME_TURNS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): TURNS[2],
    (-1, 0, 0, -1): TURNS[3],
    (1, 0, 0, -1): TURNS[4],
    (0, 1, 1, 0): TURNS[5],
    (0, 1, -1, 0): TURNS[6],
    (0, -1, -1, 0): TURNS[7],
    (0, -1, 1, 0): TURNS[8],
}
"""The same by a video's display matrix: what becomes of (1, 0) and of (0, 1), y downwards."""


def member(tar: str, offset: int, size: int) -> str:
    """Return the locator of `size` bytes from `offset` on of a tar."""
    return f"{tar}{SEPARATOR}{offset}:{size}"


def array(npz: str, name: str) -> str:
    """Return the locator of an array of an npz file."""
    return f"{npz}{SEPARATOR}{name}"


def frame(video: str, number: int) -> str:
    """Return the locator of a frame of an mp4, counted from 0."""
    return f"{video}{SEPARATOR}{number}"


def identify(file: bytes | Path) -> Image.Image:
    """Open an image, its pixels not yet read. Raises one of `BROKEN_IMAGE`, also for any format but `FORMATS`."""
    data = file if isinstance(file, bytes) else read_file(file)
    try:
        image = Image.open(BytesIO(_sound_png(data) if data.startswith(PNG) else data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"cannot identify image file as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    width, height = image.size
    if image.format in ("JPEG", "MPO") and len(data) * JPEG_PIXELS < width * height:  # libjpeg would fill it up with grey
        raise ValueError(f"{len(data)} bytes, fewer than a JPEG of {width} x {height} pixels has")
    return image


def _sound_png(data: bytes) -> bytes:
    """Return a PNG without the parts that its checksums call damaged. Raises `ValueError` where those are the pixels or their colours:
    Pillow compares the checksums of neither, so a mask with a changed byte would be another mask."""
    kept, place, damaged = [PNG], len(PNG), False
    while place < len(data):
        length = int.from_bytes(data[place : place + 4])
        chunk = data[place : place + length + 12]
        sound = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        kind = chunk[4:8]
        if not sound and (len(chunk) < length + 12 or kind[:1].isupper() or kind == b"tRNS"):
            raise ValueError(f"damaged at byte {place}: its checksum is not that of what is there")
        damaged |= not sound
        if sound:
            kept.append(chunk)
        place += length + 12
        if kind == b"IEND":
            break
    return b"".join(kept) if damaged else data


def content(data: bytes) -> str:
    """Return what a photograph is known by wherever it lies: size and digest of its file."""
    return f"{len(data)}:{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def byte_size(root: str | Path, locator: str) -> int | None:
    """Return the size in bytes of a file or a tar's member; None for a frame or an array, and where there is no file."""
    path, _, part = locator.partition(SEPARATOR)
    if part:
        return int(part.partition(":")[2]) if ":" in part else None
    try:
        return below(root, path).stat().st_size
    except OSError:
        return None


def read_bytes(root: str | Path, locator: str) -> bytes:
    """Return the bytes of a file or a tar's member. Raises `FileNotFoundError`, or `ValueError` for a tar that ends too early."""
    path, _, part = locator.partition(SEPARATOR)
    file_path = below(root, path)
    if not part:
        return read_file(file_path)
    offset, size = (int(number) for number in part.split(":"))
    if size > MAX_BYTES:
        raise ValueError(f"{file_path}: has a member of {size} bytes, more than any image")
    with open(file_path, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{file_path}: ends before byte {offset + size}; is the download complete?")
    return content


def open_image(root: str | Path, locator: str) -> Image.Image:
    """Return the image of an `ImageRecord.path`, upright (EXIF orientation applied) and RGB.

    Raises `FileNotFoundError` or `ValueError`, both naming the file.
    """
    path, _, part = locator.partition(SEPARATOR)
    with _image_errors(root, locator):
        if part and path.lower().endswith(".mp4"):
            return read_frame(below(root, path), int(part))
        if part and ":" not in part:
            return _from_array(read_array(below(root, path), part))
        return decoded(read_bytes(root, locator))


def decoded(data: bytes) -> Image.Image:
    """Return the image in a file's bytes, upright and RGB. Raises one of `BROKEN_IMAGE`."""
    with identify(data) as image:
        if pictures(image) > 1:
            raise ValueError(f"holds {pictures(image)} pictures, and nothing says which is meant; save the one that is")
        image.load()
        if reason := lacking(data, image):
            raise ValueError(reason)
        found = _to_rgb(upright(image))
        if (orientation := _orientation(image)) in TURNS:
            found.info[TURNED] = orientation
        return found


def see_through(data: bytes) -> bool:
    """Return whether some pixels of an image's file are not opaque. The colours that it has under them are what `decoded` gives."""
    with identify(data) as image:
        if "A" not in image.getbands() and ("transparency" not in image.info or image.mode.startswith("I")):
            return False
        return np.asarray(image.convert("RGBA"))[..., 3].min() < 255


def pictures(image: Image.Image) -> int:
    """Return how many an animation, or a TIFF of several pages, has. The smaller copies in a photograph's TIFF or JPEG (MPO) do not
    count."""
    count = getattr(image, "n_frames", 1) if image.format in ("GIF", "WEBP", "PNG", "TIFF") else 1
    if image.format == "TIFF" and count > 1:
        size = image.size
        image.seek(1)
        count = count if image.size == size else 1
        image.seek(0)
    return count


def open_mask(file: Path | bytes, name: str = "mask") -> Image.Image:
    """Return a mask's file, read and turned upright. Raises `FileNotFoundError`, or `ValueError` for one that is not an image, that is
    compressed with loss (whatever its suffix says: its numbers are not those that were drawn) or that holds several pictures."""
    try:
        with identify(file) as image:
            if image.format in LOSSY or image.info.get("compression") == "jpeg":
                raise ValueError(f"{name} is a {image.format}, whose compression blurs the mask's edge; save it as PNG")
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"{name} holds several pictures; save the one that is the mask")
            image.load()
            return upright(image)
    except FileNotFoundError:
        raise
    except BROKEN_IMAGE as error:
        reason = str(error)
        raise ValueError(reason if reason.startswith(name) else f"not a readable image: {reason}") from error


def drawn(image: Image.Image) -> np.ndarray:
    """Return (height, width) bool of a mask as data sets publish it: all that is not black; of a cut-out what is not transparent."""
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < alpha.max():
            return alpha >= 128
    pixels = np.asarray(image if image.mode in ("1", "L") or image.mode.startswith("I") else image.convert("RGB"))
    return pixels > 0 if pixels.ndim == 2 else np.asarray(pixels.any(2))


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation says."""
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8 bits per channel. Pillow cuts 16 bits off at 255 instead of scaling them; everything else it converts."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("grey values of which nothing says what is white (fractions, or 32 bits); save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF
        if tags.get(BITS, (16,))[0] != 16 or tags.get(PHOTOMETRIC, 1) != 1:
            raise ValueError("a TIFF of other than 8 or 16 bits, or whose white is 0; save it with 8 or 16 bits")
        pixels = np.asarray(image).astype(np.int64)
        if not 0 <= pixels.min() <= pixels.max() <= 65535:
            raise ValueError(f"grey values of 16 bits lie in 0..65535, found {pixels.min()} to {pixels.max()}")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    return image.convert("RGB")


def read_frame(path: Path, number: int) -> Image.Image:
    """Return the frame `number`, counted from 0, of an mp4, RGB. Raises `FileNotFoundError`, or `ValueError` naming the file."""
    import av  # it brings FFmpeg along, and only videos need that

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        times = shown_at(str(path), path.stat().st_mtime_ns)
        if number < len(times):
            with open_container(path) as container:
                return turned(decode_from(container, times, number)[0])
    except (av.FFmpegError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: not a readable video: {error}") from error
    raise ValueError(f"{path}: ends before frame {number}")


def open_container(path: Path) -> "InputContainer":
    """Return a video file, read as what its suffix says and as nothing else. Raises what PyAV raises, and `IndexError` for one without
    pictures."""
    import av

    container = av.open(str(path), format=CONTAINERS[path.suffix.lower()])
    if not container.streams.video:
        sound = len(container.streams.audio) > 0
        container.close()
        raise IndexError("it has no pictures, only sound" if sound else "nothing in it can be read; is it whole?")
    coded = container.streams.video[0].codec_context
    # MPEG-4's frames say their times themselves
    if container.format.name == "avi" and coded.name in ("h264", "hevc") and coded.has_b_frames:
        container.close()
        raise IndexError("an AVI does not say when frames are shown that are stored in another order (B-frames); save it as mp4")
    return container


def decode_from(container: "InputContainer", times: Sequence[int], number: int) -> "tuple[VideoFrame, Iterator[VideoFrame]]":
    """Return frame `number` of a video just opened, and those after it, each decoded when it is asked for. `times`: when each is shown.

    Decoding begins at the key frame before it, and earlier where that is not enough: the first frames of an open group of pictures
    need the group before. Of frames that are shown at one time the order alone tells which is which, so decoding begins with the
    first of all. Raises `IndexError` where the frame cannot be decoded.
    """
    stream, back = container.streams.video[0], 0
    before = number - bisect_left(times, times[number])  # frames shown at the same time
    several = len(set(times)) < len(times)
    while True:
        start = 0 if several else max(number - back, 0)
        if start or back:
            container.seek(times[start], stream=stream)  # to the key frame before it
        frames = container.decode(stream)
        for image in frames:
            if image.pts is None:
                raise TypeError("a frame does not say when it is shown")
            if image.pts == times[number]:
                if before == 0:
                    return image, frames
                before -= 1
            if image.pts > times[number]:
                break
        if start == 0:
            raise IndexError(f"ends before frame {number}, or that cannot be decoded")
        back = 4 * back + 1


def turned(image: "VideoFrame") -> Image.Image:
    """Return a decoded frame as the video's display matrix wants it shown, RGB. Raises `TypeError` where that is not by right angles."""
    upright = image.to_image()
    matrix: Any = image.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return upright
    a, b, _, c, d = (value / 65536 for value in struct.unpack_from("=5i", bytes(matrix)))  # x' = a x + c y, y' = b x + d y
    if (turn := FRAME_TURNS.get((a, b, c, d), "")) == "":
        raise TypeError("its frames are shown turned by other than right angles, or drawn out")
    return upright if turn is None else upright.transpose(turn)


@lru_cache(maxsize=64)
def shown_at(path: str, changed: int) -> list[int]:
    """Return when each frame is shown, in the order in which they are: a rate would say it only of videos of a constant one. Raises what
    PyAV raises, and `IndexError` for a video whose first frames were cut off: what is decoded of the rest is made up in part."""
    with open_container(Path(path)) as container:
        times: list[int] = []
        begun = False
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is not None:
                if not (begun := begun or packet.is_keyframe):
                    raise IndexError("it begins without a key frame")
                times += [] if packet.is_discard else [packet.pts]
        return sorted(times)


def image_size(root: str | Path, locator: str) -> tuple[int, int]:
    """Return (width, height) in pixels of what `open_image` returns for a JPEG or PNG, without decoding it. Raises as `open_image`."""
    return size_and_turn(root, locator)[0]


def size_and_turn(root: str | Path, locator: str) -> tuple[tuple[int, int], int]:
    """Return what `image_size` does, and the EXIF orientation (1: none)."""
    with _image_errors(root, locator), identify(read_bytes(root, locator)) as image:
        width, height = image.size
        orientation = _orientation(image)
        return ((height, width) if orientation in (5, 6, 7, 8) else (width, height)), orientation


UNSEEN = "nothing says whether its masks are of the picture before or after it is turned"
"""Of an image with a `hidden_turn`."""


def hidden_turn(size: tuple[int, int], orientation: int) -> bool:
    """Return whether an image is turned by its EXIF orientation, but as large as before."""
    return orientation in (2, 3, 4) or (orientation in TURNS and size[0] == size[1])


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8; 1, upright, where the EXIF data has none or cannot be read: damaged metadata costs no sound image. Pillow's
    `exif_transpose` also rewrites the data, which fails on values that it could read. A TIFF is turned by Pillow itself."""
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except (*BROKEN_IMAGE, KeyError, AttributeError, OverflowError):
        return 1


@contextmanager
def _image_errors(root: str | Path, locator: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{Path(root) / locator}: no such image (paths.root is {root})") from error
    except BROKEN_IMAGE as error:
        raise ValueError(f"{Path(root) / locator}: not a readable image: {error}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Convert (height, width, 3), uint8 or float in 0..255 or 0..1, to an image. Black in 0..1 and in 0..255 is the same."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0 or pixels.dtype.kind not in "uf":
        raise ValueError(f"a frame is (height, width, 3) of uint8 or float, found {pixels.shape} of {pixels.dtype}")
    if pixels.dtype.kind == "f":
        pixels = np.rint(pixels * 255 if pixels.max() <= 1 else pixels)
    if not (pixels.min() >= 0 and pixels.max() <= 255):  # also for a NaN
        raise ValueError(f"a frame's values lie in 0..255 or 0..1, found {pixels.min()} to {pixels.max()}")
    return Image.fromarray(pixels.astype(np.uint8))
