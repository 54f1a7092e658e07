"""Records -> Arrow files, one row per image, and back.

Three kinds of file, each with the metadata `source`, `folder` and `root_listing` (a fingerprint of the listing it was made from):
`<source>` and `sa1b_subset` hold image records (`RECORD`, the fields of `records.py`); `sa1b` alone holds names and locators.

Arrow IPC rather than parquet, and not compressed: a record is then a slice of the mapped file. A parquet of a million rows in
groups small enough for that takes longer to open than training should wait, and decodes its group for every record.
"""

import gc
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ans.config import Config, ConfigError, SubsetSa1b
from ans.data import parts
from ans.data.records import Expression, ImageRecord, Region, Skipped
from ans.data.sources import describe_anything, open_images, own, reason_seg, refcoco, sa1b, sav, sav_video
from ans.files import replacing, runs_folder

FOLDER = Path("data/index")
SUFFIX = ".arrow"
ROWS_PER_BATCH = 64
IMAGES_PER_PART = 128
"""Images that one process reads at a time; as much is lost by a kill."""

ABSENT = ""
"""`root_listing` of an index without rows, because there is no such folder. A run need not have every set that `sources` names;
`select` refuses those that it reads."""

EXAMPLES = 5
AREAS = (1, 32**2, 96**2, 256**2, 512**2, 1024**2)
"""Lower edges of the reported histogram of areas, in pixels; the second and third are those of COCO."""

READERS: dict[str, ModuleType] = {
    **dict.fromkeys(refcoco.REFS, refcoco),
    "reasonseg": reason_seg,
    "sav": sav,
    "sav_video": sav_video,
    "openimages": open_images,
    "describe": describe_anything,
}
"""Source name -> its reader. SA-1B is apart, since its listing is not its records; any further name is a folder of one's own."""

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
    ]
)
ENTRY = pa.schema([("name", pa.string()), ("image", pa.string()), ("annotation", pa.string())])


class ListingChanged(RuntimeError):
    """The files that an index was made from are no longer what they were."""


class Index:
    """Image records, read from disk when asked for. `source`, `folder` and `root_listing` are the file's metadata."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _open(self.path, RECORD)
        self.source, self.folder, self.root_listing = _metadata(self._file).values()
        self._starts = np.frombuffer(_last(self._file)[b"starts"], np.int64)
        self._batch = lru_cache(maxsize=8)(self._file.get_batch)

    def __reduce__(self) -> tuple[type["Index"], tuple[Path]]:
        return Index, (self.path,)  # a worker process opens the file anew

    def __len__(self) -> int:
        return int(self._starts[-1])

    def record(self, i: int) -> ImageRecord:
        """Row `i`. Raises `IndexError` outside of 0 .. len - 1."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: row {i} of {len(self)}")
        batch = int(np.searchsorted(self._starts, i, side="right")) - 1
        return _to_record(self._batch(batch).slice(i - int(self._starts[batch]), 1).to_pylist()[0])

    def region_counts(self, splits: Sequence[str], described: bool = False) -> np.ndarray:
        """(rows,) number of regions of every row that have a pixel and belong to one of `splits`, and, if `described`, have a
        text; their masks are not read."""
        counts = [np.zeros(0, np.int64)]
        for batch in _batches(self._file):
            regions = batch["regions"].flatten()
            wanted = pc.and_(pc.greater(regions.field("area"), 0), pc.is_in(regions.field("split"), pa.array(splits)))
            if described:
                wanted = pc.and_(wanted, pc.greater(pc.list_value_length(regions.field("expressions")), 0))
            rows = np.repeat(np.arange(batch.num_rows), _sizes(batch))
            counts.append(np.bincount(rows[wanted.to_numpy(zero_copy_only=False)], minlength=batch.num_rows))
        return np.concatenate(counts)

    def records(self) -> Iterator[ImageRecord]:
        """All rows, in order."""
        for batch in _batches(self._file):
            yield from map(_to_record, batch.to_pylist())


def read_index(path: str | Path) -> Index:
    """Open an index of image records. Raises `FileNotFoundError`, or `ValueError` when the file is none."""
    return Index(path)


