"""Records -> parquet, one row per image, and back.

Three kinds of file, each with the metadata `source`, `folder` and `root_listing` (a fingerprint of the listing it was made from):
`<source>.parquet` and `sa1b_subset.parquet` hold image records; `sa1b.parquet` alone holds names and locators only.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ans.config import Config, ConfigError, SubsetSa1b
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources import describe_anything, open_images, refcoco, sa1b, sav

FOLDER = Path("data/index")
ROWS_PER_GROUP = 64
"""A row group is what reading one record decodes; small, because training reads records in random order."""

EXAMPLES = 5

READERS = {**dict.fromkeys(refcoco.REFS, refcoco), "sav": sav, "openimages": open_images, "describe": describe_anything}
"""Source name -> module with `read` and `fingerprint`; SA-1B is apart, since its listing is not its records."""

EXPRESSION = pa.struct([("sent_id", pa.int64()), ("sent", pa.string()), ("raw", pa.string())])
REGION = pa.struct(
    [
        ("region_id", pa.int64()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.float64(), 4)),
        ("counts", pa.string()),
        ("expressions", pa.list_(EXPRESSION)),
        ("second_counts", pa.string()),
    ]
)
RECORD = pa.schema(
    [
        ("image_id", pa.int64()),
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("regions", pa.list_(REGION)),
        ("second", pa.string()),
    ]
)
ENTRY = pa.schema([("name", pa.string()), ("image", pa.string()), ("annotation", pa.string())])


class ListingChanged(RuntimeError):
    """The files that an index was made from are no longer what they were."""


class Index:
    """Image records, read from disk when asked for. `source`, `folder` and `root_listing` are the file's metadata."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such index; `python -m stages.index SOURCE` makes it")
        self._file = pq.ParquetFile(self.path)
        metadata = self._file.schema_arrow.metadata or {}
        if not self._file.schema_arrow.equals(RECORD) or b"root_listing" not in metadata:
            raise ValueError(
                f"{self.path}: not an index of image records, or of an older version; `python -m stages.index SOURCE` makes it"
            )
        self.source, self.folder, self.root_listing = (metadata[key].decode() for key in (b"source", b"folder", b"root_listing"))
        groups = self._file.metadata
        self._starts = np.cumsum([0] + [groups.row_group(i).num_rows for i in range(groups.num_row_groups)])
        self._group = lru_cache(maxsize=8)(self._file.read_row_group)

    def __reduce__(self) -> tuple[type["Index"], tuple[Path]]:
        return Index, (self.path,)  # a worker process opens the file anew

    def __len__(self) -> int:
        return int(self._starts[-1])

    def record(self, i: int) -> ImageRecord:
        """Row `i`. Raises `IndexError` outside of 0 .. len - 1."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: row {i} of {len(self)}")
        group = int(np.searchsorted(self._starts, i, side="right")) - 1
        row = self._group(group).slice(i - int(self._starts[group]), 1).to_pylist()[0]
        return _to_record(row)

    def region_counts(self) -> np.ndarray:
        """(rows,) number of regions of every row, without reading the regions themselves."""
        column = self._file.read(columns=["regions.list.element.region_id"])["regions"]
        return pc.list_value_length(column).to_numpy()

    def records(self) -> Iterator[ImageRecord]:
        """All rows, in order."""
        for batch in self._file.iter_batches(batch_size=ROWS_PER_GROUP):
            yield from map(_to_record, batch.to_pylist())


def read_index(path: str | Path) -> Index:
    """Open an index of image records. Raises `FileNotFoundError`, or `ValueError` when the file is none."""
    return Index(path)


def write_records(path: Path, records: Iterable[ImageRecord], metadata: dict[str, str]) -> None:
    """Write image records, in constant memory and atomically."""
    rows = map(asdict, records)
    _write(path, RECORD, (pa.Table.from_pylist(block, RECORD) for block in _blocks(rows)), metadata)


def build(name: str, config: Config, folder: Path = FOLDER) -> dict[str, Any]:
    """Index source `name` into `folder`/<name>.parquet and return the report: counts, and what was skipped and why.

    Raises `ConfigError` for a name that is not below `sources`, `FileNotFoundError` for a missing listing, and `ValueError` when
    more than `index.max_bad_fraction` of the records cannot be used.
    """
    if name not in config.sources:
        raise ConfigError(f"sources.{name}: missing; there are {', '.join(config.sources)}")
    if name != "sa1b" and name not in READERS:
        raise ConfigError(f"sources.{name}: no reader of that name; there are {', '.join((*READERS, 'sa1b'))}")
    root, source_folder = Path(config.paths.root), config.sources[name]
    metadata = {"source": name, "folder": source_folder, "root_listing": fingerprint(root, source_folder, name)}
    skipped = _SkipLog()
    path = folder / f"{name}.parquet"
    if name == "sa1b":
        entries = [asdict(entry) for entry in skipped.drop(_progress(sa1b.list_entries(root, source_folder), name))]
        report: dict[str, Any] = {"source": name, "images": len(entries)}
        skipped.check(len(entries), name, config.index.max_bad_fraction)
        _write(path, ENTRY, [pa.Table.from_pylist(entries, ENTRY).sort_by("name")], metadata)
    else:
        counts = _SplitCounts()
        records = counts.count(skipped.drop(_progress(READERS[name].read(root, source_folder, name), name)))
        write_records(path, skipped.checked(records, name, config.index.max_bad_fraction), metadata)
        report = {"source": name, **counts.report()}
    return report | skipped.report()


def subset_sa1b(config: Config, folder: Path = FOLDER) -> dict[str, Any]:
    """Read the JSONs of `subset_sa1b.images` images, the first in name order (text order) or a seeded sample, into
    `folder`/sa1b_subset.parquet, and return the report. Raises `ValueError` when there are fewer, or too many cannot be read,
    `ListingChanged` when sa1b.parquet is out of date.
    """
    root, path = Path(config.paths.root), folder / "sa1b.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such index; `python -m stages.index sa1b` makes it")
    table = pq.read_table(path)
    metadata = {key: table.schema.metadata[key.encode()].decode() for key in ("source", "folder", "root_listing")}
    _check(metadata, path, root)
    entries = [sa1b.Entry(**row) for row in table.take(_choose(table.num_rows, config.subset_sa1b)).to_pylist()]
    skipped, counts = _SkipLog(), _SplitCounts()
    records = counts.count(skipped.drop(_progress(_read_entries(root, entries), "sa1b_subset")))
    write_records(folder / "sa1b_subset.parquet", skipped.checked(records, "sa1b", config.index.max_bad_fraction), metadata)
    return {"source": "sa1b_subset", **counts.report(), **skipped.report()}


def fingerprint(root: Path, folder: str, name: str) -> str:
    """Cheap fingerprint of a source's listing: names and sizes of its listing files, or the number of files per folder."""
    lines = sa1b.fingerprint(root, folder) if name == "sa1b" else READERS[name].fingerprint(root, folder, name)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_listing(index: Index, root: str | Path) -> None:
    """Raise `ListingChanged`, with advice, when the files that `index` was made from are not the ones below `root`."""
    _check({"source": index.source, "folder": index.folder, "root_listing": index.root_listing}, index.path, Path(root))


