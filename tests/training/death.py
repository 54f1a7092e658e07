"""A process that dies at every point where something on disk changes."""

import gc
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch

from ans.training.state import WRITER


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


def die_and_go_on(train: Callable[[], None], monkeypatch: pytest.MonkeyPatch, stride: int = 1) -> int:
    """Start `train` again and again until it ends by itself, each time dying `stride` renames or writes of tensors later than the
    time before; how often it died, times `stride`. Between two of these points nothing on disk changes."""
    deaths = 0
    while True:
        calls = 0

        def dying(real: Callable[..., Any], deaths: int = deaths) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == deaths + 1:
                    raise Killed
                return real(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(torch, "save", dying(torch.save))
            with suppress(Killed):
                train()
                return deaths
        # one that is killed takes its threads along, and gives back its lock, which an exception's frames hold here
        for thread in threading.enumerate():
            if thread.name == WRITER:
                thread.join()
        gc.collect()
        deaths += stride
