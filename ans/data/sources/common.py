"""What the readers share. Published files may be damaged: what these give is sound, or an error says what is not."""

import json
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ans.data.images import member
from ans.data.records import ImageRecord, Skipped


def read(source: ModuleType, root: Path, folder: str, name: str) -> Iterator[ImageRecord | Skipped]:
    """Yield all records of a source in order, in this process. `index.build` does the same in several.

    A source is a module with `plan(root, folder, name)`, the list of its images, not opened, each as a `Skipped` or as what
    `read_one(root, unread)` makes records of; and with `fingerprint(root, folder, name)`.
    """
    for unread in source.plan(root, folder, name):
        yield from (unread,) if isinstance(unread, Skipped) else source.read_one(root, unread)


def source_folder(root: Path, folder: str, name: str) -> Path:
    """Return `root`/`folder`. Raises `FileNotFoundError` naming both keys of params.yaml when it is missing."""
    path = root / folder
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: not found; it is looked for below paths.root ({root}), in sources.{name} ({folder})")
    return path


def coco_folders(folder: str) -> tuple[str, ...]:
    """Return where the photographs of COCO's train2014 may lie, below `paths.root`; the first that exists is taken. `folder`: a
    source's own."""
    return (
        f"{folder}/coco2014/train2014",
        "ref_seg/coco2014/train2014",
        "coco2014/train2014",
        "glamm_data/images/coco2014/train2014",
    )


def field(record: Any, key: str, kind: type) -> Any:
    """Return `record[key]`, an instance of `kind`; an integer of 64 bits, a text of whole characters (others cannot be stored).

    Raises `ValueError`, which the caller completes with the file's name.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected a record with {key!r}, found {record!r:.80}")
    if key not in record:
        raise ValueError(f"no {key!r} in {record!r:.80}")
    value = record[key]
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or not -(2**63) <= value < 2**63)):
        raise ValueError(f"{key} is {value!r:.80}, expected {kind.__name__}")
    if kind is str:
        value.encode("utf-8")  # a UnicodeEncodeError is a ValueError
    return value


def whole(record: Any, key: str) -> int:
    """Return `record[key]`, an integer, which some tools write as 4.0. Raises as `field`."""
    value = record.get(key) if isinstance(record, dict) else None
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else field(record, key, int)


def by_id(entries: list[Any], what: str) -> dict[int, Any]:
    """Return id -> entry. Raises `ValueError`, which the caller completes with the file's name: also for a duplicate id, since
    nothing says which of the two is meant."""
    places: dict[int, int] = {}
    for place, entry in enumerate(entries):
        number = field(entry, "id", int)
        if (first := places.setdefault(number, place)) != place:
            raise ValueError(f"id {number} occurs twice: {what}[{first}] and {what}[{place}]")
    return {number: entries[place] for number, place in places.items()}


def entry_of(entries: dict[int, Any], number: Any) -> Any:
    """Return the entry that `number` names, an integer; None where there is none, and where it is none: True is not 1."""
    return entries.get(int(number)) if type(number) in (int, float) and number == number // 1 else None


SPLIT = re.compile(r"[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*")
"""A split's name is part of file names, as `<source>_<split>`."""


def split_name(split: str) -> str:
    """Return the name of a split. Raises `ValueError` for one that cannot be asked for, and for `Train`, which would be evaluated."""
    if "_" in split:
        raise ValueError(f"split {split}: a split's name has no `_`, which parts it from the source's")
    if not SPLIT.fullmatch(split):
        raise ValueError(f"split {split!r:.80}: a split's name is of letters A to Z, digits and hyphens")
    return not_misspelt(split)


def not_misspelt(split: str) -> str:
    """Return the name of a split. Raises `ValueError` for `Train`."""
    if split != "train" and split.lower() == "train":
        raise ValueError(f"split {split}: the one that is learnt is called train")
    return split


NO_CLASS = "category_id that is not in categories; the object has no class"