def write_records(path: Path, records: Iterable[ImageRecord], metadata: dict[str, str]) -> None:
    """Write image records, in constant memory and atomically."""
    _write_atomically(path, RECORD, _to_batches(RECORD, records), metadata)


def build(name: str, config: Config, folder: Path = FOLDER, workers: int | None = None) -> dict[str, Any]:
    """Index source `name` into `folder` and return the report: counts, areas, and what was skipped and why.

    `workers` processes read (None: one per core); the file does not depend on their number. A killed run is taken up where it
    was. Where the source's folder is not there, the index has no rows and `ABSENT` as its listing. Raises `ConfigError` for a
    name that is not below `sources`, `FileNotFoundError` for a missing root or listing, and `ValueError` when more than
    `index.max_bad_fraction` of the records cannot be used.
    """
    if name not in config.sources:
        raise ConfigError(f"sources.{name}: missing; there are {', '.join(config.sources)}")
    root, source = Path(config.paths.root), config.sources[name]
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: not found; paths.root names it")
    if not (root / source.folder).is_dir():
        return _absent(folder, name, ENTRY if name == "sa1b" else RECORD, name, source.folder)
    metadata = {"source": name, "folder": source.folder, "root_listing": fingerprint(root, source.folder, name)}
    reader = sa1b if name == "sa1b" else reader_of(name)
    with _Parts(_resume_folder(metadata | asdict(source), root)) as place:
        tasks = reader.plan(root, source.folder, name)
        if name == "sa1b":  # a task is a shard of thousands of images
            write = partial(_write_part, ENTRY, partial(sa1b.list_shard, root))
            paths = parts.write_parts(tasks, write, place, 1, f"index {name}", "shard", workers)
            return _assemble(folder, paths, ENTRY, metadata, config, source.max_images)
        write = partial(_write_part, RECORD, partial(reader.read_one, root))
        paths = parts.write_parts(tasks[: source.max_images], write, place, IMAGES_PER_PART, f"index {name}", "image", workers)
        return _assemble(folder, paths, RECORD, metadata, config, source.max_samples)


def subset_sa1b(config: Config, folder: Path = FOLDER, workers: int | None = None) -> dict[str, Any]:
    """Read the JSONs of `subset_sa1b.images` images, the first in name order (text order) or a seeded sample, into `sa1b_subset`
    of `folder`, and return the report. Masks outside of the limits of `subset_sa1b` are left out, and images without any other.

    Raises `ValueError` when there are fewer images, or too many cannot be read, `ListingChanged` when the listing is out of date.
    """
    root, path = Path(config.paths.root), folder / f"sa1b{SUFFIX}"
    listing = _open(path, ENTRY)
    metadata = _metadata(listing)
    if metadata["root_listing"] == ABSENT:
        return _absent(folder, "sa1b_subset", RECORD, "sa1b", metadata["folder"])
    _check(metadata, path, root)
    table = pa.Table.from_batches(_batches(listing), listing.schema)
    rows = pc.sort_indices(table["name"]).to_numpy()[_choose(table.num_rows, config.subset_sa1b)]
    with _Parts(_resume_folder(metadata | asdict(config.subset_sa1b), root)) as place:
        write = partial(_write_sa1b_part, root, config.subset_sa1b)
        entries = _Entries(table.take(rows).combine_chunks())
        paths = parts.write_parts(entries, write, place, IMAGES_PER_PART, "subset of sa1b", "image", workers)
        return _assemble(folder, paths, RECORD, metadata, config, config.sources["sa1b"].max_samples, "sa1b_subset")


def is_absent(path: Path) -> bool:
    """Whether an index, of either kind, has no rows because its folder was not there. Raises `ValueError` for another file."""
    try:
        with pa.memory_map(str(path)) as file:
            return _metadata(pa.ipc.open_file(file))["root_listing"] == ABSENT
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{path}: not an index; `python -m stages.index SOURCE` makes it") from error


def reader_of(name: str) -> ModuleType:
    """The reader of source `name`; `own` for a name that is no published data set's."""
    return READERS.get(name, own)