def _check(metadata: dict[str, str], path: Path, root: Path) -> None:
    source, folder = metadata["source"], metadata["folder"]
    if fingerprint(root, folder, source) != metadata["root_listing"]:
        raise ListingChanged(
            f"{path} was made from another listing than the one now in {root / folder}; "
            f"run `dvc repro --force --single-item index@{source}` (and subset_sa1b for sa1b) or point paths.root to the old one"
        )


def _choose(available: int, subset: SubsetSa1b) -> np.ndarray:
    if subset.images > available:
        raise ValueError(f"subset_sa1b.images: {subset.images} asked for, but the index has {available}")
    if subset.order == "name":
        return np.arange(subset.images)
    return np.sort(np.random.default_rng(subset.seed).choice(available, subset.images, replace=False))


def _read_entries(root: Path, entries: list[sa1b.Entry]) -> Iterator[ImageRecord | Skipped]:
    for entry in entries:
        try:
            yield sa1b.read_image(root, entry)
        except (ValueError, FileNotFoundError) as error:
            yield Skipped(entry.name, str(error).removeprefix(f"{entry.annotation}: "))


def _progress(items: Iterable[Any], name: str) -> Iterator[Any]:
    yield from tqdm(items, desc=f"index {name}", unit="image", disable=None)


class _SkipLog:
    """Counts by reason, with the first few examples of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def drop(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items that are no `Skipped`."""
        for item in items:
            if not isinstance(item, Skipped):
                yield item
                continue
            self.counts[item.reason] += 1
            if len(self.examples[item.reason]) < EXAMPLES:
                self.examples[item.reason].append(item.key)

    def check(self, good: int, name: str, limit: float) -> None:
        bad = self.counts.total()
        if good == 0 or bad > limit * (good + bad):
            reasons = "; ".join(
                f"{n} x {reason} ({', '.join(self.examples[reason])})" for reason, n in self.counts.most_common(5)
            )
            raise ValueError(
                f"sources.{name}: {bad} of {good + bad} records cannot be used, "
                f"index.max_bad_fraction is {limit}: {reasons or 'there are none'}"
            )

    def checked(self, records: Iterable[ImageRecord], name: str, limit: float) -> Iterator[ImageRecord]:
        """Pass records on; raise at their end, before the file gets its name, when too many were bad.

        What counts as one record is what the reader skips one by one: an image of SA-1B, an object of the other sets.
        """
        good = 0
        for record in records:
            good += 1 if name == "sa1b" else len(record.regions)
            yield record
        self.check(good, name, limit)

    def report(self) -> dict[str, Any]:
        return {"skipped": {r: {"count": n, "examples": self.examples[r]} for r, n in sorted(self.counts.items())}}


class _SplitCounts:
    """Images, regions and expressions, in all and per split."""

    def __init__(self) -> None:
        self.images = self.regions = self.expressions = 0
        self.splits: dict[str, Counter[str]] = defaultdict(Counter)

    def count(self, records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        for record in records:
            self.images += 1
            for split in {region.split for region in record.regions}:
                self.splits[split]["images"] += 1
            for region in record.regions:
                self.regions += 1
                self.expressions += len(region.expressions)
                self.splits[region.split].update(regions=1, expressions=len(region.expressions))
            yield record

    def report(self) -> dict[str, Any]:
        counts: dict[str, Any] = {"images": self.images, "regions": self.regions, "expressions": self.expressions}
        if set(self.splits) - {""}:
            counts["splits"] = {split: dict(self.splits[split]) for split in sorted(self.splits)}
        return counts


def _blocks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while block := list(islice(rows, ROWS_PER_GROUP)):
        yield block


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(temporary, schema.with_metadata(metadata), compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata(metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_record(row: dict[str, Any]) -> ImageRecord:
    regions = tuple(
        Region(**{**region, "bbox": tuple(region["bbox"]), "expressions": tuple(Expression(**e) for e in region["expressions"])})
        for region in row["regions"]
    )
    return ImageRecord(**{**row, "regions": regions})