def class_names(categories: list[Any]) -> dict[int, str]:
    """Return id -> name of the `categories` of a listing; a name may be missing or empty. Raises `ValueError`, which the caller completes
    with the file's name."""
    names = {number: field({"name": ""} | entry, "name", str) for number, entry in by_id(categories, "categories").items()}
    return {number: clean(name) if name.strip() else "" for number, name in names.items()}


def class_of(annotation: dict[str, Any], names: dict[int, str]) -> tuple[str, str]:
    """Return the class of an annotation, "" where it has none, and what is wrong about that: "" or `NO_CLASS`."""
    number = annotation.get("category_id")
    found = entry_of(names, number)
    return found or "", NO_CLASS if found is None and number is not None else ""


def parse_json(content: bytes) -> Any:
    """Return the value that a JSON text says. Raises `ValueError`, also for brackets without end and for a duplicate key."""
    try:
        return json.loads(content, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("brackets without end") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in a record")
    return record


MAX_WORDS, MAX_CHARACTERS = 1000, 8000
"""Of a text: five times the longest caption of the published sets, and still within a model's context beside its image."""

BREAKS = re.compile(r"[\t-\r\x1c-\x1f\x85\u2028\u2029]+")


def clean(text: str) -> str:
    """Return a text of a file as it is used: stripped, with a space for line breaks and tabs. Of any script, and any words: what a
    tokenizer would take for a special token is encoded as ordinary text (`ans/model/prompts.py`).

    Raises `ValueError` for a text that is empty then, that has control characters or that is too long.
    """
    text = BREAKS.sub(" ", text).strip()
    for character in text:
        if (
            unicodedata.category(character) in ("Cc", "Cs")
            or 0xFDD0 <= ord(character) <= 0xFDEF
            or ord(character) & 0xFFFE == 0xFFFE
        ):
            raise ValueError(f"text with the control character U+{ord(character):04X}")
    if not text.removesuffix(".") or all(unicodedata.category(character)[0] in "ZC" for character in text):
        raise ValueError("empty text")
    if len(text) > MAX_CHARACTERS or text.count(" ") >= MAX_WORDS:
        raise ValueError(f"text of more than {MAX_WORDS} words or {MAX_CHARACTERS} characters")
    return text


def is_junk(name: str) -> bool:
    """Return whether a file is what macOS leaves beside a file of that name (AppleDouble): its attributes, under its suffix."""
    return os.path.basename(name).startswith("._")


END = 64 * tarfile.RECORDSIZE
"""Bytes that may follow a tar's last member; tools fill their last record, of 10 kB as a rule."""


def tar_members(root: Path, tar: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield (stem, suffix, locator) of the members of a tar that end in one of `suffixes`, in any case; folders within it are left out.

    Raises `ValueError` naming a tar that cannot be read to its end.
    """
    below = tar.relative_to(root).as_posix()
    try:
        if not tar.is_file():
            raise ValueError("not a plain file")
        with tarfile.open(tar, "r:") as shard:
            for info in shard:
                stem, suffix = os.path.splitext(os.path.basename(info.name))
                if info.isfile() and not info.issparse() and suffix.lower() in suffixes and not is_junk(stem):
                    yield stem, suffix.lower(), member(below, info.offset_data, info.size)
                shard.members = []  # pyrefly: ignore[missing-attribute]  # tarfile keeps every header otherwise
            shard.fileobj.seek(shard.offset)
            if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise ValueError(f"damaged at byte {shard.offset}")
            if tar.stat().st_size - shard.offset > END:  # as tools leave it that ask for a download's space beforehand
                raise ValueError(f"only zeros from byte {shard.offset} on; is the download complete?")
    except FileNotFoundError:
        raise
    except (tarfile.TarError, ValueError, EOFError, OSError, OverflowError) as error:  # the latter two: a size that no file has
        raise ValueError(f"{tar}: not a readable tar: {error}") from error
