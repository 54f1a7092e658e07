"""What families and mask decoders have in common: each is one file of a folder, and refused where it is incomplete."""

import inspect
import pkgutil
from abc import ABC
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, Self, get_origin


class Plug(ABC):  # noqa: B024, its children have the methods
    """An abstract class whose class attributes (`ClassVar`) are as compulsory as its abstract methods."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        declared = [
            name
            for base in cls.__mro__
            for name, kind in inspect.get_annotations(base).items()
            if kind is ClassVar or get_origin(kind) is ClassVar
        ]
        if missing := [name for name in dict.fromkeys(declared) if not hasattr(cls, name)]:
            raise TypeError(f"{cls.__module__}.{cls.__qualname__} does not say: {', '.join(missing)}")
        return super().__new__(cls)


def modules(package: ModuleType) -> dict[str, ModuleType]:
    """Return name -> module of every file in a package's folder."""
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    return {name: import_module(f"{package.__name__}.{name}") for name in names}
