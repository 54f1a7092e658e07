"""One model for many callers: what is asked within a few milliseconds is answered in one batch, and an image that several ask about is
read once."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ans.data.images import content
from ans.model.inference import Read, Segmentation
from ans.model.places import Place
from ans.model.segmenter import Segmenter


class Full(RuntimeError):
    """Too much is waiting already."""


@dataclass(frozen=True)
class Asked:
    """About one image, which `key` names: masks for `expressions` and at `places`, captions for `regions`."""

    image: Image.Image
    key: str
    expressions: Sequence[str] = ()
    places: Sequence[Place] = ()
    regions: Sequence[np.ndarray | Place] = ()

    def __len__(self) -> int:
        return len(self.expressions) + len(self.places) + len(self.regions)


@dataclass(frozen=True)
class Answered:
    """In the order of what was asked."""

    segmented: list[Segmentation]
    pointed: np.ndarray
    captions: list[str]


@dataclass
class WorkerCounts:
    """What the worker did so far. `images`: read by the model; `requests` less these were answered from an image read for another."""

    requests: int = 0
    questions: int = 0
    batches: int = 0
    images: int = 0
    failures: int = 0
    seconds: float = 0.0


@dataclass
class Batcher:
    """A worker thread that owns the model. `wait`: seconds in which it collects a batch of at most `questions`; `longest`: requests that
    may wait. To be entered; on leaving, what waits is still answered."""

    model: Segmenter
    wait: float = 0.01
    questions: int = 64
    longest: int = 64
    max_new_tokens: int = 128
    counts: WorkerCounts = field(default_factory=WorkerCounts)

    def __post_init__(self) -> None:
        self._waiting: deque[tuple[Asked, Future[Answered]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="batcher")

    @contextmanager
    def running(self) -> Iterator["Batcher"]:
        self._thread.start()
        try:
            yield self
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify()
            self._thread.join()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def check(self) -> None:
        """Raise `Full` where too many requests wait, or no more are answered."""
        if self._closing or len(self._waiting) >= self.longest:
            raise Full("the server is stopping" if self._closing else f"{self.longest} requests are waiting already")

    def ask(self, asked: Asked) -> "Future[Answered]":
        """Ask. Raises `Full` as `check` does."""
        future: Future[Answered] = Future()
        with self._changed:
            self.check()
            self._waiting.append((asked, future))
            self._changed.notify()
        return future

    def _work(self) -> None:
        while batch := self._next():
            start = time.monotonic()
            self._answer(batch)
            self.counts.batches += 1
            self.counts.seconds += time.monotonic() - start

    def _next(self) -> list[tuple[Asked, "Future[Answered]"]]:
        """Return the next batch; empty when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            until = time.monotonic() + self.wait
            while not self._closing and sum(len(asked) for asked, _ in self._waiting) < self.questions:
                if not self._changed.wait(until - time.monotonic()) or time.monotonic() >= until:
                    break
            batch: list[tuple[Asked, Future[Answered]]] = []
            while self._waiting and (not batch or sum(len(a) for a, _ in batch) + len(self._waiting[0][0]) <= self.questions):
                batch.append(self._waiting.popleft())
        return batch

    def _answer(self, batch: Sequence[tuple[Asked, "Future[Answered]"]]) -> None:
        """Answer a batch. Those whose caller has gone are left out. Where a batch fails, each is tried alone, so that one request
        cannot fail another."""
        live = [(asked, future) for asked, future in batch if not future.cancelled()]
        if not live:
            return
        try:
            answers = answer(self.model, [asked for asked, _ in live], self.max_new_tokens, self.counts)
        except Exception as error:  # whatever it is, its caller gets it, and the worker lives on
            if len(live) > 1:
                for one in live:
                    self._answer([one])
                return
            self.counts.failures += 1
            _settle(live[0][1], error=error)
            return
        self.counts.requests += len(live)
        self.counts.questions += sum(len(asked) for asked, _ in live)
        for (_, future), found in zip(live, answers, strict=True):
            _settle(future, found)


def answer(model: Segmenter, batch: Sequence[Asked], max_new_tokens: int, counts: WorkerCounts | None = None) -> list[Answered]:
    """Answer all of a batch at once; each image that is asked about is read once."""
    images = {asked.key: asked.image for asked in batch}
    numbers = {key: number for number, key in enumerate(images)}
    read: Read = model.read(list(images.values()))
    if counts is not None:
        counts.images += len(images)

    def joined(name: str) -> list[list[Any]]:
        rows: list[list[Any]] = [[] for _ in images]
        for asked in batch:
            rows[numbers[asked.key]] += getattr(asked, name)
        return rows

    segmented = [iter(row) for row in model.segment(read, joined("expressions"), max_new_tokens)]
    pointed = [iter(row) for row in model.segment_at(read, joined("places"))]
    regions = joined("regions")
    captions = [iter(row) for row in model.describe(read, regions, max_new_tokens)] if any(regions) else []

    def taken(rows: list[Iterator[Any]], asked: Asked, count: int) -> list[Any]:
        return [next(rows[numbers[asked.key]]) for _ in range(count)]

    return [
        Answered(
            taken(segmented, asked, len(asked.expressions)),
            np.array(taken(pointed, asked, len(asked.places)), bool).reshape(-1, asked.image.height, asked.image.width),
            taken(captions, asked, len(asked.regions)),
        )
        for asked in batch
    ]


def key_of(data: bytes) -> str:
    """Return what an image is known by, from its file."""
    return content(data)


def _settle(future: "Future[Answered]", found: Answered | None = None, error: Exception | None = None) -> None:
    try:
        future.set_exception(error) if error is not None else future.set_result(found)  # type: ignore[arg-type]
    except (CancelledError, RuntimeError):
        pass  # its caller has gone meanwhile
