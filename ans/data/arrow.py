"""Image records in Arrow files, one row per image, read from disk when asked for.

Two kinds of file: image records (`RECORD`, the fields of `records.py`), and SA-1B's listing of names and locators (`ENTRY`). Each
has the metadata `source`, `reader`, `folder` and `root_listing`, a fingerprint of the listing that it was made from.

Arrow IPC rather than parquet, and not compressed: a record is then a slice of the mapped file. A parquet of a million rows in
groups small enough for that takes longer to open than training should wait, and decodes its group for every record.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ans.data.records import Expression, ImageRecord, Region
from ans.files import replacing

ROWS_PER_BATCH = 64
METADATA = ("source", "reader", "folder", "root_listing")

ABSENT = ""
"""`root_listing` of an index without rows, because there is no such folder. A run need not have every set that `sources` names;
`select` refuses those that it reads."""

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
        ("ignore_counts", pa.string()),
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
        ("content", pa.string()),
    ]
)
ENTRY = pa.schema([("name", pa.string()), ("image", pa.string()), ("annotation", pa.string())])


class Index:
    """Image records, read from disk when asked for. `source`, `reader`, `folder` and `root_listing` are the file's metadata."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_index(self.path, RECORD)
        self.source, self.reader, self.folder, self.root_listing = metadata_of(self._file, self.path).values()
        self._starts = np.frombuffer(last_of(self._file)[b"starts"], np.int64)
        self._batch = lru_cache(maxsize=8)(self._file.get_batch)

    def __reduce__(self) -> tuple[type["Index"], tuple[Path]]:
        return Index, (self.path,)  # a worker process opens the file again

    def __len__(self) -> int:
        return int(self._starts[-1])

    def record(self, i: int) -> ImageRecord:
        """Return row `i`. Raises `IndexError` outside of 0 .. len - 1."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: row {i} of {len(self)}")
        batch = int(np.searchsorted(self._starts, i, side="right")) - 1
        return _to_record(self._batch(batch).slice(i - int(self._starts[batch]), 1).to_pylist()[0])

    def region_counts(self, splits: Sequence[str], described: bool = False) -> np.ndarray:
        """Return (rows,) number of regions of every row that have a pixel and belong to one of `splits`, and, if `described`, have a
        text; their masks are not read."""
        counts = [np.zeros(0, np.int64)]
        for batch in batches_of(self._file):
            regions = batch["regions"].flatten()
            wanted = pc.and_(pc.greater(regions.field("area"), 0), pc.is_in(regions.field("split"), pa.array(splits)))
            if described:
                wanted = pc.and_(wanted, pc.greater(pc.list_value_length(regions.field("expressions")), 0))
            rows = np.repeat(np.arange(batch.num_rows), sizes(batch))
            counts.append(np.bincount(rows[wanted.to_numpy(zero_copy_only=False)], minlength=batch.num_rows))
        return np.concatenate(counts)

    def photographs(self) -> Iterator[tuple[str, str, tuple[int, int]]]:
        """Yield path, `content` and (width, height) of every row; its regions are not read."""
        for batch in batches_of(self._file):
            columns = (batch[name].to_pylist() for name in ("path", "content", "width", "height"))
            for path, content, width, height in zip(*columns, strict=True):
                yield path, content, (width, height)

    def has_others(self, splits: Sequence[str]) -> np.ndarray:
        """(rows,) bool: whether a row has a region that belongs to none of `splits`."""
        found = [np.zeros(0, bool)]
        for batch in batches_of(self._file):
            others = pc.invert(pc.is_in(batch["regions"].flatten().field("split"), pa.array(splits)))
            rows = np.repeat(np.arange(batch.num_rows), sizes(batch))[others.to_numpy(zero_copy_only=False)]
            found.append(np.bincount(rows, minlength=batch.num_rows) > 0)
        return np.concatenate(found)

    def splits(self) -> set[str]:
        """Return the splits that regions belong to."""
        columns = (batch["regions"].flatten().field("split") for batch in batches_of(self._file))
        return {split for column in columns for split in column.unique().to_pylist()}

    def records(self) -> Iterator[ImageRecord]:
        """Yield all rows, in order."""
        for batch in batches_of(self._file):
            yield from map(_to_record, batch.to_pylist())


def read_index(path: str | Path) -> Index:
    """Open an index of image records. Raises `FileNotFoundError`, or `ValueError` when the file is none."""
    return Index(path)


def is_absent(path: Path) -> bool:
    """Return whether an index, of either kind, has no rows because its folder was not there. Raises `ValueError` for another file."""
    try:
        with pa.memory_map(str(path)) as file:
            return metadata_of(pa.ipc.open_file(file), path)["root_listing"] == ABSENT
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not an index; run `dvc repro` to build it again") from error


def sizes(batch: pa.RecordBatch) -> np.ndarray:
    """Return (rows,) regions of every row, or 1 where rows have none."""
    if "regions" not in batch.schema.names:
        return np.ones(batch.num_rows, np.int64)
    return pc.list_value_length(batch["regions"]).to_numpy()


def to_batches(schema: pa.Schema, items: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    for block in blocks(items):
        yield pa.RecordBatch.from_pylist([asdict(item) for item in block], schema)


def blocks(items: Iterable[Any]) -> Iterator[list[Any]]:
    items = iter(items)
    while block := list(islice(items, ROWS_PER_BATCH)):
        yield block


def write_file(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    metadata: dict[str, str],
    skipped: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Write batches, and behind them an empty one that carries what is known at the end: where each batch starts, and what was
    skipped."""
    starts = [0]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema.with_metadata(metadata)) as writer:
        for batch in batches:
            writer.write_batch(batch)
            starts.append(starts[-1] + batch.num_rows)
        last = {"starts": np.array(starts, np.int64).tobytes(), "skipped": json.dumps(skipped())}
        writer.write_batch(pa.RecordBatch.from_pylist([], schema), custom_metadata=last)


