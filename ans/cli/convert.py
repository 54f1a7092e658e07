"""A training checkpoint on its base, in the official Hugging Face layout, LoRA merged: `python -m ans convert SOURCE BASE OUT`.

The stage `convert` does the same with the settings of params.yaml.
"""

import argparse
from pathlib import Path
from typing import get_args

from ans.config.fields import Precision
from ans.config.schema import Convert, LoraSize, StoredGroup

HELP = "a .pth on its base, in the Hugging Face layout"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a .pth, or a run's models/checkpoint")
    parser.add_argument("base", type=Path, metavar="BASE", help="a model folder in shards, as stage `weights` leaves it")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--under", metavar="PTH", help="a .pth that is put on BASE first")
    parser.add_argument(
        "--groups", nargs="+", choices=get_args(StoredGroup), metavar="GROUP",
        help="groups that SOURCE holds, where it does not say so itself: %(choices)s",
    )  # fmt: skip
    parser.add_argument("--rank", type=int, help="rank of SOURCE's LoRA, where it does not say so itself")
    parser.add_argument("--alpha", type=float, help="its alpha")
    parser.add_argument(
        "--rslora", action=argparse.BooleanOptionalAction, default=None,
        help="whether it was trained with use_rslora, where it does not say so itself",
    )  # fmt: skip
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="type of the trained tensors on disk")
    parser.add_argument("--code", help="hub repository with the code that loads OUT; by default a release of the model's family")


def run(chosen: argparse.Namespace) -> None:
    if (chosen.rank is None) != (chosen.alpha is None):
        raise ValueError("--rank, --alpha: give both or neither")
    lora = None if chosen.rank is None else LoraSize(rank=chosen.rank, alpha=chosen.alpha, rslora=chosen.rslora)
    settings = Convert(
        source=chosen.source, under=chosen.under, groups=chosen.groups, lora=lora, precision=chosen.precision, code=chosen.code
    )
    from ans.checkpoints.convert import convert

    convert(settings, chosen.base, chosen.out)
