"""A new base from what was released apart: InternVL2.5's folder and SAM2's `.pt` (Sa2VA), LLaVA's and SAM's weights (LISA).

What neither brings is drawn from a seed and has to be trained: the rows of the new tokens (five of Sa2VA: train `embed_head` too;
`[SEG]` of LISA: train `seg_row`) and `text_hidden_fcs`. Until then such a base says no `[SEG]`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ans.checkpoints import shards
from ans.checkpoints.layout import to_hf
from ans.checkpoints.pth import read_pth

NEW_TOKENS = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")
"""In the official order, which fixes their ids."""
TEMPLATE = "qwen_chat"
"""InternVL2.5's own conversation format with a Qwen2.5, under the official Sa2VA name."""
_EMBED, _HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_SAM2 = "grounding_encoder.sam2_model."
SAM_VIT_B = {
    "vision_config": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "global_attn_indexes": [2, 5, 8, 11],
    },
    "prompt_encoder_config": {},
    "mask_decoder_config": {},
}
"""SAM ViT-B; what is not named is as `SamConfig` has it."""


def assemble(language: Path, masks: Path, out: Path, seed: int = 0) -> None:
    """Write a base in HF layout to `out`, of the system that the folder `language` belongs to by its `model_type`.

    Raises `ValueError` naming the file for another architecture.
    """
    kind = json.loads((language / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind not in _SYSTEMS:
        raise ValueError(f"{language / 'config.json'}: model_type: {kind!r} makes no base; {', '.join(_SYSTEMS)} do")
    _SYSTEMS[kind](language, masks, out, torch.Generator().manual_seed(seed))


def assemble_sa2va(internvl: Path, sam2: Path, out: Path, generator: torch.Generator) -> None:
    """InternVL2.5 and SAM2: all tensors of both, new token rows, and `text_hidden_fcs`.

    A new row is the mean of the old rows plus noise of a tenth of their standard deviation, so that the five can be told apart.
    Raises `ValueError` naming the file for another architecture or a file that is not SAM2's.
    """
    config = json.loads((internvl / "config.json").read_text(encoding="utf-8"))
    language = config["llm_config"]
    architecture = (language.get("architectures") or ["Qwen2ForCausalLM"])[0]
    if architecture != "Qwen2ForCausalLM":
        raise ValueError(f"{internvl / 'config.json'}: llm_config.architectures: {architecture} is not supported yet, Qwen2 is")
    grounding = to_hf(read_pth(sam2).state, "sam2")
    for part in ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "memory_attention", "memory_encoder"):
        if not any(name.startswith(f"{_SAM2}{part}.") for name in grounding):
            raise ValueError(f"{sam2}: holds no tensor of {part}; it is not a SAM2 checkpoint as released")
    if f"{_SAM2}obj_ptr_tpos_proj.weight" in grounding:
        raise ValueError(f"{sam2}: is SAM2.1; Sa2VA is built on SAM2 (sam2_hiera_large.pt of 072824)")

    with shards.folder_at_once(out) as folder:
        shards.copy_side_files(internvl, folder)
        rows = _add_tokens(internvl, folder, NEW_TOKENS)
        for path in shards.files(internvl):
            shards.link(path, folder / path.name)
        found = shards.entries(folder)
        embed = _resized(_tensor(found, _EMBED), rows, generator)
        head = _resized(_tensor(found, _HEAD), rows, generator) if _HEAD in found else embed.clone()
        width = embed.shape[1]
        depth = grounding[f"{_SAM2}no_mem_embed"].shape[-1]
        new = {_EMBED: embed, _HEAD: head, **_head_layers(width, depth, generator), **grounding}
        # The tensors that are replaced lie in a file that is only linked: it is written anew without them.
        for path in {found[name].path for name in (_EMBED, _HEAD) if name in found}:
            kept = {name: _tensor(found, name) for name, entry in found.items() if entry.path == path and name not in new}
            path.unlink()
            if kept:
                save_file(kept, path, metadata={"format": "pt"})
        save_file({name: tensor.contiguous().clone() for name, tensor in new.items()}, folder / "new.safetensors")
        values = config | {
            "model_type": "sa2va_chat",
            "architectures": ["Sa2VAChatModel"],
            "template": TEMPLATE,
            "tie_word_embeddings": False,
            "llm_config": language | {"vocab_size": rows, "tie_word_embeddings": False},
        }
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def assemble_lisa(
    llava: Path, sam: Path, out: Path, generator: torch.Generator, sam_config: dict[str, Any] | None = None
) -> None:
    """LLaVA and SAM as transformers saves them (`sam`: one safetensors file, by default ViT-B's): all tensors of both, the row of
    `[SEG]`, and `text_hidden_fcs`. LLaVA's tables have rows to spare, so none is added.

    Raises `ValueError` naming the file that is not such a one.
    """
    config = json.loads((llava / "config.json").read_text(encoding="utf-8"))
    with safe_open(sam, framework="pt") as file:
        grounding = {f"sam.{name}": file.get_tensor(name) for name in file.keys()}
    for part in ("vision_encoder.", "prompt_encoder.", "mask_decoder.", "shared_image_embedding."):
        if not any(name.startswith(f"sam.{part}") for name in grounding):
            raise ValueError(f"{sam}: holds no tensor of {part[:-1]}; it is not SAM as transformers saves it")
    depth = grounding["sam.mask_decoder.iou_token.weight"].shape[1]
    with shards.folder_at_once(out) as folder:
        shards.copy_side_files(llava, folder)
        row = _add_tokens(llava, folder, ("[SEG]",)) - 1
        width = shards.entries(llava)[_EMBED].shape[1]
        for path in shards.files(llava):
            with safe_open(path, framework="pt") as file:
                # what was released years ago has one prefix more
                state = {
                    name.replace("vision_tower.vision_model.", "vision_tower."): file.get_tensor(name) for name in file.keys()
                }
            for name in (_EMBED, _HEAD):
                if name in state:
                    if row >= len(state[name]):
                        raise ValueError(f"{path}: {name} has {len(state[name])} rows, but [SEG] is number {row}")
                    state[name] = _with_row(state[name], row, generator)
            save_file(state, folder / path.name, metadata={"format": "pt"})
        save_file(_head_layers(width, depth, generator) | grounding, folder / "new.safetensors", metadata={"format": "pt"})
        values = config | {"model_type": "lisa", "template": "lisa", "sam_config": sam_config or SAM_VIT_B}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _add_tokens(source: Path, folder: Path, names: tuple[str, ...]) -> int:
    """Write the tokenizer with the new tokens to `folder`; return its size."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config  # only a new base pays for the import

    if (source / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    else:
        tokenizer = AutoTokenizer.from_pretrained(source, config=Qwen2Config())
    tokenizer.add_tokens(list(names), special_tokens=True)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def _tensor(found: dict[str, shards.Entry], name: str) -> Tensor:
    with safe_open(found[name].path, framework="pt") as file:
        return file.get_tensor(name)


def _resized(old: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """`old` (V, D) with its last rows, those of the new tokens, drawn anew: (rows, D). Rows past the tokenizer's are dropped."""
    kept = old[: rows - len(NEW_TOKENS)].float()
    noise = torch.randn(rows - len(kept), old.shape[1], generator=generator)
    return torch.cat([kept, kept.mean(0) + 0.1 * kept.std(0) * noise]).to(old.dtype)


def _with_row(old: Tensor, row: int, generator: torch.Generator) -> Tensor:
    """`old` (V, D) with row `row` drawn anew, as `_resized` draws."""
    new, kept = old.clone(), old[:row].float()
    new[row] = (kept.mean(0) + 0.1 * kept.std(0) * torch.randn(old.shape[1], generator=generator)).to(old.dtype)
    return new


def _head_layers(width: int, depth: int, generator: torch.Generator) -> dict[str, Tensor]:
    """`text_hidden_fcs` (two linear layers), uniform in +-1/sqrt(width) as `nn.Linear` begins, but from `generator`."""
    shapes = {"0.weight": (width, width), "0.bias": (width,), "2.weight": (depth, width), "2.bias": (depth,)}
    return {
        f"text_hidden_fcs.{name}": (torch.rand(shape, generator=generator) * 2 - 1) / width**0.5 for name, shape in shapes.items()
    }


_SYSTEMS = {"internvl_chat": assemble_sa2va, "llava": assemble_lisa}
"""`model_type` of the vision-language part -> what makes a base of it."""
