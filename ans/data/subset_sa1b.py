"""SA-1B's listing -> records of the images that are used. Their annotations are opened here, and those of no other image."""

import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ans.config import Config
from ans.config.schema import SUBSET, SubsetSa1b
from ans.data import parts, readers
from ans.data.arrow import (
    ABSENT,
    ENTRY,
    EXPRESSION,
    RECORD,
    REGION,
    batches_of,
    blocks,
    metadata_of,
    open_index,
    write_file,
)
from ans.data.counting import Skips
from ans.data.index import IMAGES_PER_PART, Parts, absent, assemble, broken
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import sa1b
from ans.workspace import Workspace


def subset_sa1b(
    config: Config, workspace: Workspace = Workspace(), workers: int | None = None, part: int = IMAGES_PER_PART
) -> dict[str, Any]:
    """Read the JSONs of `subset_sa1b.images` images, the first in name order (text order) or a seeded sample, into the index
    `sa1b_subset`, and return the report. Masks outside of the limits of `subset_sa1b` are left out, and images without another mask.

    Raises `ValueError` when there are fewer images, or too many cannot be read, `ListingChanged` when the listing is out of date.
    """
    root, path = Path(config.paths.root), workspace.index("sa1b")
    listing = open_index(path, ENTRY)
    metadata = metadata_of(listing, path)
    if metadata["root_listing"] == ABSENT:
        return absent(workspace.index(SUBSET), SUBSET, RECORD, metadata)
    readers.check(metadata, path, root)
    table = pa.Table.from_batches(batches_of(listing), listing.schema)
    rows = pc.sort_indices(table["name"]).to_numpy()[_choose(table.num_rows, config.subset_sa1b)]
    with Parts(
        workspace.runs, metadata | config.subset_sa1b.model_dump() | {"decode": config.index.decode}, root, __name__
    ) as place:
        write = partial(_write_part, root, config.subset_sa1b, config.index.decode)
        entries = _Entries(table.take(rows).combine_chunks())
        paths = parts.write_parts(entries, write, place, part, "subset of sa1b", "image", workers, config.index.scheduler)
        limit, cap = config.index.max_bad_fraction, config.sources["sa1b"].max_samples
        return assemble(workspace.index(SUBSET), SUBSET, paths, RECORD, metadata, limit, cap, per_image=True)


class _Entries:
    """Rows of a listing, as Python's objects only where they are asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, wanted: slice) -> list[sa1b.ImageFiles]:
        start, stop, _ = wanted.indices(len(self))
        return [sa1b.ImageFiles(**row) for row in self.table.slice(start, stop - start).to_pylist()]


def _choose(available: int, subset: SubsetSa1b) -> np.ndarray:
    if subset.images > available:
        raise ValueError(f"subset_sa1b.images: {subset.images} asked for, but the index has {available}")
    if subset.order == "name":
        return np.arange(subset.images)
    return np.sort(np.random.default_rng(subset.seed).choice(available, subset.images, replace=False))


def _write_part(root: Path, subset: SubsetSa1b, decode: bool, entries: Sequence[sa1b.ImageFiles], path: Path) -> None:
    skipped = Skips()
    images = skipped.drop(_read(root, entry, subset, decode) for entry in entries)
    gc.disable()  # a JSON has no cycles, and to look for some among its dicts takes a fifth of the time
    try:
        write_file(path, RECORD, map(_to_batch, blocks(images)), {}, skipped.report)
    finally:
        gc.enable()


def _read(root: Path, entry: sa1b.ImageFiles, subset: SubsetSa1b, decode: bool) -> sa1b.MaskColumns | Skipped:
    found = sa1b.read_masks(root, entry, subset)
    if decode and isinstance(found, sa1b.MaskColumns):
        record = ImageRecord(found.image_id, found.path, found.width, found.height)
        if reason := broken(root, record):
            return Skipped(entry.name, reason)
    return found


def _to_batch(images: list[sa1b.MaskColumns]) -> pa.RecordBatch:
    """Build the batch column by column: as records of their own the hundred masks of an image would take as long as to parse its JSON."""
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
            pa.array([""] * len(images), pa.string()),
        ],
        schema=RECORD,
    )
