"""The readers of published layouts, by name, and whether the files that an index was made from are still the same."""

import hashlib
import importlib
from pathlib import Path
from types import ModuleType

from ans.data.arrow import Index


class ListingChanged(RuntimeError):
    """The files that an index was made from are no longer what they were."""


def load(reader: str) -> ModuleType:
    """Return the module `ans/data/sources/<reader>.py`, imported by name, so that a change of one reader concerns its sets alone."""
    return importlib.import_module(f"ans.data.sources.{reader}")


def listing_checksum(root: Path, folder: str, name: str, reader: str) -> str:
    """Return sha256 of what the reader says of a set's listing: names, sizes and numbers of files, for your own data also contents."""
    lines = "\n".join(load(reader).fingerprint(root, folder, name))
    # names on disk may be bytes that are not valid text
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def check_listing(index: Index, root: str | Path) -> None:
    """Raise `ListingChanged`, with advice, when the files that `index` was made from are not the ones below `root`."""
    check({name: getattr(index, name) for name in ("source", "reader", "folder", "root_listing")}, index.path, Path(root))


def check(metadata: dict[str, str], path: Path, root: Path) -> None:
    """Check as `check_listing` does, for the metadata of an index at `path`."""
    source, folder = metadata["source"], metadata["folder"]
    if listing_checksum(root, folder, source, metadata["reader"]) != metadata["root_listing"]:
        stage = f"own@{source}" if metadata["reader"] == "own" else f"index@{source}"
        raise ListingChanged(
            f"{path} was made from other files than those that are now in {root / folder}; run `dvc repro --force --single-item "
            f"{stage}`{' and `dvc repro subset_sa1b`' if source == 'sa1b' else ''}, or point paths.root to the old ones"
        )
