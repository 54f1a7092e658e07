"""Counts where the host would wait for the device, on a machine that has none.

Within `Synchronisations`, what is moved to a device is marked, and so is all that is computed from it; reading a value of it in
Python, or asking for something whose size depends on values, is counted where it happens.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

ANS = Path(__file__).parent.parent / "ans"

READS = {"item", "tolist", "numpy", "cpu", "__int__", "__float__", "__bool__", "__index__", "__array__", "equal", "allclose"}
SIZES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}
INDEXES = {"__getitem__", "__setitem__", "index_put_", "index_put"}
TO_HOST = {"cpu", "numpy", "tolist", "item"}


class OnDevice(Tensor):
    """A tensor that would lie on the device. What is computed from it does so too."""


ANOTHER_BLOCK = 200
"""Operations that keep a device busy while the host looks at what was fetched before: eight decoding steps of a small model have more, and
the comparison of masks in loop 2 fewer."""


class Synchronisations(TorchFunctionMode):
    """`counts`: "file function" below `ans/` -> how often the host waited there. `ahead`: the same where it had given the device so much
    more to do after what it waits for (`Fetched`) that the device does not wait for the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.ahead: Counter[str] = Counter()
        self._given, self._fetched = 0, dict[int, int]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        there = any(isinstance(one, OnDevice) for one in tree_leaves((args, kwargs)))
        self._given += there
        if (there and _waits(name, args, kwargs)) or (not there and _sends(name, args, kwargs)):
            place, since = _place(), self._given - self._fetched.pop(id(args[0]), self._given) if args else 0
            (self.ahead if since > ANOTHER_BLOCK else self.counts)[place] += 1
        result = func(*args, **kwargs)
        if there and name == "detach" and _place() == "model/host.py __init__":
            self._fetched[id(result)] = self._given
        if name in TO_HOST:
            return tree_map(lambda one: one.as_subclass(Tensor) if isinstance(one, OnDevice) else one, result)
        if kwargs.get("device") is not None or (name == "to" and any(isinstance(one, torch.device) for one in args)):
            return tree_map(lambda one: one.as_subclass(OnDevice) if isinstance(one, Tensor) else one, result)
        return result


def _waits(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if name in READS or name in SIZES:
        return True
    if name in INDEXES:
        return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in tree_leaves(args[1]))
    if name == "where":
        return len(args) == 1
    return name == "repeat_interleave" and isinstance(args[1], Tensor) and "output_size" not in kwargs


def _sends(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether values go to the device by a copy that PyTorch ends by waiting for all of the device's work: without `non_blocking`."""
    if name in ("tensor", "as_tensor"):
        return kwargs.get("device") is not None
    device = kwargs.get("device") or next((one for one in args if isinstance(one, torch.device)), None)
    return name == "to" and device is not None and not kwargs.get("non_blocking")


def _place() -> str:
    """The innermost function of `ans/` that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if ANS in path.parents:
            return f"{path.relative_to(ANS).as_posix()} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