def fingerprint(root: Path, folder: str, name: str) -> str:
    """Cheap fingerprint of a source's listing: names and sizes of its listing files, or the number of files per folder."""
    lines = sa1b.fingerprint(root, folder) if name == "sa1b" else reader_of(name).fingerprint(root, folder, name)
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


class _Entries(Sequence[sa1b.Entry]):
    """Rows of a listing, as Python's objects only where they are asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, wanted: slice) -> list[sa1b.Entry]:
        start, stop, _ = wanted.indices(len(self))
        return [sa1b.Entry(**row) for row in self.table.slice(start, stop - start).to_pylist()]


def _choose(available: int, subset: SubsetSa1b) -> np.ndarray:
    if subset.images > available:
        raise ValueError(f"subset_sa1b.images: {subset.images} asked for, but the index has {available}")
    if subset.order == "name":
        return np.arange(subset.images)
    return np.sort(np.random.default_rng(subset.seed).choice(available, subset.images, replace=False))


# ------------------------------------------------------------------------------------------------------------------ parts


class _Parts:
    """A folder for parts. It stays when a process is killed or interrupted or the disk fails, to be taken up again, and goes in
    every other case: whoever mends what an error names may have mended the files that the parts were made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        kept = kind is not None and (not issubclass(kind, Exception) or issubclass(kind, BrokenExecutor | OSError))
        if not kept:
            shutil.rmtree(self.folder)


def _resume_folder(settings: dict[str, Any], root: Path) -> Path:
    """Where parts with these settings lie. Readers that were changed since would make others, so their code is among them."""
    digest = hashlib.sha256(repr((sorted(settings.items()), str(root.resolve()))).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return runs_folder() / f"index-{settings['source']}-{digest.hexdigest()[:12]}"


def _write_part(schema: pa.Schema, read_one: Callable[[Any], Iterable[Any]], tasks: Sequence[Any], path: Path) -> None:
    skipped = _Skips()
    items = (item for task in tasks for item in ((task,) if isinstance(task, Skipped) else read_one(task)))
    _write(path, schema, _to_batches(schema, skipped.drop(items)), {}, skipped)


def _write_sa1b_part(root: Path, subset: SubsetSa1b, entries: Sequence[sa1b.Entry], path: Path) -> None:
    skipped = _Skips()
    images = skipped.drop(sa1b.read_masks(root, entry, subset) for entry in entries)
    gc.disable()  # a JSON has no cycles, and to look for some among its dicts takes a fifth of the time
    try:
        _write(path, RECORD, map(_sa1b_batch, _blocks(images)), {}, skipped)
    finally:
        gc.enable()


def _sa1b_batch(images: list[sa1b.Masks]) -> pa.RecordBatch:
    """Column by column: as records of their own the hundred masks of an image would take as long as to parse its JSON."""
    n = sum(len(image.id) for image in images)
    empty = pa.repeat("", n)
    columns = {
        "region_id": pa.array([id_ for image in images for id_ in image.id], pa.int64()),
        "split": empty,
        "category": empty,
        "area": pa.array([area for image in images for area in image.area], pa.int64()),
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array([edge for image in images for edge in image.edges], pa.float64()), 4),
        "counts": pa.array([counts for image in images for counts in image.counts], pa.string()),
        "expressions": pa.ListArray.from_arrays(np.zeros(n + 1, np.int32), pa.array([], EXPRESSION)),
        "second_counts": empty,
        "ignore_counts": empty,
    }
    regions = pa.StructArray.from_arrays([columns[field.name] for field in REGION], fields=list(REGION))
    ends = np.cumsum([0, *(len(image.id) for image in images)], dtype=np.int32)
    return pa.record_batch(
        [
            pa.array([image.image_id for image in images], pa.int64()),
            pa.array([image.path for image in images], pa.string()),
            pa.array([image.width for image in images], pa.int32()),
            pa.array([image.height for image in images], pa.int32()),
            pa.ListArray.from_arrays(ends, regions, type=RECORD.field("regions").type),
            pa.array([""] * len(images), pa.string()),
        ],
        schema=RECORD,
    )


