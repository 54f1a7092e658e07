"""The files of one result: a table with a row per question, and the metrics over them. Rows are written as they come."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ans.captions import cider
from ans.data.records import QUERY_KINDS
from ans.evaluation.metrics import Totals, iou
from ans.evaluation.plan import Row
from ans.files import replacing

ROWS_PER_GROUP = 1024

_ABOUT = [
    ("image_path", pa.string()),
    ("image_id", pa.int64()),
    ("region_id", pa.int64()),
    ("category", pa.string()),
    ("counts", pa.string()),
    ("gt_counts", pa.string()),
    ("ignore_counts", pa.string()),
    ("height", pa.int64()),
    ("width", pa.int64()),
]
_FOUND = [("iou", pa.float64()), ("intersection", pa.int64()), ("union", pa.int64()), ("has_seg", pa.bool_())]
EXPRESSIONS = pa.schema(
    [
        *_ABOUT,
        ("sent_id", pa.int64()),
        ("sent", pa.string()),
        *_FOUND,
        ("forced_intersection", pa.int64()),
        ("forced_union", pa.int64()),
        ("no_target", pa.bool_()),
        ("said_nothing", pa.bool_()),
        ("box_giou", pa.float64()),
        ("answer", pa.string()),
    ]
)
"""One row per expression. `counts` and `gt_counts`: compressed COCO RLE of the predicted and the true mask, height x width;
`ignore_counts`: of the pixels that count in no metric, "" where all do. `no_target`: the true mask has no pixel; `said_nothing`:
the predicted one has none (that counts). `category`: the class, or for ReasonSeg the kind of query, where the data has one."""

CAPTIONS = pa.schema(
    [
        *_ABOUT,
        ("caption", pa.string()),
        ("references", pa.list_(pa.string())),
        ("exact", pa.bool_()),
        ("facts_right", pa.int64()),
        ("facts", pa.int64()),
        ("wrong_object", pa.bool_()),
        *_FOUND,
    ]
)
"""One row per described region. `facts_right`, `facts`, `wrong_object`: see `ans.facts.Verdict`; null where the truth is not known.
`counts`, `iou` and the like are of the mask that the model found by its own caption."""


class _Table(ABC):
    """A Parquet file that appears under its name, whole, when the context ends; its metadata holds the protocol."""

    schema: pa.Schema

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        self._replacing = replacing(path)
        self._protocol = json.dumps(protocol)
        self._rows: list[Row] = []

    def __enter__(self) -> "_Table":
        schema = self.schema.with_metadata({"protocol": self._protocol})
        self._writer = pq.ParquetWriter(self._replacing.__enter__(), schema, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._writer.close()
        self._replacing.__exit__(kind, error, trace)

    def add(self, row: Row) -> None:
        self._count(row)
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    @abstractmethod
    def _count(self, row: Row) -> None:
        """Take a row into the summary."""

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._writer.schema))
        self._rows = []


class ExpressionTable(_Table):
    schema = EXPRESSIONS

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        super().__init__(path, protocol)
        self._totals = Totals()
        self._queries = {kind: Totals() for kind in QUERY_KINDS.values()}

    def _count(self, row: Row) -> None:
        self._totals.add(row)
        if row["category"] in self._queries:
            self._queries[row["category"]].add(row)

    def summary(self) -> dict[str, float | int]:
        """See `Totals.summary`; and, of ReasonSeg's long and short queries, `ciou_long`, `miou_long`, `n_long`, ..."""
        parts = {kind: totals.summary() for kind, totals in self._queries.items() if totals.n}
        by_query = {f"{key}_{kind}": part[key] for kind, part in parts.items() for key in ("ciou", "miou", "n")}
        return self._totals.summary() | by_query


class CaptionTable(_Table):
    schema = CAPTIONS

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        super().__init__(path, protocol)
        self._sums = dict.fromkeys(("exact", "iou", "intersection", "union", "has_seg"), 0)
        self._truth = dict.fromkeys(("captions", "right", "facts", "all_right", "wrong_object"), 0)
        self._captions: list[str] = []
        self._references: list[list[str]] = []

    def _count(self, row: Row) -> None:
        for name in self._sums:
            self._sums[name] += row[name]
        if row["facts"] is not None:
            counted = (1, row["facts_right"], row["facts"], row["facts_right"] == row["facts"], row["wrong_object"])
            for name, number in zip(self._truth, counted, strict=True):
                self._truth[name] += number
        self._captions.append(row["caption"])
        self._references.append(row["references"])

    def summary(self) -> dict[str, float | int]:
        """Return metrics of the captions, and of the way back (`cycle_`): mask -> caption -> mask' and its IoU with the mask. Where the
        truth is known (`ans/facts.py`): the share of its facts that are right, of captions in which all are, and of those that fit
        another object of the image better."""
        sums, n, truth = self._sums, len(self._captions), self._truth
        known: dict[str, float | int] = {}
        if truth["captions"]:
            known = {"facts_right": truth["right"] / truth["facts"]}
            known |= {name: truth[name] / truth["captions"] for name in ("all_right", "wrong_object")}
        return known | {
            "cider": sum(cider(self._captions, self._references)) / n,
            "exact": sums["exact"] / n,
            "cycle_ciou": iou(sums["intersection"], sums["union"]),
            "cycle_miou": sums["iou"] / n,
            "cycle_seg_rate": sums["has_seg"] / n,
            "n": n,
        }
