"""A new Sa2VA base from what was released apart: InternVL2.5's folder and SAM2's `.pt`.

What neither brings is drawn from a seed and has to be trained: the rows of the five new tokens (train `embed_head` too) and
`text_hidden_fcs`. Until then such a base says no `[SEG]`.
"""

import json
from pathlib import Path

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


def assemble(internvl: Path, sam2: Path, out: Path, seed: int = 0) -> None:
    """Write a base in HF layout to `out`: all tensors of both, new token rows, and `text_hidden_fcs`.

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
        rows = _add_tokens(internvl, folder)
        for path in shards.files(internvl):
            shards.link(path, folder / path.name)
        found = shards.entries(folder)
        generator = torch.Generator().manual_seed(seed)
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


def _add_tokens(source: Path, folder: Path) -> int:
    """Write the tokenizer with the new tokens to `folder`; return its size."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config  # only a new base pays for the import

    if (source / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    else:
        tokenizer = AutoTokenizer.from_pretrained(source, config=Qwen2Config())
    tokenizer.add_tokens(list(NEW_TOKENS), special_tokens=True)
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


def _head_layers(width: int, depth: int, generator: torch.Generator) -> dict[str, Tensor]:
    """`text_hidden_fcs` (two linear layers), uniform in +-1/sqrt(width) as `nn.Linear` begins, but from `generator`."""
    shapes = {"0.weight": (width, width), "0.bias": (width,), "2.weight": (depth, width), "2.bias": (depth,)}
    return {
        f"text_hidden_fcs.{name}": (torch.rand(shape, generator=generator) * 2 - 1) / width**0.5 for name, shape in shapes.items()
    }
