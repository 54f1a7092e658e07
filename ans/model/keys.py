"""The names that a model's tensors have in each kind of file, read in both directions. Nothing here loads a model.

Every space of names is described against `hf`, the model's folder in the Hugging Face layout:

- `model`: inside `ans.model.segmenter.Segmenter` (transformers' and sam2's own module names)
- `pth`: the official training checkpoint (the language model inside PEFT, prefix `mllm.model.`)
- `research`: full-model `.pth` of the research code (LoRA merged, the projector without prefix)
- others that only a family or a mask decoder has, such as those of the models that it is put together from

A family and a mask decoder each bring a `KeyTable`; `Keys` is what they say together. A tensor that a space has no name for raises
`KeyError`; no name is ever guessed.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ans.groups import TRAINABLE

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINTS = ("pth", "research", "hf")
"""The spaces that a user's `.pth` may be written in."""

COMPUTED = re.compile(r".*rotary_emb\.inv_freq$")
"""HF names that a checkpoint may hold and no folder has: they are computed from the config."""

SEG_ROW = ".seg_row"
"""How the name of `[SEG]`'s own row ends; before it stands the name of the table that the row belongs to."""


@dataclass(frozen=True)
class Renaming:
    """For tensors whose HF name begins with `prefix`: what `spaces` call otherwise than HF, as pairs (there, in HF). Each pair is
    unambiguous in both directions."""

    prefix: str
    spaces: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fusion:
    """A tensor below the HF prefix `prefix` that HF keeps as one and `spaces` as several: in their names, `whole` stands for the
    one and `parts` for the several. `split` makes them of it, `join` it of them."""

    prefix: str
    spaces: tuple[str, ...]
    whole: str
    parts: tuple[str, ...]
    split: Callable[["Tensor"], Sequence["Tensor"]]
    join: Callable[[list["Tensor"]], "Tensor"]


@dataclass(frozen=True)
class KeyTable:
    """The tensor names of one component.

    `spaces`: space -> {HF prefix: prefix there}; the longest prefix that fits counts, in both directions. `shards`: shard -> HF
    prefixes of its tensors, the longest again. `groups`: group -> HF names of its tensors, of a group that is a part of a shard.
    `unreached`: HF names of tensors that no loss reaches, in a part that is trained.
    """

    spaces: Mapping[str, Mapping[str, str]]
    shards: Mapping[str, tuple[str, ...]]
    renamings: tuple[Renaming, ...] = ()
    fusions: tuple[Fusion, ...] = ()
    groups: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    unreached: re.Pattern[str] | None = None


SEG_LAYERS = KeyTable(
    spaces={space: {"text_hidden_fcs.": "text_hidden_fcs."} for space in ("model", "pth", "research")},
    shards={"fcs": ("text_hidden_fcs.",)},
)
"""What every model has between its language model and its mask decoder."""

_LORA = re.compile(r"(.*)\.lora_([AB])(?:\.default)?\.weight$")
_OTHER_ADAPTERS = (
    (re.compile(r"lora_magnitude_vector"), "DoRA"),
    (re.compile(r"lora_embedding_[AB]"), "LoRA on an embedding table"),
    (re.compile(r"lora_[AB]\.(?:[^.]+\.)?bias$"), "LoRA with a bias of its own"),
    (re.compile(r"lora_[AB]\.[^.]+\.weight$"), "an adapter that is not named `default`"),
)


