"""Training checkpoints to the official Hugging Face layout, tensor by tensor, LoRA merged in float32.

`python -m ans convert SOURCE BASE OUT` converts a `.pth` by itself, for instance to make a base of it.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ans.config.schema import Convert, LoraSize
from ans.formats import shards
from ans.formats.pth import DTYPES, Checkpoint, read_pth, tensor_bytes, tensors_checksum
from ans.formats.shards import StoredTensor
from ans.groups import SHARDS, TRAINABLE
from ans.model.config import ModelConfig
from ans.model.keys import COMPUTED, SEG_ROW

OTHER_SCALES = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias")
"""Settings of PEFT under which an adapter is merged otherwise than as alpha / rank * B A."""

_SAID = re.compile(rf"\b({'|'.join(OTHER_SCALES)})['\"]?\s*[=:]\s*(?!False|None|\{{\}}|dict\(\))")
_RSLORA = "use_rslora"
_OTHER_START = re.compile(r"\binit_lora_weights['\"]?\s*[=:]\s*['\"](pissa|olora|corda|loftq)")
"""In the text of a configuration, which mmengine keeps in `meta.cfg`: the tensors of such adapters look like any others."""

LARGEST = 1e6
"""Of a weight: the square of much larger ones is no number in half precision, and of 1e20 in none."""

_PRECISIONS = {"float32": "F32", "bf16": "BF16"}


class _Overlay:
    """A checkpoint read against a base: which HF tensors it brings, and their values. Every mismatch raises `ValueError`."""

    def __init__(self, checkpoint: Checkpoint, base: dict[str, StoredTensor], model: ModelConfig) -> None:
        self.path, self.state, self.meta = checkpoint.path, checkpoint.state, checkpoint.meta
        self.base, self.model, self.keys = base, model, model.keys
        try:
            self.pairs = self.keys.lora_pairs(self.state)
            matrices = {key for pair in self.pairs.values() for key in pair.values()}
            plain = [(self.keys.checkpoint_to_hf_name(key), key) for key in self.state if key not in matrices]
        except KeyError as error:
            raise ValueError(f"{self.path}: {error.args[0]} (convert.source must be a checkpoint of this base)") from error
        self.rows = {name.removesuffix(SEG_ROW) + ".weight": key for name, key in plain if name.endswith(SEG_ROW)}
        self.plain = {name: key for name, key in plain if not COMPUTED.match(name) and not name.endswith(SEG_ROW)}
        if len(set(name for name, _ in plain)) < len(plain):
            twice = next(name for name, key in plain if self.plain.get(name, key) != key)
            raise ValueError(f"{self.path}: {twice} occurs under two names")
        for name, same in model.tied.items():
            if name in self.plain and name not in base:
                if same not in self.plain or not torch.equal(self.state[self.plain[name]], self.state[self.plain[same]]):
                    raise ValueError(f"{self.path}: {name} differs from {same}, but the base's config.json ties the two")
                del self.plain[name]
        self._check_shapes()

    def _check_shapes(self) -> None:
        for name in [*self.plain, *self.pairs, *self.rows]:
            if name not in self.base:
                raise ValueError(f"{self.path}: unexpected tensor {name}: the base has no tensor of that name")
        for name, key in self.plain.items():
            found, wanted = tuple(self.state[key].shape), self.base[name].shape
            if found != wanted:
                raise ValueError(f"{self.path}: {key} is {found}, the base has {wanted}; is it a checkpoint of another model?")
        for name, key in self.rows.items():
            found, wanted = tuple(self.state[key].shape), (1, self.base[name].shape[1])
            if found != wanted or not 0 <= self.seg_token < self.base[name].shape[0]:
                raise ValueError(f"{self.path}: {key} is {found} for row {self.seg_token}, the base needs {wanted}")
        for name, pair in self.pairs.items():
            if set(pair) != {"A", "B"}:
                raise ValueError(f"{self.path}: LoRA of {name} has only matrix {next(iter(pair))}")
            a, b = (tuple(self.state[pair[side]].shape) for side in "AB")
            if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != self.base[name].shape:
                raise ValueError(f"{self.path}: LoRA of {name} is {a} and {b}, the base has {self.base[name].shape}")

    @property
    def held(self) -> set[str]:
        """Trained groups of which it holds a tensor; `llm` where it brings the language model's own weights."""
        extra = ({"lora"} if self.pairs else set()) | ({"seg_row"} if self.rows else set())
        groups: dict[str, set[str | None]] = {}
        for name in self.plain:
            groups.setdefault(self.keys.shard_of(name), set()).add(self.keys.trained_group(name))
        # of a shard nothing but a group that is a part of it
        return {next(iter(of)) or shard if len(of) == 1 else shard for shard, of in groups.items()} | extra

    @property
    def stored_lora(self) -> dict[str, Any] | None:
        """The settings of LoRA as stored by our runs (`meta.train.lora`). Raises `ValueError` for something else under that name."""
        train = self.meta.get("train")
        if not isinstance(train, dict) or "lora" not in train:
            return None
        lora = train["lora"]
        rank: Any = lora.get("rank") if isinstance(lora, dict) else None
        alpha: Any = lora.get("alpha") if isinstance(lora, dict) else None
        good = type(rank) is int and rank > 0 and type(alpha) in (int, float) and 0 < alpha < 1e9
        if not good or not isinstance(lora.get("targets") or [], (list, tuple)):
            raise ValueError(f"{self.path}: meta.train.lora is {lora!r:.80}, expected rank, alpha and targets")
        if other := next((key for key in OTHER_SCALES if lora.get(key)), None):
            raise ValueError(
                f"{self.path}: meta.train.lora has {other}, which is not converted; merge it with PEFT (merge_and_unload)"
            )
        return lora

    @property
    def seg_token(self) -> int:
        """The row that `seg_row` is, as stored by our runs (`meta.seg_token`)."""
        number = self.meta.get("seg_token")
        if type(number) is not int:
            raise ValueError(f"{self.path}: holds seg_row but not its number (meta.seg_token); it is not a checkpoint of ANS")
        return number

    @property
    def step(self) -> int | None:
        """The step after which it was saved, where it says so."""
        step = self.meta.get("step")
        return step if type(step) is int else None

    @property
    def learnt_regions(self) -> bool:
        """Whether it says that captions of regions were trained (`meta.tasks`)."""
        tasks = self.meta.get("tasks")
        return isinstance(tasks, dict) and "captioning" in tasks

    @property
    def changed(self) -> set[str]:
        """HF names of all tensors that it changes."""
        return {*self.plain, *self.pairs, *self.rows}

    def check_groups(self, given: Iterable[str] | None) -> None:
        """Check that each group that it should hold is whole, and that nothing that it holds would be dropped."""
        stored = self.meta.get("trained") or ()
        if not isinstance(stored, (list, tuple)) or not all(isinstance(group, str) for group in stored):
            raise ValueError(f"{self.path}: meta.trained is {stored!r:.80}, expected a list of groups")
        whole = all(name in self.plain or name in self.pairs or not self.keys.reached(name) for name in self.base)
        listed = set(given or stored or (self.held if whole else ()))
        found = ", ".join(sorted(self.held))
        if not listed:
            raise ValueError(
                f"{self.path}: does not say what was trained; it holds {found}: if that is all, set convert.groups: [{found}]"
            )
        if self.held - listed:
            dropped = ", ".join(sorted(self.held - listed))
            raise ValueError(f"{self.path}: holds {dropped}, which the export would drop; add it to convert.groups")
        for group in sorted(listed):
            held = {"lora": self.pairs, "seg_row": self.rows}.get(group, self.plain)
            for name in self._wanted(group):
                if name not in held:
                    what = {"lora": "LoRA of ", "seg_row": "the row of "}.get(group, "")
                    raise ValueError(f"{self.path}: {what}{name} is missing, although group {group} was trained (convert.groups)")

    def _wanted(self, group: str) -> Iterator[str]:
        """Return HF names of the base's tensors that a checkpoint in which `group` was trained must hold, or have LoRA of."""
        if own := [name for name in self.base if self.keys.trained_group(name) == group]:
            return iter(own)
        shard = TRAINABLE[group].shard if group in TRAINABLE else group
        names = (name for name in self.base if self.keys.shard_of(name) == shard and self.keys.reached(name))
        if group != "lora":
            return names
        targets = (self.stored_lora or {}).get("targets") or self.model.family.lora_targets
        return (name for name in names if name.endswith(".weight") and name.split(".")[-2] in targets)

    def lora_scale(self, given: LoraSize | None) -> float:
        """Return alpha / rank, as stored by our runs or as given; alpha / sqrt(rank) of rslora, whose tensors look like any others."""
        if not self.pairs:
            return 0.0
        said = self._check_kind()
        stored = self.stored_lora
        size = given if stored is None else LoraSize(rank=stored["rank"], alpha=float(stored["alpha"]), rslora=False)
        if size is None:
            raise ValueError(
                f"{self.path}: holds LoRA but not its alpha; set convert.lora: {{rank: ..., alpha: ...}} as it was trained"
            )
        if stored is not None and given not in (None, size, size.model_copy(update={"rslora": None})):
            raise ValueError(f"{self.path}: was trained with {size}, convert.lora says {given}; set convert.lora: null")
        for name, pair in self.pairs.items():
            rank = self.state[pair["A"]].shape[0]
            if rank != size.rank:
                raise ValueError(f"{self.path}: LoRA of {name} has rank {rank}, convert.lora says {size.rank}")
        if size.rslora is None and said is not False:
            what = "has use_rslora in meta.cfg" if said else "does not say whether its LoRA was trained with use_rslora"
            raise ValueError(f"{self.path}: {what}; set convert.lora.rslora (false: alpha / rank, true: alpha / sqrt(rank))")
        if stored is None and None not in (said, size.rslora) and said != size.rslora:
            raise ValueError(f"{self.path}: meta.cfg says use_rslora={said}, convert.lora.rslora {size.rslora}")
        return size.alpha / (math.sqrt(size.rank) if size.rslora else size.rank)

    def _check_kind(self) -> bool | None:
        """Return whether its configuration (`meta.cfg`) has rslora; None where it says nothing of LoRA.

        Raises `ValueError` for an adapter that no multiple of B A on the base's weights is, as far as anything says so.
        """
        for name in self.pairs:
            if self.keys.shard_of(name) not in ("llm", "embed_head"):
                raise ValueError(
                    f"{self.path}: LoRA of {name}, which has a rank and an alpha of its own; merge it with PEFT (merge_and_unload)"
                )
        said = str(self.meta.get("cfg", ""))
        kinds = list(_SAID.finditer(said))
        found = next((match for match in kinds if match[1] != _RSLORA), None)
        if found is None and not self.pairs.keys() <= self.plain.keys():  # where its own base is not there, too
            found = _OTHER_START.search(said)
        if found:
            raise ValueError(
                f"{self.path}: meta.cfg has {found[0]}..., which is not converted; merge it with PEFT (merge_and_unload)"
            )
        return bool(kinds) if "lora_alpha" in said else None

    def value(self, name: str) -> Tensor | None:
        """Return its own tensor of that name, or None."""
        return self.state[self.plain[name]] if name in self.plain else None

    def with_row(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor` with its own row of `[SEG]` in it, where it has one."""
        if name in self.rows:
            tensor = tensor.clone()
            tensor[self.seg_token] = self.state[self.rows[name]][0].float()
        return tensor

    def delta(self, name: str, scale: float) -> Tensor | None:
        """Return scale * B A in float32, or None where no LoRA is."""
        if name not in self.pairs:
            return None
        a, b = (self.state[self.pairs[name][side]].float() for side in "AB")
        return (b @ a).mul_(scale)


def convert(settings: Convert, base: Path, out: Path) -> None:
    """Put a `.pth` (`settings.source`, see `read_pth`) on top of `base`, in HF layout, as the folder `out`.

    Shards that hold a trained tensor are rewritten in `settings.precision`; the others are links to the base's. One tensor is in
    memory at a time. Strict: an unexpected, missing, mis-shaped or not finite tensor raises `ValueError` with its name.
    """
    where, model = shards.entries(base), ModelConfig.from_folder(base)
    source = _Overlay(read_pth(Path(settings.source)), where, model)
    source.check_groups(settings.groups)
    scale = source.lora_scale(settings.lora)
    below = None if settings.under is None else _Overlay(read_pth(Path(settings.under)), where, model)
    if below is not None and (below.pairs or below.rows):
        raise ValueError(f"{below.path}: convert.under holds LoRA that is not merged, or a row alone; convert it by itself first")
    shard_of = model.keys.shard_of
    trained = {shard_of(name) for name in source.changed}
    moved: set[str] = set()
    if below is not None:
        moved = {shard_of(n) for n, key in below.plain.items() if not torch.equal(below.state[key].float(), _read(where[n]))}
    target = _PRECISIONS[settings.precision]

    def data(name: str) -> memoryview:
        own = source.value(name)
        if own is None and below is not None:
            own = below.value(name)
        tensor = source.with_row(name, _read(where[name]) if own is None else own.float())
        delta = source.delta(name, scale)
        if delta is not None:
            tensor = delta.add_(tensor)  # W + sBA
        extremes = tensor.aminmax() if tensor.numel() else ()  # NaN goes through; no mask of the tensor's size in memory
        if not all(torch.isfinite(value) for value in extremes):
            raise ValueError(f"{settings.source}: {name} is not finite; the run that made it diverged, use an earlier checkpoint")
        if any(abs(value) > LARGEST for value in extremes):
            raise ValueError(
                f"{settings.source}: {name} has values beyond {LARGEST:g}, which no trained model has; it is damaged or diverged"
            )
        return tensor_bytes(tensor.to(DTYPES[target]))

    with shards.folder_at_once(out) as folder:
        sums = {}
        for group in tqdm(SHARDS, desc="convert", disable=None):
            if group in trained | moved:
                tensors = {key: (target, entry.shape) for key, entry in where.items() if shard_of(key) == group}
                sums |= shards.write_group(folder, group, tensors, data)
        known = shards.read_sums(base)
        for path in shards.files(base):
            if shards.group_in_name(path) not in trained | moved:
                shards.link(path, folder / path.name)
                sums[path.name] = known[path.name]
        shards.copy_side_files(base, folder)
        _write_configs(folder, model, settings.code, source.learnt_regions)
        shards.write_index(folder, sums)
        record = {
            "shards": sorted(trained),
            "groups": sorted("lora" if group == "llm" else group for group in source.held),
            "under": sorted(moved),
            "precision": settings.precision,
            "lora_scale": scale,
            "step": source.step,
            "checkpoint_sha256": source.meta.get("sha256") or tensors_checksum(source.state),
            "parent_sha256": shards.shards_checksum(base),
        }
        (folder / "trained.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _read(entry: StoredTensor) -> Tensor:
    """Return a base tensor in float32."""
    if entry.dtype not in DTYPES:
        raise ValueError(f"{entry.path}: holds {entry.dtype}; weights are floating point")
    return torch.frombuffer(entry.read(), dtype=DTYPES[entry.dtype]).reshape(entry.shape).float()


def config_for_remote(model: ModelConfig, code: str | None = None) -> dict[str, Any]:
    """Return `config.json` as the official remote code, if there is some, and `ans` both read it.

    `auto_map` names the classes in the repository `code` (None: the family's), since a folder brings no code of its own.
    """
    values = model.family.for_remote(model.values)
    if remote := model.family.remote:
        values["architectures"] = [remote["AutoModel"].rpartition(".")[2]]
        values["auto_map"] = {name: f"{code or model.family.code}--{place}" for name, place in remote.items()}
    return values


def _write_configs(folder: Path, model: ModelConfig, code: str | None, learnt_regions: bool) -> None:
    """Write what the official remote code, if there is some, and `ans` both need to load the folder."""
    values = config_for_remote(model, code)
    if learnt_regions and not model.regions:
        values["regions"] = True
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if not (folder / "generation_config.json").exists():
        (folder / "generation_config.json").write_text('{\n  "_from_model_config": true\n}\n', encoding="utf-8")
