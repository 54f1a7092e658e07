"""A page to try a model on: `python -m ans demo --model FOLDER`.

An image or a clip, several expressions, points and boxes, a region to describe, and two models side by side: the variants beside the
model, and any that `--also` names. Without a trained model, `--model weights/tiny` works on any laptop; it knows coloured shapes alone.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ans.cli import model

if TYPE_CHECKING:
    from ans.model.segmenter import Segmenter

HELP = "a page to try a model on, in the browser"


def arguments(parser: argparse.ArgumentParser) -> None:
    model.loading(parser)
    parser.add_argument("--also", type=Path, nargs="+", default=[], metavar="FOLDER", help="models to compare with")
    parser.add_argument("--data", type=Path, help="a folder of your own data (docs/your-data.md), whose images become examples")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: other machines, such as a phone, can reach it (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")


def run(chosen: argparse.Namespace) -> None:
    model.needs("demo", "gradio")
    model.check(chosen)
    import gradio as gr

    from ans.serving.demo import make_page

    folders = models(chosen.model, chosen.also)

    def load(folder: Path) -> "Segmenter":
        return model.load_model(argparse.Namespace(**vars(chosen) | {"model": folder}))

    page = make_page(folders, load, chosen.data, chosen.max_new_tokens)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none from the internet
    page.launch(server_name=chosen.host, server_port=chosen.port, theme=theme, ssr_mode=False, footer_links=["api"])


def models(first: Path, others: list[Path]) -> dict[str, Path]:
    """Return name -> folder: the model, the variants beside it if it is one, and others. Two of one name go by their paths."""
    beside = sorted(path.parent for path in first.parent.glob("*/variant.json")) if (first / "variant.json").is_file() else []
    found: dict[str, Path] = {}
    for path in dict.fromkeys([first, *beside, *others]):
        found[str(path) if path.name in found else path.name] = path
    return found
