"""A model from its folder in the official Hugging Face layout, and back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ans.formats import shards
from ans.formats.pth import DTYPES, read_pth, tensor_bytes
from ans.groups import SHARDS, Part
from ans.model.config import WRONG, ModelConfig
from ans.model.four_bit import hold_in_four_bits
from ans.model.modules import SegmenterModules
from ans.model.tokens import load_tokenizer, save_tokenizer

M = TypeVar("M", bound=SegmenterModules)


def load(
    kind: type[M], folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype, four_bit: Sequence[Part]
) -> M:
    """See `Segmenter.from_pretrained`."""
    tokenizer = load_tokenizer(folder, config.language)
    try:
        with torch.device("meta"):  # no time or memory for random weights that the file replaces
            vlm = config.family.build()
        model = kind(config, tokenizer, vlm)
    except (*WRONG, AssertionError, MemoryError) as error:
        raise ValueError(f"{folder / 'config.json'}: no model can be built of it: {error or type(error).__name__}") from error
    found = read_tensors(folder)
    names = config.decoder.hf_names(found)
    files = {names[name]: tensor for name, tensor in found.items()}
    for name, same in config.tied.items():
        if same in files:
            files.setdefault(name, files[same])
    state = {
        name: tensor.to(dtype if name.startswith("vlm.") else torch.float32)
        for name, tensor in config.keys.from_hf(files, "model").items()
    }
    model.sam.expect([name.removeprefix("sam.") for name in state if name.startswith("sam.")])
    _check(folder, model, state)
    model.load_state_dict(state, strict=True, assign=True)
    vlm.restore_buffers()
    frozen = {"language": vlm.language_model.model, "vision": vlm.vision, "sam": model.sam.encoder}
    for part in four_bit:
        hold_in_four_bits(frozen[part], device)
    language: Any = vlm.language_model  # `nn.Module` declares that only tensors and modules are set on it
    language.is_loaded_in_4bit = "language" in four_bit  # what PEFT asks
    return model.to(device).eval()


def load_original_decoder(model: SegmenterModules, path: Path) -> None:
    """See `Segmenter.load_original_decoder`."""
    if path.is_dir():
        found = read_tensors(path)
    else:
        found = load_file(path) if path.suffix == ".safetensors" else read_pth(path).state
    try:
        model.sam.load_original(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save(model: SegmenterModules, folder: Path) -> None:
    """See `Segmenter.save_pretrained`."""
    state = model.state_dict()
    for name, tensor in state.items():
        if ".lora_" in name or ".base_layer." in name:
            raise ValueError(
                f"save_pretrained: {name} is an adapter's; save the trained tensors and merge them (stage `convert`)"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"save_pretrained: {name} is held in 4 bits; load the model without four_bit")
    tensors = {name: tensor.cpu() for name, tensor in model.config.keys.to_hf(state, "model").items()}
    for name, same in model.config.tied.items():
        if torch.equal(tensors[name], tensors[same]):
            del tensors[name]
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    with shards.folder_at_once(folder) as out:
        sums: dict[str, str] = {}
        for shard in SHARDS:
            own = {n: (kinds[t.dtype], tuple(t.shape)) for n, t in tensors.items() if model.config.keys.shard_of(n) == shard}
            sums |= shards.write_group(out, shard, own, lambda name: tensor_bytes(tensors[name]))
        shards.write_index(out, sums)
        (out / "config.json").write_text(json.dumps(dict(model.config.values), indent=2) + "\n", encoding="utf-8")
        save_tokenizer(model.tokenizer, out)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder's safetensors files. Raises `FileNotFoundError` when there is none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no *.safetensors file in this model folder")
    state: dict[str, Tensor] = {}
    for path in files:
        shards.header(path)  # the library's own errors do not name the file
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                if key in state:
                    raise ValueError(f"{path}: {key} is in another file of this folder too")
                state[key] = file.get_tensor(key)
    return state


def _check(folder: Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` naming the tensors that are missing, unexpected, or of another shape than `config.json` says."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"missing {name}" for name in sorted(expected.keys() - state.keys())]
    problems += [f"unexpected {name}" for name in sorted(state.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(state[name].shape)}, config.json says {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(f"{folder}: the tensors do not fit the model: {'; '.join(problems[:5])}{more}")
