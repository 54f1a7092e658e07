"""Reading files below `paths.root`: plain ones, and members of tar shards.

A locator is a path relative to the root; a tar's member is `<path of the tar>::<offset>:<size>`, in bytes, so that it is read
without opening the archive.
"""

from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

MEMBER = "::"


def member(tar: str, offset: int, size: int) -> str:
    """Locator of `size` bytes from `offset` on of a tar."""
    return f"{tar}{MEMBER}{offset}:{size}"


def read_bytes(root: str | Path, locator: str) -> bytes:
    """The bytes that a locator names. Raises `FileNotFoundError`, or `ValueError` for a tar that ends too early."""
    path, _, part = locator.partition(MEMBER)
    if not part:
        return (Path(root) / path).read_bytes()
    offset, size = (int(number) for number in part.split(":"))
    with open(Path(root) / path, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{Path(root) / path}: ends before byte {offset + size}; is the download complete?")
    return content


def open_image(root: str | Path, path: str) -> Image.Image:
    """The image of an `ImageRecord.path`, upright (EXIF orientation applied) and RGB.

    Raises `FileNotFoundError` or `ValueError`, both naming the file.
    """
    try:
        with Image.open(BytesIO(read_bytes(root, path))) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{Path(root) / path}: no such image (paths.root is {root})") from error
    except (OSError, SyntaxError) as error:  # what Pillow raises on broken files
        raise ValueError(f"{Path(root) / path}: not a readable image: {error}") from error
