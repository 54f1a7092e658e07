"""What the commands that load a model share."""

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ans.data.images import open_image
from ans.files import replacing

if TYPE_CHECKING:  # torch takes seconds to import, which `--help` and a wrong path need not wait for
    from ans.model.segmenter import Segmenter

MODEL = Path("models/variants/full")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a command takes that loads a model for one image."""
    loading(parser)
    parser.add_argument("image", type=Path, metavar="IMAGE")


def loading(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that loads a model."""
    parser.add_argument("--model", type=Path, default=MODEL, help=f"a folder in the Hugging Face layout (default: {MODEL})")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer, in tokens (default: %(default)s)")


def needs(extra: str, *packages: str) -> None:
    """Raise `ValueError` where a package of an extra is not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"{', '.join(missing)}: not installed; this command needs `pip install 'ans[{extra}]'` (in a checkout: '.[{extra}]')"
        )


def read_image(path: Path) -> Image.Image:
    """Return the upright RGB image. Raises `FileNotFoundError` or `ValueError` naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    return open_image(path.parent, path.name)


def load_model(chosen: argparse.Namespace) -> "Segmenter":
    """Return the model that the arguments name, on their device. Raises `ValueError` or `FileNotFoundError` that says what to do."""
    check(chosen)
    import torch

    from ans.model.segmenter import Segmenter

    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: PyTorch finds no GPU here; leave --device out to use the CPU")
    return Segmenter.from_pretrained(chosen.model, device)


def check(chosen: argparse.Namespace) -> None:
    """Raise `ValueError` or `FileNotFoundError` that says what to do where the arguments name no model."""
    if chosen.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: must be at least 1, is {chosen.max_new_tokens}")
    if not (chosen.model / "config.json").is_file():
        raise FileNotFoundError(
            f"{chosen.model}: no model there (a folder with config.json and *.safetensors). `make repro` makes {MODEL}; or name "
            "another with --model, e.g. --model weights/tiny, the base of the tiny preset"
        )


def save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary)
