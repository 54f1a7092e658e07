"""Indexes of records that a test makes up."""

from collections.abc import Iterable
from pathlib import Path

from ans.data import arrow
from ans.data.records import ImageRecord


def write_records(path: Path, records: Iterable[ImageRecord], metadata: dict[str, str]) -> None:
    """Write image records as an index."""
    arrow.write_atomically(path, arrow.RECORD, arrow.to_batches(arrow.RECORD, records), metadata)
