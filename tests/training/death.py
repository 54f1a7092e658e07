"""A process that dies at every point where something on disk changes."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch


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
            try:
                train()
                return deaths
            except Killed:
                deaths += stride
