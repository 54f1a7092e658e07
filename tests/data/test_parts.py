"""Work cut into parts, done by several processes."""

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ans.data.parts import write_parts


class Closes:
    """As a video's decoder: it cannot be closed by a forked process, which does not have its threads."""

    def __init__(self) -> None:
        self.itself, self.process = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.process:
            os._exit(1)


def write(items: Sequence[Any], path: Path) -> None:
    gc.collect()
    path.write_text(str(sum(items)))


def test_what_the_parent_has_left_is_not_collected_by_its_processes(tmp_path: Path) -> None:
    gc.disable()
    try:
        Closes()
        parts = write_parts(list(range(8)), write, tmp_path, 2, "sums", "number", workers=2)
    finally:
        gc.enable()
    assert [int(path.read_text()) for path in parts] == [1, 5, 9, 13]
