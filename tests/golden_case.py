"""The golden case: numbers made by running the official Sa2VA code. `ANS_GOLDEN` names another case's folder."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(os.environ.get("ANS_GOLDEN", Path(__file__).parent / "golden" / "sa2va"))


class GoldenCase:
    """Lazily read parts of one golden folder. A part that is missing raises; it is never skipped."""

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((FOLDER / "meta.json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(FOLDER / "goldens.safetensors")

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.tensors[key]
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor

    def image(self, case: str) -> Image.Image:
        return Image.open(FOLDER / f"{case}.png").convert("RGB")

    @property
    def cases(self) -> list[str]:
        return sorted(self.meta["text"])

    @property
    def segmented(self) -> list[str]:
        return [case for case in self.cases if f"{case}/seg_positions" in self.tensors]

    def state(self, name: str) -> dict[str, Tensor]:
        return {key: tensor.float() for key, tensor in load_file(FOLDER / f"{name}.safetensors").items()}

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

    def write_model(self, folder: Path) -> Path:
        """A model folder as the official export leaves it: config, tokenizer, float32 weights."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config()), encoding="utf-8")
        self.write_tokenizer(folder)
        save_file(self.state("hf_state"), folder / "model.safetensors")
        return folder

    def write_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
        eos, pad, bos = self.meta["tokens_eos_pad_bos"]
        named = {number: token for token, number in self.meta["tokens"].items()}
        special = {"eos_token": named.get(eos), "pad_token": named.get(pad), "bos_token": named.get(bos)}
        values = {"tokenizer_class": "PreTrainedTokenizerFast"} | {key: text for key, text in special.items() if text}
        (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")


def same_masks(ours: np.ndarray, golden: np.ndarray, logits: np.ndarray, near: float = 1e-3) -> bool:
    """Masks agree, except where the logit is too near zero for its sign to mean anything."""
    return not ((ours != golden) & (np.abs(logits) >= near)).any()
