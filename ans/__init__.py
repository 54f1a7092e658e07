"""Fine-tune a segmenting vision-language model, choose which trained parts to keep, and measure each choice.

from ans import Segmenter, load_config
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ans.config import load as load_config
    from ans.data.videos import open_video
    from ans.model.places import Place
    from ans.model.segmenter import Segmenter
    from ans.version import __version__

__all__ = ["Place", "Segmenter", "__version__", "load_config", "open_video"]

PLACES = {
    "Place": ("ans.model.places", "Place"),
    "Segmenter": ("ans.model.segmenter", "Segmenter"),
    "load_config": ("ans.config", "load"),
    "open_video": ("ans.data.videos", "open_video"),
    "__version__": ("ans.version", "__version__"),
}


def __getattr__(name: str) -> Any:
    """Return one of the public names, imported when they are first used: PyTorch takes seconds, and light stages do without it."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
