"""Names and files below `paths.root`. Neither is trusted: what leaves the root, cannot be shown or never ends is refused."""

import os
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path

MAX_BYTES = 1 << 30
"""Of an image's file, and of a JSON about one image."""

UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters: control characters, halves of characters (bytes that are not valid text), breaks of lines and paragraphs."""


def below(root: str | Path, path: str) -> Path:
    """Return `root`/`path`. Raises `ValueError` for a path that leaves the root, that has a control character (no tool shows those), or
    that is longer than any file's."""
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path}: leaves paths.root ({root}); refused")
    if not is_text(path):
        raise ValueError(f"{ascii(path)}: a path with a control character, or with bytes that are not valid text; refused")
    if len(path) > 2000 or any(len(part.encode()) > 255 for part in path.split("/")):
        raise ValueError(f"{path[:80]}...: a path longer than any file's")
    return Path(root, path)


def is_text(name: str) -> bool:
    """Return whether a name has characters alone: no control characters, no line breaks, no bytes that are not valid text."""
    if name.isascii():
        return name.isprintable()
    return not any(unicodedata.category(character) in UNSHOWN for character in name)


def spelled(root: str | Path, path: str) -> str:
    """Return `path` below `root` as the disk spells it, where the two differ in the Unicode form of letters with accents or in the case of
    the suffix; `path` itself where there is no such file."""
    if below(root, path).exists():
        return path
    folder, _, name = path.rpartition("/")
    if folder:
        folder = f"{spelled(root, folder)}/"
    return folder + _names(str(below(root, folder))).get(_form(name), name)


@lru_cache(maxsize=16)
def _names(folder: str) -> dict[str, str]:
    return {_form(name): name for name in sorted(os.listdir(folder))} if os.path.isdir(folder) else {}


def _form(name: str) -> str:
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises `FileNotFoundError`, or `ValueError`, which the caller completes with the name, for what is no
    plain file (a pipe never ends) and for one larger than any image."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("not a plain file")
    if state.st_size > MAX_BYTES:
        raise ValueError(f"has {state.st_size} bytes, more than any image")
    return path.read_bytes()
