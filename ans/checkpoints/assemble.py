"""A new base from what was released apart: a vision-language model's folder, and a mask decoder's weights.

What neither brings is drawn from a seed and has to be trained: the rows of the new tokens (five of Sa2VA: train `embed_head` too;
`[SEG]` of LISA: train `seg_row`) and `text_hidden_fcs`. An untrained base answers without `[SEG]`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ans.formats import shards
from ans.formats.pth import read_pth
from ans.model.config import ModelConfig, decoder_of, decoders, family_made_of, read_values
from ans.model.decoder import MaskDecoder
from ans.model.family import Family
from ans.model.keys import Keys
from ans.model.tokens import load_tokenizer, save_tokenizer


def assemble(language: Path, masks: Path, out: Path, seed: int = 0) -> None:
    """Write a base in HF layout to `out`: all tensors of the folder `language` and of the file `masks` as they were released, rows
    for the new tokens, and `text_hidden_fcs`. The family that makes a base of `language` says how.

    A new row is the mean of the old rows plus noise of a tenth of their standard deviation, so that new tokens can be told apart.
    Raises `ValueError` naming the file for another architecture, or one that is not the mask decoder's.
    """
    released = read_values(language / "config.json")
    try:
        family = family_made_of(released)
        decoder = decoder_of(family, released)
        before = ModelConfig.from_dict(_values(family, decoder, released))
    except ValueError as error:
        raise ValueError(f"{language / 'config.json'}: {error}") from error
    network, section = _network(masks, decoder)
    tokenizer = load_tokenizer(language, before.language)
    tokenizer.add_tokens(list(family.new_tokens), special_tokens=True)
    values = _values(family, decoder, released, len(tokenizer), section)
    config = ModelConfig.from_dict(values)
    generator = torch.Generator().manual_seed(seed)
    new = _tables(language, config, tokenizer, generator)
    new |= _seg_layers(config.language.hidden_size, config.decoder.width, generator) | network

    with shards.folder_at_once(out) as folder:
        shards.copy_side_files(language, folder)
        save_tokenizer(tokenizer, folder)
        for path in shards.files(language):
            names = {name: family.released_name(name) for name in shards.header(path)}
            kept = {name: hf for name, hf in names.items() if hf not in new}
            if all(kept.get(name) == name for name in names):
                shards.link(path, folder / path.name)
            elif kept:
                save_file({hf: _tensor(path, name) for name, hf in kept.items()}, folder / path.name, {"format": "pt"})
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in new.items()}, folder / "new.safetensors", {"format": "pt"}
        )
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _values(
    family: type[Family],
    decoder: type[MaskDecoder],
    released: Mapping[str, Any],
    tokens: int | None = None,
    section: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the base's `config.json`; `section`: what the mask decoder's weights add to its section. The official size of SAM2, of which
    official files say nothing, has no section."""
    values = family.assembled(released, tokens)
    said = {**(values.get(decoder.section) or decoder.released), **section}
    return {**values, decoder.section: said} if said else values


def _network(path: Path, decoder: type[MaskDecoder]) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return the mask decoder's released tensors, under their HF names, and what its section has to say for them."""
    state = load_file(path) if path.suffix == ".safetensors" else read_pth(path).state
    name = next(name for name, kind in decoders().items() if kind is decoder)
    network = Keys(decoder.keys).to_hf(state, name)
    try:
        return network, decoder.check_released(network)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tables(
    language: Path, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return token embeddings and output layer with rows for the new tokens, drawn from `generator`."""
    family = config.family
    rows, added = config.language.vocab_size, len(family.new_tokens)
    first, end = len(tokenizer) - added, len(tokenizer)
    where = {family.released_name(name): (entry.path, name) for name, entry in shards.entries(language).items()}
    new = {}
    for table in family.tables:
        if table not in where:
            continue
        old = _tensor(*where[table])
        if not first <= len(old) or rows < end:
            raise ValueError(f"{where[table][0]}: {table} has {len(old)} rows, too few for a tokenizer of {end} tokens")
        kept = old[:first].float()
        noise = torch.randn(added, old.shape[1], generator=generator)
        drawn = kept.mean(0) + 0.1 * kept.std(0) * noise
        new[table] = torch.cat([old[:first], drawn.to(old.dtype), old[end:rows]])
    embedding, output = family.tables
    return {output: new[embedding].clone()} | new  # what was released tied is not any more


def _seg_layers(width: int, depth: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return `text_hidden_fcs` (two linear layers), uniform in +-1/sqrt(width) as `nn.Linear` begins, but from `generator`."""
    shapes = {"0.weight": (width, width), "0.bias": (width,), "2.weight": (depth, width), "2.bias": (depth,)}
    return {
        f"text_hidden_fcs.{name}": (torch.rand(shape, generator=generator) * 2 - 1) / width**0.5 for name, shape in shapes.items()
    }


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
