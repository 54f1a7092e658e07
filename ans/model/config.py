"""A model folder's `config.json`: which family it is of, which mask decoder it has, and their sizes. No weights.

Each family and each decoder says by itself whether a file is its own; nothing else asks.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from ans.formats import shards
from ans.model import decoders as decoder_files
from ans.model import families as family_files
from ans.model.decoder import MaskDecoder
from ans.model.family import Family
from ans.model.keys import SEG_LAYERS, Keys
from ans.model.plugs import modules
from ans.model.prompts import Template

MOST, MOST_LAYERS = 2**31, 1000
"""Largest integers that a `config.json` may have, as a size and as a number of layers."""

WRONG = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""What transformers raises on values that no model has."""


def families() -> dict[str, type[Family]]:
    """Return name -> family, of every file in `ans/model/families`."""
    return {name: module.Family for name, module in modules(family_files).items()}


def decoders() -> dict[str, type[MaskDecoder]]:
    """Return name -> mask decoder, of every file in `ans/model/decoders`."""
    return {name: module.MaskDecoder for name, module in modules(decoder_files).items()}


@dataclass(frozen=True)
class ModelConfig:
    """A model: its vision-language part and its mask part. `values` is the whole file, so that an export writes it back."""

    family: Family
    decoder: MaskDecoder
    values: Mapping[str, Any]

    @property
    def language(self) -> PretrainedConfig:
        """The language model's own configuration."""
        return self.family.language

    @property
    def template(self) -> Template:
        return self.family.template

    @property
    def regions(self) -> bool:
        """Whether it was taught region prompts: the family's releases were, or `config.json` says it (`regions`), as that of an
        export does which captions were trained into."""
        return self.values.get("regions", self.family.regions)

    @property
    def region_tokens(self) -> bool:
        """Whether it has the tokens of a region prompt, taught or not."""
        return self.template.region_start in self.family.new_tokens

    def ask_for_regions(self, where: str, otherwise: str = "") -> None:
        """Raise `ValueError` for a model that was not taught regions, naming what asks for them and what to do; `otherwise`: what to
        do else."""
        if not self.regions:
            way = "train it on captions first, train.captioning.enabled=true (docs/real-runs.md, Regions on Qwen-VL)"
            advice = f"; {way}" if self.region_tokens else ", and has no tokens for them"
            raise ValueError(f"{where}: {self.family.name} was not trained to describe regions{advice}{otherwise}")

    @cached_property
    def keys(self) -> Keys:
        """The names of its tensors."""
        return Keys(self.family.keys, SEG_LAYERS, self.decoder.keys)

    @property
    def tied(self) -> dict[str, str]:
        """HF name of each tensor that may be in no file -> that of the tensor that it equals."""
        return self.family.tied | self.decoder.tied

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ModelConfig":
        """Read `folder/config.json`. Official files say nothing about the mask decoder; where it is not the usual one, the names of the
        tensors say so. Raises `FileNotFoundError`, or `ValueError` naming the file and the key."""
        path = Path(folder) / "config.json"
        values = read_values(path)
        if not any(kind.section in values for kind in decoders().values()):
            names = shards.entries(Path(folder)) if any(Path(folder).glob("*.safetensors")) else ()
            values |= {kind.section: {} for kind in decoders().values() if kind.marked_by(names)}
        try:
            return cls.from_dict(values)
        except KeyError as error:
            raise ValueError(f"{path}: key {error} is missing") from error
        except (*WRONG, StrictDataclassError) as error:
            raise ValueError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Read the configuration. Raises `KeyError` or `ValueError` naming a key that is missing or not supported."""
        family = _only(values, {name: kind for name, kind in families().items() if kind.owns(values)}, "reads this model")
        decoder = decoder_of(family, values)
        sections = {kind.section for kind in decoders().values()}
        section = values.get(decoder.section, decoder.released)
        return cls(
            family.read({key: value for key, value in values.items() if key not in sections}), decoder.read(section), values
        )


def read_values(path: Path) -> dict[str, Any]:
    """Return a `config.json` as it stands. Raises `FileNotFoundError`, or `ValueError` naming a file that is not one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model folder in Hugging Face layout has a config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    _refuse_absurd(values, path, "")
    return values


def _refuse_absurd(value: Any, path: Path, key: str) -> None:
    """Raise `ValueError` for sizes that no model has, before somebody asks for the memory, or builds layer after layer."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_absurd(inner, path, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            _refuse_absurd(inner, path, key)
    elif type(value) in (int, float):
        most = MOST_LAYERS if re.search(r"layers|depth|stages|blocks", key.rpartition(".")[2]) else MOST
        if type(value) is int and not -most <= value <= most:
            raise ValueError(f"{path}: {key} is {value}; no model has more than {most}")
        if not math.isfinite(value):
            raise ValueError(f"{path}: {key} is {value}")


def family_made_of(values: Mapping[str, Any]) -> type[Family]:
    """Return the family that makes a base of the released vision-language model with this `config.json`. Raises `ValueError`."""
    return _only(values, {name: kind for name, kind in families().items() if kind.made_of(values)}, "makes a base of it")


def decoder_of(family: type[Family], values: Mapping[str, Any]) -> type[MaskDecoder]:
    """Return the mask decoder that `config.json` has a section of, or else the family's own."""
    found = [kind for kind in decoders().values() if kind.section in values]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(kind.section for kind in found)}: a model has one mask decoder; remove the others")
    return found[0] if found else decoders()[family.decoder]


def _only(values: Mapping[str, Any], found: Mapping[str, type[Family]], what: str) -> type[Family]:
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ValueError(f"model_type: {' and '.join(found)} both claim {values['model_type']!r}")
    language = values.get("llm_config", values.get("text_config"))
    about = f" with a language model of {language.get('architectures') or language.get('model_type')}" if language else ""
    raise ValueError(
        f"model_type: no family {what}: {values.get('model_type')!r}{about}; known are {', '.join(families())} (ans/model/families)"
    )
