"""Index a data set: its reader's records -> one Arrow file, in parallel, resumable, with a report of what was skipped and why."""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ans.config import Config, ConfigError
from ans.data import parts, readers
from ans.data.arrow import (
    ABSENT,
    ENTRY,
    RECORD,
    batches_of,
    last_of,
    open_index,
    sizes,
    to_batches,
    write_atomically,
    write_file,
)
from ans.data.counting import Counts, Skips
from ans.data.images import UNSEEN
from ans.data.matching import record_image
from ans.data.records import ImageRecord, Noted, Skipped
from ans.files import write_json
from ans.provenance import digest
from ans.workspace import Workspace

log = logging.getLogger(__name__)

IMAGES_PER_PART = 128
"""Images that one process reads at a time; as much is lost by a kill."""


def build(
    name: str, config: Config, workspace: Workspace = Workspace(), workers: int | None = None, part: int = IMAGES_PER_PART
) -> dict[str, Any]:
    """Index set `name`, of `sources` or `own`, and return the report: counts, areas, and what was skipped and why.

    `workers` processes read (None: one per core), each `part` images at a time; the file is the same for any number. A killed
    run is taken up where it was. Where the folder of a published set is not there, the index has no rows and `ABSENT` as its
    listing. Raises `ConfigError` for an unknown name, `FileNotFoundError` for a missing root or listing, and `ValueError` when
    more than `index.max_bad_fraction` of the records cannot be used.
    """
    if (source := config.source(name)) is None:
        raise ConfigError(f"sources.{name}: missing; there are {', '.join([*config.sources, *config.own])}")
    root = Path(config.paths.root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: not found; paths.root names it")
    reader = readers.load(source.reader)
    schema = getattr(reader, "SCHEMA", RECORD)
    metadata = {"source": name, "reader": source.reader, "folder": source.folder}
    if name in config.sources and not (root / source.folder).is_dir():
        return absent(workspace.index(name), name, schema, metadata)
    metadata["root_listing"] = readers.listing_checksum(root, source.folder, name, source.reader)
    settings = metadata | {"caps": [source.max_images, source.max_samples], "decode": config.index.decode}
    with Parts(workspace.runs, settings, root) as place:
        found = reader.plan(root, source.folder, name)
        read_one = partial(reader.read_one, root)
        if config.index.decode and schema is RECORD and source.reader != "own":  # which opens them in any case
            read_one = partial(_opened, root, read_one)
        write = partial(_write_part, schema, read_one)
        if schema is ENTRY:  # what is unread is a shard of thousands of images
            paths = parts.write_parts(found, write, place, 1, f"index {name}", "shard", workers, config.index.scheduler)
            return assemble(
                workspace.index(name),
                name,
                paths,
                schema,
                metadata,
                config.index.max_bad_fraction,
                source.max_images,
                per_image=True,
            )
        paths = parts.write_parts(
            found[: source.max_images], write, place, part, f"index {name}", "image", workers, config.index.scheduler
        )
        return assemble(workspace.index(name), name, paths, schema, metadata, config.index.max_bad_fraction, source.max_samples)


class Parts:
    """A folder for parts made with these settings.

    It stays when a process is killed or interrupted or the disk fails, to be taken up again, and goes in every other case:
    whoever mends what an error names may have mended the files that the parts were made from. Changed code would make other
    parts, so a digest of the code is in the folder's name.
    """

    def __init__(self, runs: Path, settings: dict[str, Any], root: Path, *modules: str) -> None:
        code = digest("ans.data.index", f"ans.data.sources.{settings['reader']}", *modules)
        key = hashlib.sha256(repr((sorted(settings.items()), str(root.resolve()), code)).encode())
        self.folder = runs / f"index-{settings['source']}-{key.hexdigest()[:12]}"

    def __enter__(self) -> Path:
        self._lock = parts.locked(self.folder)
        self._lock.__enter__()
        pa.array([])  # now pyarrow imports pandas: once, and not in each process that reads
        return self.folder

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        kept = kind is not None and (not issubclass(kind, Exception) or issubclass(kind, BrokenExecutor | OSError))
        if not kept:
            shutil.rmtree(self.folder)
        self._lock.__exit__(None, None, None)


def _write_part(schema: pa.Schema, read_one: Callable[[Any], Iterable[Any]], found: Sequence[Any], path: Path) -> None:
    skipped = Skips()
    items = (item for unread in found for item in ((unread,) if isinstance(unread, Skipped) else read_one(unread)))
    write_file(path, schema, to_batches(schema, skipped.drop(items)), {}, skipped.report)


def _opened(root: Path, read_one: Callable[[Any], Iterable[Any]], unread: Any) -> Iterator[Any]:
    """Yield what a reader gives; of an image that does not open as training opens it, or not at the record's size, each region skipped."""
    for item in read_one(unread):
        if isinstance(item, ImageRecord) and (reason := broken(root, item)):
            yield from (Skipped(f"{item.path}, region {region.region_id}", reason) for region in item.regions)
        else:
            yield item


def broken(root: Path, record: ImageRecord) -> str:
    """Return why training could not open the image of a record, or its second frame; "" where it can."""
    try:
        for second in (False, True) if record.second else (False,):
            record_image(root, record, second)
    except FileNotFoundError:
        return "no such image"
    except ValueError as error:
        said = {"masks would lie": "image of another size than the record", UNSEEN: f"image with an EXIF orientation: {UNSEEN}"}
        return next((reason for text, reason in said.items() if text in str(error)), "image that cannot be read")
    return ""


def absent(path: Path, name: str, schema: pa.Schema, metadata: dict[str, str]) -> dict[str, Any]:
    """Write the index of a set that is missing, and return its report."""
    write_atomically(path, schema, [], metadata | {"root_listing": ABSENT})
    return {"source": name, "absent": metadata["folder"], "images": 0, **Skips().report()}


def assemble(
    path: Path,
    name: str,
    paths: list[Path],
    schema: pa.Schema,
    metadata: dict[str, str],
    limit: float,
    cap: int | None,
    per_image: bool = False,
) -> dict[str, Any]:
    """Write parts into the index at `path` and return its report. `limit`: the share of records that may be bad, which are images where
    `per_image` and else regions. `cap`: at most this many regions, or rows where there are no regions."""
    skipped, counts = Skips(), Counts()
    for part in paths:
        skipped.add(json.loads(last_of(open_index(part, schema))[b"skipped"]))

    def counted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass batches on; raise at their end, before the file gets its name, when too many records were bad."""
        for batch in batches:
            counts.add(batch)
            yield batch
        skipped.check(counts.images if per_image else counts.regions, name, limit)

    twice = _names_twice(paths) if schema is ENTRY else {}
    if twice:
        found = Noted(min(twice), "listed twice, in a tar and extracted or in two folders: taken once")
        skipped.count(found, sum(twice.values()) - len(twice))
    batches = _once(_all(paths, schema), twice)
    if cap is not None:
        for _ in counted(batches):  # what is left out counts, too, where records are bad
            pass
        counts, batches = Counts(), _capped(_once(_all(paths, schema), twice), cap)
    write_atomically(path, schema, counted(batches), metadata)
    return {"source": name, **counts.report(), **skipped.report()}


def _all(paths: list[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for path in paths:
        yield from batches_of(open_index(path, schema))


def _names_twice(paths: list[Path]) -> dict[str, int]:
    """Return name -> how often, of the names that several entries have."""

    def names() -> Iterator[list[str]]:
        return (batch["name"].to_pylist() for batch in _all(paths, ENTRY))

    # 8 bytes a name: together the names of all of SA-1B take gigabytes
    hashes = np.concatenate([np.zeros(0, np.int64), *(np.fromiter(map(hash, some), np.int64, len(some)) for some in names())])
    hashes.sort()
    suspect = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    counted = Counter(name for some in names() for name in some if hash(name) in suspect) if suspect else Counter()
    return {name: count for name, count in counted.items() if count > 1}


def _once(batches: Iterable[pa.RecordBatch], twice: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """Yield, of the entries with one of the names `twice` the first."""
    waiting = set(twice)
    if not waiting:
        yield from batches
        return
    known = pa.array(sorted(waiting), pa.string())
    for batch in batches:
        suspect = pc.is_in(batch["name"], known).to_pylist()
        keep = []
        for name, again in zip(batch["name"].to_pylist(), suspect, strict=True):
            keep.append(not again or name in waiting)
            waiting.discard(name)
        yield batch.filter(pa.array(keep, pa.bool_()))


def _capped(batches: Iterable[pa.RecordBatch], cap: int) -> Iterator[pa.RecordBatch]:
    """Yield the first rows that hold `cap` regions; of the last row the first regions."""
    for batch in batches:
        ends = np.cumsum(sizes(batch))
        rows = int(np.searchsorted(ends, cap, side="right"))  # that are kept whole
        if rows:
            yield batch.slice(0, rows)
            cap -= int(ends[rows - 1])
        if rows < batch.num_rows:
            if cap:
                (row,) = batch.slice(rows, 1).to_pylist()
                yield pa.RecordBatch.from_pylist([row | {"regions": row["regions"][:cap]}], batch.schema)
            return


def write_report(report: dict[str, Any], workspace: Workspace = Workspace()) -> None:
    """Write an index's report beside the others, and say its first line."""
    write_json(workspace.index_report(report["source"]), report)
    skipped, noted = (sum(reason["count"] for reason in report.get(key, {}).values()) for key in ("skipped", "noted"))
    found = f"missing ({report['absent']})" if "absent" in report else f"{report['images']} images, {skipped} records skipped"
    found += f", {noted} noted" if noted else ""
    log.info(f"{report['source']}: {found}")