# ------------------------------------------------------------------------------------------------------------------- file


def _absent(folder: Path, name: str, schema: pa.Schema, source: str, place: str) -> dict[str, Any]:
    """Write the index of a set that is not there, and return its report."""
    metadata = {"source": source, "folder": place, "root_listing": ABSENT}
    _write_atomically(folder / f"{name}{SUFFIX}", schema, [], metadata)
    return {"source": name, "absent": place, "images": 0, **_Skips().report()}


def _assemble(
    folder: Path, paths: list[Path], schema: pa.Schema, metadata: dict[str, str], config: Config, cap: int | None, name: str = ""
) -> dict[str, Any]:
    """Parts -> one file, and its report. `cap`: at most so many regions, or rows where there are no regions."""
    name = name or metadata["source"]
    skipped, counts = _Skips(), _Counts()
    for path in paths:
        skipped.add(json.loads(_last(_open(path, schema))[b"skipped"]))

    def counted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass batches on; raise at their end, before the file gets its name, when too many records were bad."""
        for batch in batches:
            counts.add(batch)
            yield batch
        # what counts as one record is what the reader skips one by one: an image of SA-1B, an object of the other sets
        skipped.check(counts.images if metadata["source"] == "sa1b" else counts.regions, name, config.index.max_bad_fraction)

    batches = _all(paths, schema)
    if cap is not None:
        for _ in counted(batches):  # what is left out counts, too, where records are bad
            pass
        counts, batches = _Counts(), _capped(_all(paths, schema), cap)
    _write_atomically(folder / f"{name}{SUFFIX}", schema, counted(batches), metadata)
    return {"source": name, **counts.report(), **skipped.report()}


def _all(paths: list[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for path in paths:
        yield from _batches(_open(path, schema))


def _capped(batches: Iterable[pa.RecordBatch], cap: int) -> Iterator[pa.RecordBatch]:
    """The first rows that hold `cap` regions; of the last row the first regions."""
    for batch in batches:
        ends = np.cumsum(_sizes(batch))
        rows = int(np.searchsorted(ends, cap, side="right"))  # that are kept whole
        if rows:
            yield batch.slice(0, rows)
            cap -= int(ends[rows - 1])
        if rows < batch.num_rows:
            if cap:
                (row,) = batch.slice(rows, 1).to_pylist()
                yield pa.RecordBatch.from_pylist([row | {"regions": row["regions"][:cap]}], batch.schema)
            return


def _sizes(batch: pa.RecordBatch) -> np.ndarray:
    """(rows,) regions of every row, or 1 where rows have none."""
    if "regions" not in batch.schema.names:
        return np.ones(batch.num_rows, np.int64)
    return pc.list_value_length(batch["regions"]).to_numpy()


def _to_batches(schema: pa.Schema, items: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    for block in _blocks(items):
        yield pa.RecordBatch.from_pylist([asdict(item) for item in block], schema)


def _blocks(items: Iterable[Any]) -> Iterator[list[Any]]:
    items = iter(items)
    while block := list(islice(items, ROWS_PER_BATCH)):
        yield block


def _write(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], metadata: dict[str, str], skipped: "_Skips | None" = None
) -> None:
    """Batches, and behind them an empty one that carries what is known at the end: where each batch starts, what was skipped."""
    starts = [0]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema.with_metadata(metadata)) as writer:
        for batch in batches:
            writer.write_batch(batch)
            starts.append(starts[-1] + batch.num_rows)
        last = {"starts": np.array(starts, np.int64).tobytes(), "skipped": json.dumps((skipped or _Skips()).report()["skipped"])}
        writer.write_batch(pa.RecordBatch.from_pylist([], schema), custom_metadata=last)


def _write_atomically(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], metadata: dict[str, str]) -> None:
    with replacing(path) as temporary:
        _write(temporary, schema, batches, metadata)


def _open(path: Path, schema: pa.Schema) -> pa.ipc.RecordBatchFileReader:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such index; `python -m stages.index SOURCE` makes it")
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
    except pa.ArrowInvalid:
        file = None
    if file is None or not file.schema.equals(schema):
        kind = "image records" if schema is RECORD else "SA-1B's files"
        raise ValueError(f"{path}: not an index of {kind}, or of an older version; `python -m stages.index SOURCE` makes it")
    return file


def _metadata(file: pa.ipc.RecordBatchFileReader) -> dict[str, str]:
    return {key: file.schema.metadata[key.encode()].decode() for key in ("source", "folder", "root_listing")}


def _batches(file: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    for number in range(file.num_record_batches - 1):
        yield file.get_batch(number)


def _last(file: pa.ipc.RecordBatchFileReader) -> dict[bytes, bytes]:
    return dict(file.get_batch_with_custom_metadata(file.num_record_batches - 1).custom_metadata)


def _to_record(row: dict[str, Any]) -> ImageRecord:
    regions = tuple(
        Region(**{**region, "bbox": tuple(region["bbox"]), "expressions": tuple(Expression(**e) for e in region["expressions"])})
        for region in row["regions"]
    )
    return ImageRecord(**{**row, "regions": regions})


# ----------------------------------------------------------------------------------------------------------------- report


class _Skips:
    """Counts by reason, with the first few examples of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def drop(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items that are no `Skipped`."""
        for item in items:
            if isinstance(item, Skipped):
                self._count(item.reason, 1, [item.key])
            else:
                yield item

    def add(self, skipped: dict[str, dict[str, Any]]) -> None:
        """Another's report."""
        for reason, entry in skipped.items():
            self._count(reason, entry["count"], entry["examples"])

    def _count(self, reason: str, count: int, examples: list[str]) -> None:
        self.counts[reason] += count
        self.examples[reason] += examples[: EXAMPLES - len(self.examples[reason])]

    def check(self, good: int, name: str, limit: float) -> None:
        bad = self.counts.total()
        if good == 0 or bad > limit * (good + bad):
            reasons = "; ".join(
                f"{n} x {reason} ({', '.join(self.examples[reason])})" for reason, n in self.counts.most_common(5)
            )
            raise ValueError(
                f"sources.{name.removesuffix('_subset')}: {bad} of {good + bad} records cannot be used, "
                f"index.max_bad_fraction is {limit}: {reasons or 'there are none'}"
            )

    def report(self) -> dict[str, Any]:
        return {"skipped": {r: {"count": n, "examples": self.examples[r]} for r, n in sorted(self.counts.items())}}


class _Counts:
    """Images, regions and expressions, in all and per split, and regions by area."""

    def __init__(self) -> None:
        self.images = self.regions = self.expressions = 0
        self.splits: dict[str, Counter[str]] = defaultdict(Counter)
        self.areas: Counter[int] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self.images += batch.num_rows
        if "regions" not in batch.schema.names:
            return
        regions = batch["regions"].flatten()
        rows = np.repeat(np.arange(batch.num_rows), _sizes(batch))
        expressions = pc.list_value_length(regions.field("expressions")).to_numpy()
        areas = np.searchsorted(AREAS, regions.field("area").to_numpy(), side="right")
        self.areas = (self.areas or Counter()) + Counter(areas.tolist())
        self.regions += len(rows)
        self.expressions += int(expressions.sum())
        for split in regions.field("split").unique().to_pylist():
            inside = pc.equal(regions.field("split"), split).to_numpy(zero_copy_only=False)
            counts = {"images": len(np.unique(rows[inside])), "regions": int(inside.sum())}
            self.splits[split].update(counts, expressions=int(expressions[inside].sum()))

    def report(self) -> dict[str, Any]:
        if self.areas is None:
            return {"images": self.images}
        counts: dict[str, Any] = {"images": self.images, "regions": self.regions, "expressions": self.expressions}
        names = ["no pixel", *(f"{low}..{high - 1}" for low, high in pairwise(AREAS)), f"{AREAS[-1]}.."]
        counts["regions_by_area"] = {name: self.areas[number] for number, name in enumerate(names) if self.areas[number]}
        if set(self.splits) - {""}:
            counts["splits"] = {split: dict(self.splits[split]) for split in sorted(self.splits)}
        return counts
