"""How far long work is: a bar in a terminal, and lines where there is none (a batch system, CI, `> log`)."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

SECONDS = 30.0
"""Between two lines. Work that will not take longer prints none."""


class Progress:
    """Counts `total` units of work called `unit`, each of which `holds` a number of other things. Does nothing if `quiet`.

    Without a terminal there is a line as soon as the first unit shows that more than `SECONDS` lie ahead, then one every
    `SECONDS`, and one at the end. The first unit counts for no speed: it takes what starting takes.
    """

    def __init__(self, total: int, name: str, unit: str, quiet: bool = False, holds: tuple[int, str] | None = None) -> None:
        self.total, self.name, self.unit, self.quiet, self.holds = total, name, unit, quiet, holds
        self.first = self.n = self.warm = self.said = 0
        self.started = self.warm_at = time.monotonic()
        self.printed: float | None = None
        self.values: dict[str, float] = {}
        self.bar: Any = None
        if not quiet and sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=name, unit=unit, mininterval=1, dynamic_ncols=True)

    def start_at(self, done: int) -> None:
        """Begin, where `done` of the units were done earlier."""
        self.started = self.warm_at = time.monotonic()
        self.first = self.n = self.warm = self.said = done
        if self.bar is not None:
            self.bar.n = self.bar.initial = done

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the bar, or the lines, where there were any."""
        if self.bar is not None:
            self.bar.close()
        elif self.printed is not None and self.n > self.said:
            self.write(self._line())

    def update(self, n: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Count `n` units more; `values` are shown beside them, the last ones where none are given."""
        if self.n == self.first:
            self.warm, self.warm_at = self.n + n, time.monotonic()
        self.n, self.values = self.n + n, dict(values) if values else self.values
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in self.values.items()}, refresh=False)
            self.bar.update(n)
        elif not self.quiet and self._due():
            self.printed, self.said = time.monotonic(), self.n
            self.write(self._line())

    def write(self, line: str) -> None:
        """Print a line of one's own."""
        if self.bar is not None:
            self.bar.write(line)
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def _due(self) -> bool:
        if self.printed is None:
            each = (time.monotonic() - self.started) / (self.n - self.first)
            return each * (self.total - self.first) > SECONDS
        return time.monotonic() - self.printed >= SECONDS

    def _line(self) -> str:
        values = [f"{name} {value:.4g}" for name, value in self.values.items()]
        return f"{self.name}: " + ", ".join([f"{self.unit} {self.n:,} of {self.total:,}", *values, *self._speed()])

    def _speed(self) -> list[str]:
        """Return what a unit takes, and what is left."""
        if self.n == self.warm:
            return [f"started within {duration(time.monotonic() - self.started)}"]
        each = (time.monotonic() - self.warm_at) / (self.n - self.warm)
        speed = f"{each:.2f} s a {self.unit}" if each >= 0.1 else f"{1 / max(each, 1e-9):,.0f} {self.unit}s a second"
        if self.holds is not None:
            number, what = self.holds
            speed += f", {number / max(each, 1e-9):.3g} {what} a second"
        return [speed, *([f"{duration(each * (self.total - self.n))} left"] if self.n < self.total else [])]


def duration(seconds: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
