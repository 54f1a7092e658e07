"""What an evaluation asks, and in which batches: a pure function of the data and the settings, never of the processes.

All splits make one plan. An image that several splits ask about (RefCOCO and RefCOCO+ share theirs) is read once for all of them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ans.config.scope import Scope
from ans.data.arrow import Index, read_index
from ans.data.readers import check_listing
from ans.data.records import Expression, ImageRecord, Region
from ans.facts import Facts, read_facts

Row = dict[str, Any]
"""The answer to a question, with its metrics."""


@dataclass(frozen=True)
class Question:
    """One thing asked about a region, for one result: to find it by `expression`, or to describe it where that is None."""

    result: str
    region: Region
    expression: Expression | None


@dataclass(frozen=True)
class Item:
    """One image with all that is asked about it; `facts`: what is known of the data set's objects, if anything is."""

    record: ImageRecord
    questions: tuple[Question, ...]
    facts: Facts | None = None


@dataclass(frozen=True)
class AskedSplit:
    """What one result asks of each image of an index: every expression of a region of `part`, or, for captions, the region."""

    result: str
    index: Index
    part: str
    captions: bool
    max_texts: int | None

    def questions(self, record: ImageRecord) -> tuple[Question, ...]:
        regions = [region for region in record.regions if region.split == self.part and region.expressions]
        if self.captions:
            found = [Question(self.result, region, None) for region in regions if region.area]  # nothing is nothing to describe
        else:
            found = [Question(self.result, region, expression) for region in regions for expression in region.expressions]
        return tuple(found[: self.max_texts])


@dataclass(slots=True)
class Planned:
    """One image of a plan: `places` are (result number, row of its index), `rows` the questions of the kind it has most of.

    It is small, and what is asked is read from the index only when its turn comes: a plan of many expressions takes no more
    memory than one of few.
    """

    size: tuple[int, int]
    places: list[tuple[int, int]] = field(default_factory=list)
    expressions: int = 0
    captions: int = 0

    @property
    def rows(self) -> int:
        return max(self.expressions, self.captions)


@dataclass(frozen=True)
class Plan:
    """`images` in the order of their first split. `counts[result]`: questions, images, and a checksum of what is asked."""

    asked: tuple[AskedSplit, ...]
    images: tuple[Planned, ...]
    counts: dict[str, dict[str, int | str]]
    facts: Facts | None = None

    def item(self, image: Planned) -> Item:
        """Return an image with its questions, read from the indexes."""
        records = [(self.asked[number], self.asked[number].index.record(row)) for number, row in image.places]
        questions = tuple(question for asked, record in records for question in asked.questions(record))
        return Item(records[0][1], questions, self.facts)

    def batches(self, tokens: Callable[[int, int], int], budget: int) -> list[list[Planned]]:
        """Return consecutive images, as many as fit: rows times the longest row's tokens stay within `budget`.

        `tokens(height, width)` are those of one row about such an image. An image that does not fit alone makes a batch alone:
        it is read once in any case.
        """
        batches: list[list[Planned]] = []
        rows = longest = 0
        for image in self.images:
            length = tokens(*image.size)
            if not batches or (rows + image.rows) * max(longest, length) > budget:
                batches.append([])
                rows = longest = 0
            batches[-1].append(image)
            rows, longest = rows + image.rows, max(longest, length)
        return batches


def make_plan(scope: Scope, index_folder: Path, root: Path) -> Plan:
    """Go through the indexes once, in the order of `splits` and then `captions`.

    Raises `ValueError` naming a split that no index holds, and `ListingChanged` for an index that is out of date.
    """
    indexes: dict[Path, Index] = {}
    asked = [
        _asked(index_folder, split, result, "splits", scope.max_texts_per_image, indexes)
        for split, result in zip(scope.splits, scope.split_results(), strict=True)
    ]
    asked += [
        _asked(index_folder, split, result, "captions", scope.max_texts_per_image, indexes)
        for split, result in zip(scope.captions, scope.caption_results(), strict=True)
    ]
    for index in indexes.values():
        check_listing(index, root)
    images: dict[tuple[str, int, int], Planned] = {}
    counts = {}
    for number, one in enumerate(tqdm(asked, desc="plan", disable=None)):
        digest, questions, seen = hashlib.sha256(), 0, 0
        for row, record in enumerate(one.index.records()):
            found = one.questions(record)
            if not found:
                continue
            size = (record.height, record.width)
            image = images.setdefault((record.path, *size), Planned(size))
            image.places.append((number, row))
            image.expressions += 0 if one.captions else len(found)
            image.captions += len(found) if one.captions else 0
            digest.update(_key(record, found).encode())
            questions, seen = questions + len(found), seen + 1
            if seen == scope.max_samples:
                break
        if not seen:
            known = ", ".join(sorted(one.index.splits())) or "none"
            raise ValueError(f"split {one.result}: {one.index.path} has no region of split {one.part!r}; its splits are {known}")
        counts[one.result] = {"n": questions, "images": seen, "sha256": digest.hexdigest()}
    return Plan(tuple(asked), tuple(images.values()), counts, read_facts(root))


def _asked(folder: Path, split: str, result: str, kind: str, max_texts: int | None, indexes: dict[Path, Index]) -> AskedSplit:
    source, _, part = split.rpartition("_")
    path = folder / f"{source}.arrow"
    if not path.is_file():
        raise ValueError(f"split {split}: there is no index {path}; a split is <index>_<part>, e.g. refcoco_val")
    if path not in indexes:
        indexes[path] = read_index(path)
    return AskedSplit(result, indexes[path], part, kind == "captions", max_texts)


def _key(record: ImageRecord, questions: Sequence[Question]) -> str:
    """Return all that the answers and the metrics of these questions depend on, but for the pixels."""
    asked = [
        (
            q.region.region_id,
            q.region.counts,
            q.region.ignore_counts,
            [e.sent for e in q.region.expressions] if q.expression is None else q.expression.sent,
        )
        for q in questions
    ]
    return repr((record.path, record.height, record.width, asked))