class Keys:
    """The tensor names of a model that is made of several components."""

    def __init__(self, *tables: KeyTable) -> None:
        self._shards = [(prefix, shard) for table in tables for shard, prefixes in table.shards.items() for prefix in prefixes]
        self._renamings = [renaming for table in tables for renaming in table.renamings]
        self._fusions = [fusion for table in tables for fusion in table.fusions]
        self._groups = [pair for table in tables for pair in table.groups.items()]
        self._unreached = [table.unreached for table in tables if table.unreached is not None]
        self._spaces: dict[str, dict[str, str]] = {"hf": {prefix: prefix for prefix, _ in self._shards}}
        for table in tables:
            for space, prefixes in table.spaces.items():
                self._spaces[space] = self._spaces.get(space, {}) | dict(prefixes)

    @property
    def spaces(self) -> tuple[str, ...]:
        return tuple(self._spaces)

    # ------------------------------------------------------------------------------------------------------------ groups

    def shard_of(self, hf_name: str) -> str:
        """Return the shard of a tensor. Raises `KeyError` for a name that belongs to no part of this model."""
        fitting = [(prefix, shard) for prefix, shard in self._shards if hf_name.startswith(prefix)]
        if not fitting:
            raise KeyError(f"unexpected tensor {hf_name}: it belongs to no part of this model")
        return max(fitting, key=lambda pair: len(pair[0]))[1]

    def reached(self, hf_name: str) -> bool:
        """Return whether a loss reaches this tensor, if its part is trained; a checkpoint may lack one that no loss reaches."""
        return not any(pattern.match(hf_name) for pattern in self._unreached)

    def trained_group(self, hf_name: str) -> str | None:
        """Return the group that a tensor can be trained in, LoRA's matrices and `[SEG]`'s own row too; None where there is none."""
        if ".lora_" in hf_name:
            return "lora"
        if hf_name.endswith(SEG_ROW):
            return "seg_row"
        if within := [group for group, pattern in self._groups if pattern.match(hf_name)]:
            return within[0]
        shard = self.shard_of(hf_name)
        return shard if shard in TRAINABLE and self.reached(hf_name) else None

    # ------------------------------------------------------------------------------------------------------------- names

    def to_hf_name(self, name: str, space: str) -> str:
        """Map one name of `space` to `hf`. Several tensors that HF keeps as one have the same name there. Raises `KeyError`."""
        pairs = ((there, hf) for hf, there in self._table(space).items())
        return self._renamed(_swap(name, pairs, space), space)

    def from_hf_names(self, hf_name: str, space: str) -> list[str]:
        """Return the inverse of `to_hf_name`: one name, or several where the space keeps the tensor in parts. Raises `KeyError`."""
        return self._there(hf_name, space)[0]

    def checkpoint_to_hf_name(self, name: str) -> str:
        """Map one name of a user's `.pth`, in whichever of `CHECKPOINTS` it is written, to `hf`. Raises `KeyError`.

        PEFT's `base_layer.` (an adapted layer's own weight) is cut; for a LoRA matrix ask for the weight that it adapts.
        """
        pairs = [(there, hf) for space in CHECKPOINTS for hf, there in self._spaces.get(space, {}).items()]
        found = _swap(name, pairs, "any known checkpoint").replace(".base_layer.", ".")
        return self._renamed(found, CHECKPOINTS[0])

    def trained_name(self, name: str) -> str:
        """Map one name of a trained tensor (a LoRA matrix too), `model` to `pth`."""
        return self.from_hf_names(self.to_hf_name(name, "model"), "pth")[0]

    def lora_pairs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return HF name of each weight that LoRA adapts -> its {"A": checkpoint's name, "B": checkpoint's name}.

        Raises `KeyError` for any other adapter's tensor: merging without it would give another model than was trained.
        """
        pairs: dict[str, dict[str, str]] = {}
        for name in names:
            if match := _LORA.match(name):
                pairs.setdefault(self.checkpoint_to_hf_name(match.group(1) + ".weight"), {})[match.group(2)] = name
            elif "lora" in name.lower():
                kind = next((kind for pattern, kind in _OTHER_ADAPTERS if pattern.search(name)), "an adapter of an unknown kind")
                raise KeyError(
                    f"tensor {name}: {kind} is not converted; merge it with PEFT (merge_and_unload) and convert the result"
                )
        return pairs

    # ------------------------------------------------------------------------------------------------------------ states

    def from_hf(self, state: Mapping[str, "Tensor"], space: str) -> dict[str, "Tensor"]:
        """Return a state dict, `hf` -> `space`. What the space keeps in parts becomes views."""
        result: dict[str, Tensor] = {}
        for hf_name, tensor in state.items():
            names, fusion = self._there(hf_name, space)
            result.update(zip(names, (tensor,) if fusion is None else fusion.split(tensor), strict=True))
        return result

    def to_hf(self, state: Mapping[str, "Tensor"], space: str) -> dict[str, "Tensor"]:
        """Return the inverse of `from_hf`. Raises `KeyError` when a part of a tensor is missing."""
        result: dict[str, Tensor] = {}
        for name in state:
            hf_name = self.to_hf_name(name, space)
            if hf_name not in result:
                names, fusion = self._there(hf_name, space)
                result[hf_name] = state[name] if fusion is None else fusion.join([state[part] for part in names])
        return result

    # ------------------------------------------------------------------------------------------------------------ inside

    def _table(self, space: str) -> dict[str, str]:
        if space not in self._spaces:
            raise KeyError(f"this model has no key space {space}; there are {', '.join(self._spaces)}")
        return self._spaces[space]

    def _there(self, hf_name: str, space: str) -> tuple[list[str], Fusion | None]:
        """Return what `space` calls a tensor, and how it is kept in parts where it is."""
        self.shard_of(hf_name)
        name = hf_name
        for renaming in self._renamings:
            if space in renaming.spaces and hf_name.startswith(renaming.prefix):
                for there, hf in renaming.pairs:
                    name = name.replace(hf, there)
        name = _swap(name, self._table(space).items(), space)
        for fusion in self._fusions:
            if space in fusion.spaces and hf_name.startswith(fusion.prefix) and fusion.whole in name:
                return [name.replace(fusion.whole, part) for part in fusion.parts], fusion
        return [name], None

    def _renamed(self, name: str, space: str) -> str:
        """Map a name with HF's prefix and otherwise as `space` has it to `hf`."""
        for fusion in self._fusions:
            if space in fusion.spaces and name.startswith(fusion.prefix):
                for part in fusion.parts:
                    name = name.replace(part, fusion.whole)
        for renaming in self._renamings:
            if space in renaming.spaces and name.startswith(renaming.prefix):
                for there, hf in renaming.pairs:
                    name = name.replace(there, hf)
        return name


def _swap(name: str, pairs: Iterable[tuple[str, str]], space: str) -> str:
    fitting = [(old, new) for old, new in pairs if name.startswith(old)]
    if not fitting:
        raise KeyError(f"tensor {name}: no such name in the layout of {space}")
    old, new = max(fitting, key=lambda pair: len(pair[0]))
    return new + name[len(old) :]
