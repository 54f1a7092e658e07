"""What a training leaves for the report, in terms that both know."""

from collections.abc import Mapping
from dataclasses import dataclass

EXAMPLE_SIDE = 128
"""Height and width, in pixels, at which the masks of examples are kept whatever the image's shape: they are for looking at."""


@dataclass(frozen=True)
class Panel:
    """Curves that belong in one picture of the report, curve -> label. `share`: all of them lie in [0, 1]; `log`: on a log axis."""

    title: str
    curves: Mapping[str, str]
    share: bool = False
    log: bool = False
