"""Training checkpoints to the official Hugging Face layout, shard by shard, LoRA merged in float32."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ans.checkpoints import shards
from ans.checkpoints.layout import SHARD_GROUPS, group_of, lora_pairs, pth_to_hf_name

SHARD_BYTES = 2 * 10**9


def shard(source: Path, out: Path) -> None:
    """Write a model folder's tensors as shards by module group. Values and types stay as they are."""
    where = {key: path for path in shards.files(source) for key in shards.keys(path)}
    with shards.folder_at_once(out) as folder:
        for group in SHARD_GROUPS:
            _write_group(folder, group, ((key, _read(where[key], key)) for key in sorted(where) if group_of(key) == group))
        shards.copy_side_files(source, folder)
        shards.write_index(folder)


def convert(checkpoint: Path, base: Path, out: Path, lora_scale: float) -> None:
    """Put a training `.pth` (`state_dict` of trained tensors, official key names) on top of `base`, in HF layout.

    Shards that hold a trained tensor are rewritten in float32; the others are links to the base's. `lora_scale` is alpha / rank.
    Strict: a tensor that the base does not have, of another shape, or half of a LoRA pair raises `ValueError` with its name.
    """
    state = read_checkpoint(checkpoint)
    pairs = lora_pairs(state)
    plain = {pth_to_hf_name(key): key for key in state if ".lora_" not in key}
    where = {key: path for path in shards.files(base) for key in shards.keys(path)}
    for name in [*plain, *pairs]:
        if name not in where:
            raise ValueError(f"{checkpoint}: {name} is no tensor of the base {base}")
    for name, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise ValueError(f"{checkpoint}: LoRA of {name} has only matrix {next(iter(pair))}")
    changed = {group_of(name) for name in [*plain, *pairs]}

    def merged(name: str) -> Tensor:
        tensor = _read(where[name], name).float()
        if name in plain:
            trained = state[plain[name]].float()
            if trained.shape != tensor.shape:
                raise ValueError(f"{checkpoint}: {plain[name]} is {tuple(trained.shape)}, the base has {tuple(tensor.shape)}")
            return trained
        if name in pairs:
            a, b = (state[pairs[name][side]].float() for side in "AB")
            if (b.shape[0], a.shape[1]) != tensor.shape:
                raise ValueError(
                    f"{checkpoint}: LoRA of {name} is for {(b.shape[0], a.shape[1])}, the base has {tuple(tensor.shape)}"
                )
            return tensor + lora_scale * (b @ a)
        return tensor

    with shards.folder_at_once(out) as folder:
        for group in SHARD_GROUPS:
            if group in changed:
                _write_group(folder, group, ((key, merged(key)) for key in sorted(where) if group_of(key) == group))
        for path in shards.files(base):
            if shards.group_in_name(path) not in changed:
                shards.link(path, folder / path.name)
        shards.copy_side_files(base, folder)
        shards.write_index(folder)
        (folder / "trained.json").write_text(json.dumps({"shards": sorted(changed)}) + "\n", encoding="utf-8")


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The `state_dict` of a training checkpoint; nothing in the file is executed. `path` may be the folder of a run.

    Raises `FileNotFoundError`, or `ValueError` naming the file when it holds no such dict.
    """
    file = path / "last.pth" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such checkpoint (convert.source)")
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{file}: holds no `state_dict` of trained tensors")
    return state


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(key)


def _write_group(folder: Path, group: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write one group's tensors in shards of at most 2 GB; one shard is in memory at a time."""
    written: list[Path] = []
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        written.append(folder / f"part-{len(written)}")
        save_file(pending, written[-1], metadata={"format": "pt"})
        pending.clear()

    size = 0
    for key, tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        if pending and size + nbytes > SHARD_BYTES:
            flush()
            size = 0
        pending[key] = tensor.contiguous()
        size += nbytes
    if pending:
        flush()
    for number, path in enumerate(written):
        shutil.move(path, folder / shards.shard_name(group, number + 1, len(written)))