def write_atomically(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], metadata: dict[str, str]) -> None:
    with replacing(path) as temporary:
        write_file(temporary, schema, batches, metadata)


def open_index(path: Path, schema: pa.Schema) -> pa.ipc.RecordBatchFileReader:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such index; run `dvc repro` to build it")
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
    except pa.ArrowInvalid:
        file = None
    if file is None or not file.schema.equals(schema):
        kind = "image records" if schema is RECORD else "SA-1B's files"
        raise ValueError(f"{path}: not an index of {kind}, or of an older version; run `dvc repro` to build it again")
    return file


def metadata_of(file: pa.ipc.RecordBatchFileReader, path: Path) -> dict[str, str]:
    """Return the `METADATA` of the index at `path`. Raises `ValueError` where it lacks some."""
    found = {key.decode(): value.decode() for key, value in (file.schema.metadata or {}).items()}
    if missing := set(METADATA) - set(found):
        raise ValueError(f"{path}: an index of an older version ({min(missing)} is missing); run `dvc repro` to build it again")
    return {key: found[key] for key in METADATA}


def batches_of(file: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    for number in range(file.num_record_batches - 1):
        yield file.get_batch(number)


def last_of(file: pa.ipc.RecordBatchFileReader) -> dict[bytes, bytes]:
    return dict(file.get_batch_with_custom_metadata(file.num_record_batches - 1).custom_metadata)


def _to_record(row: dict[str, Any]) -> ImageRecord:
    values: dict[str, Any] = {**row, "regions": tuple(map(_to_region, row["regions"]))}
    return ImageRecord(**values)


def _to_region(row: dict[str, Any]) -> Region:
    expressions = tuple(Expression(**expression) for expression in row["expressions"])
    values: dict[str, Any] = {**row, "bbox": tuple(row["bbox"]), "expressions": expressions}
    return Region(**values)
