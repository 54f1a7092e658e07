"""Golden numbers, made by running the official Sa2VA code: a folder for each family.

`ANS_GOLDEN_ROOT` names another folder of such folders, `ANS_GOLDEN` another one in the place of `sa2va`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ans.model import preprocess
from ans.model.preprocess import MEAN, STD

ROOT = Path(os.environ.get("ANS_GOLDEN_ROOT", Path(__file__).parent / "golden"))
FOLDER = Path(os.environ.get("ANS_GOLDEN", ROOT / "sa2va"))


class GoldenCase:
    """Lazily read parts of one golden folder. A part that is missing raises; it is never skipped."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return _complete(load_file(self.folder / "goldens.safetensors"), self.meta, self.folder)

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.tensors[key]
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor

    def image(self, case: str) -> Image.Image:
        return Image.open(self.folder / f"{case}.png").convert("RGB")

    @property
    def cases(self) -> list[str]:
        return sorted(self.meta["text"])

    @property
    def segmented(self) -> list[str]:
        return [case for case in self.cases if f"{case}/seg_positions" in self.tensors]

    def state(self, name: str) -> dict[str, Tensor]:
        return {key: tensor.float() for key, tensor in load_file(self.folder / f"{name}.safetensors").items()}

    def config(self) -> dict[str, Any]:
        """The official config.json, with SAM2's sizes, which the official code fixes, in our section."""
        sam = self.meta["cfg"]["dims"]["sam"]
        return self.meta["cfg"]["hf_config"] | {
            "sam2_config": {
                "image_size": sam["image_size"],
                "embed_dim": sam["embed_dim"],
                "num_heads": sam["num_heads"],
                "stages": sam["stages"],
                "global_att_blocks": sam["global_att_blocks"],
                "window_pos_embed_bkg_spatial_size": sam["bkg"],
                "window_spec": sam["window_spec"],
                "d_model": sam["d"],
                "memory_dim": sam["mem"],
                "memory_feedforward": sam["mem_ff"],
                "memory_layers": sam["mem_layers"],
            }
        }

    def write_model(self, folder: Path, state: dict[str, Tensor] | None = None) -> Path:
        """A model folder as the official export leaves it: config, tokenizer, float32 weights, or else those of `state`."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config()), encoding="utf-8")
        self.write_tokenizer(folder)
        save_file(state or self.state("hf_state"), folder / "model.safetensors")
        return folder

    def write_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes((self.folder / "tokenizer.json").read_bytes())
        eos, pad, bos = self.meta["tokens_eos_pad_bos"]
        named = {number: token for token, number in self.meta["tokens"].items()}
        special = {"eos_token": named.get(eos), "pad_token": named.get(pad), "bos_token": named.get(bos)}
        values = {"tokenizer_class": "PreTrainedTokenizerFast"} | {key: text for key, text in special.items() if text}
        (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")


class GoldenSet:
    """One of the other families' folders. A part that is missing raises; it is never skipped."""

    def __init__(self, name: str) -> None:
        self.folder = ROOT / name
        self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return _complete(self.state("goldens"), self.meta, self.folder)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def state(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file; what is stored in bf16 is float32 that bf16 holds exactly."""
        tensors = load_file(self.folder / f"{name}.safetensors")
        return {key: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for key, tensor in tensors.items()}

    def image(self, case: str) -> Image.Image:
        return Image.open(self.folder / f"{case}.png").convert("RGB")

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, with the limits of an image's area that the numbers were made with, where these are not the official ones."""
        limits = zip(("min_pixels", "max_pixels"), self.meta.get("pixel_limits_used", ()), strict=False)
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8")) | dict(limits)

    def write_model(self, folder: Path, **changes: Any) -> Path:
        """A model folder as the official export leaves it. `changes`: other values in `config.json`."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config | changes), encoding="utf-8")
        (folder / "tokenizer.json").write_bytes((self.folder / "tokenizer.json").read_bytes())
        language = self.config.get("llm_config") or self.config["text_config"]
        (end,) = (token for token, number in self.meta["tokens"].items() if number == language["eos_token_id"])
        values = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
        save_file(self.state("hf_state"), folder / "model.safetensors")
        return folder


def _complete(tensors: dict[str, Tensor], meta: Mapping[str, Any], folder: Path) -> dict[str, Tensor]:
    """Tensors of which none is missing that `meta.json` lists, so that what is compared only where it is there is there."""
    if missing := sorted(set(meta.get("tensors", ())) - tensors.keys()):
        raise KeyError(f"{folder / 'goldens.safetensors'}: {', '.join(missing)}: listed in meta.json and missing")
    return tensors


def hf_pixels(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """SAM2 pixels as the official inference makes them: mean and standard deviation rounded to bf16 (`hf_pre`), and with `dtype`
    bf16, as by default, the image and every step too."""

    def rounded(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).bfloat16().to(dtype).view(3, 1, 1)

    raw = pixels * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    if dtype != torch.float32:
        raw = (255 * raw).round() / 255  # exactly the grey levels again, before they are rounded
    return (raw.to(dtype) - rounded(MEAN)) / rounded(STD)


@contextmanager
def outputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a part of the model gives meanwhile, call by call."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, out: found.append(out))
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def given_to(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a part of the model is given meanwhile, call by call."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        yield found
    finally:
        handle.remove()


def same_masks(ours: np.ndarray, golden: np.ndarray, logits: np.ndarray, near: float = 1e-3) -> bool:
    """Masks agree, except where the logit is too near zero for its sign to mean anything."""
    return not ((ours != golden) & (np.abs(logits) >= near)).any()


@contextmanager
def recorded_resize() -> Iterator[None]:
    """Within, images are resized in one call, as by the official code that made the golden numbers. It ran under Pillow 13, which chooses
    the order of the two passes by size; ours is always horizontal first, which `tests/model/test_resize.py` holds."""

    def resize(image: Image.Image, width: int, height: int, filter: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
        return image.resize((width, height), filter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "resize", resize)
        yield
