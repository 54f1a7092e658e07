"""Releases in small: random weights in the layouts of vision-language models as they are published, and SAM2's file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from ans.checkpoints.assemble import assemble
from ans.model.config import ModelConfig
from ans.model.loading import read_tensors
from ans.model.segmenter import Segmenter
from tests import golden_case, lisa_case
from tests.golden_case import GoldenCase, GoldenSet

TINY = Path(__file__).parents[1] / "weights" / "tiny"
LIMITS = {"min_pixels": 8 * 1024, "max_pixels": 24 * 1024}
TEXT = {
    "vocab_size": 440, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 400, "eos_token_id": 402,
}  # fmt: skip
VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48}
IDS = {"image_token_id": 412, "video_token_id": 413, "vision_start_token_id": 409, "vision_end_token_id": 410}


def drawn(model: torch.nn.Module) -> None:
    for parameter in model.parameters():  # the defaults are too small for anything to matter
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)


def save_qwen(model: PreTrainedModel, folder: Path) -> None:
    drawn(model)
    model.save_pretrained(folder)
    golden = GoldenSet("sa2va_qwen3vl")
    (folder / "tokenizer.json").write_bytes((golden.folder / "tokenizer_base.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    edit(folder / "config.json", lambda values: values.update(LIMITS))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def qwen3vl(folder: Path) -> None:
    """Tied, as the released 2B and 4B are."""
    text = TEXT | {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}}
    vision = VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    values = {"text_config": text | {"tie_word_embeddings": True}, "vision_config": vision, "tie_word_embeddings": True}
    save_qwen(Qwen3VLForConditionalGeneration(Qwen3VLConfig(**values, **IDS)), folder)


def qwen25vl(folder: Path) -> None:
    """In the files' older form: the language model's settings are not in a section, its tensors not below `language_model`."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]}
    vision = VISION | {"fullatt_block_indexes": [1]}
    values = {"text_config": TEXT | {"rope_parameters": rope}, "vision_config": vision, "tie_word_embeddings": False}
    save_qwen(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**values, **IDS)), folder)

    def flatten(values: dict[str, Any]) -> None:
        text = values.pop("text_config")
        values |= {name: text[name] for name in TEXT} | {"rope_theta": 1e6, "hidden_act": "silu", "rms_norm_eps": 1e-6}
        values |= {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}, "use_sliding_window": False}

    edit(folder / "config.json", flatten)
    state = read_tensors(folder)
    older = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in state.items()
    }
    assert any(name.startswith("visual.") for name in older) and any(name.startswith("model.layers.") for name in older)
    (folder / "model.safetensors").unlink()
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})


def internlm2(folder: Path) -> None:
    """Of the golden sizes, with the words of InternVL."""
    golden, whole = GoldenSet("sa2va_internlm2").meta, GoldenCase()
    language = golden["llm_config"] | {"vocab_size": 440, "bos_token_id": 400, "eos_token_id": 402, "pad_token_id": 400}
    vision = golden["vision_config"]
    values = whole.config() | {"llm_config": language, "vision_config": vision, "force_image_size": vision["image_size"]}
    values |= {"model_type": "internvl_chat", "template": "internlm2-chat"}
    read = ModelConfig.from_dict(values | {"model_type": "sa2va_chat", "template": "internlm2_chat"})
    vlm = read.family.build()
    drawn(vlm)
    vlm.language_model.lm_head.weight.data[400:] = 0  # it says no special token in a description, which is put into a question
    folder.mkdir(parents=True)
    state = read.keys.to_hf({f"vlm.{name}": tensor.contiguous() for name, tensor in vlm.state_dict().items()}, "model")
    save_file(state, folder / "model.safetensors")
    del values["sam2_config"]
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_bytes((golden_case.FOLDER / "tokenizer_base.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))


def internvl(folder: Path) -> None:
    """Of the golden case's sizes and weights; its configuration does not name the class of the vision transformer."""
    golden = GoldenCase()
    state = golden.state("hf_state") | golden.state("base_internvl_changed")
    folder.mkdir(parents=True)
    own = ("vision_model.", "language_model.", "mlp1.")
    save_file({name: tensor for name, tensor in state.items() if name.startswith(own)}, folder / "model.safetensors")
    values = golden.config() | {"model_type": "internvl_chat", "template": "internvl2_5"}
    language = values["llm_config"] | {"vocab_size": len(state["language_model.lm_head.weight"])}
    vision = {key: value for key, value in values["vision_config"].items() if key != "architectures"}
    del values["sam2_config"]
    (folder / "config.json").write_text(json.dumps(values | {"llm_config": language, "vision_config": vision}))
    golden.write_tokenizer(folder)
    (folder / "tokenizer.json").write_bytes((golden_case.FOLDER / "tokenizer_base.json").read_bytes())


def sam2(path: Path) -> Path:
    """The tiny base's SAM2, as it is released."""
    tiny = ModelConfig.from_folder(TINY)
    masks = {key: tensor for key, tensor in read_tensors(TINY).items() if tiny.keys.shard_of(key).startswith("sam2")}
    torch.save({"model": tiny.keys.from_hf(masks, "sam2")}, path)
    return path


def add_sam2_section(folder: Path) -> None:
    """Let a release say that SAM2 is of the tiny base's size."""
    tiny = ModelConfig.from_folder(TINY)
    edit(folder / "config.json", lambda values: values.update({tiny.decoder.section: tiny.values[tiny.decoder.section]}))


def llava_words() -> PreTrainedTokenizerFast:
    words = lisa_case.tokenizer()
    words.add_tokens(["<p>", "</p>", "<vp>", "</vp>"], special_tokens=True)
    return words


def llava_config() -> dict[str, Any]:
    """`config.json` as the official tool leaves it, and the tiny base's SAM2, whose size official files leave out."""
    values: dict[str, Any] = {key: value for key, value in lisa_case.config().items() if key != "sam_config"}
    text = values["text_config"] | {"vocab_size": len(llava_words()), "tie_word_embeddings": False}
    tiny = ModelConfig.from_folder(TINY)
    return values | {
        "model_type": "sa2va_chat", "template": "vicuna", "architectures": ["Sa2VAChatModelLlava"], "text_config": text,
        "tie_word_embeddings": False, tiny.decoder.section: tiny.values[tiny.decoder.section],
    }  # fmt: skip


def llava_reference() -> LlavaForConditionalGeneration:
    """transformers' own model, random but for a seed, in eval mode."""
    torch.manual_seed(3)
    own = ("model_type", "template", "architectures", "sam2_config")
    made = LlavaForConditionalGeneration(LlavaConfig(**{key: of for key, of in llava_config().items() if key not in own}))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return made.eval()


def llava(folder: Path) -> Path:
    """Sa2VA on LLaVA-1.5: transformers' tensors under the official names, the tiny base's SAM2, a random `text_hidden_fcs`."""
    llava_reference().save_pretrained(folder / "llava")
    official = {  # how transformers names them in files, the longest first
        "vision_tower.vision_model.": "model.model.vision_tower.vision_model.",
        "vision_tower.": "model.model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.model.multi_modal_projector.",
        "language_model.model.": "model.model.language_model.",
        "language_model.lm_head.": "model.lm_head.",
    }
    state = {name: tensor for name, tensor in read_tensors(TINY).items() if name.startswith("grounding_encoder.")}
    for name, tensor in read_tensors(folder / "llava").items():
        there = next(prefix for prefix in official if name.startswith(prefix))
        state[official[there] + name.removeprefix(there)] = tensor
    width = ModelConfig.from_folder(TINY).decoder.width
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (width, 32), "2.bias": (width,)}
    state |= {f"text_hidden_fcs.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    out = folder / "model"
    out.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(llava_config()), encoding="utf-8")
    llava_words().save_pretrained(out)
    return out


TWINS = ("sa2va_internvl3", "sa2va_internlm2", "sa2va_qwen25vl", "sa2va_qwen3vl", "sa2va_llava")
"""A model of each family beside that of the tiny base."""


def silence(model: Segmenter) -> None:
    """Let a model with random weights say text and its end alone: other tokens would be cut from its captions."""
    heard = {*model.text_tokens.tolist(), model.tokenizer.eos_token_id}
    head = model.vlm.language_model.lm_head.weight
    head.data[[number for number in range(len(head)) if number not in heard]] = 0


def twin(name: str, folder: Path, **changes: Any) -> Path:
    """One of `TWINS`, with random weights; a model folder below `folder`. `changes`: other values in `config.json`."""
    if name == "sa2va_llava":  # of which there are no golden numbers
        made = llava(folder)
        edit(made / "config.json", lambda values: values.update(changes))
        return made
    if name != "sa2va_internlm2":  # of which there are golden numbers for parts alone
        return GoldenSet(name).write_model(folder / "model", **changes)
    torch.manual_seed(3)
    internlm2(folder / "released")
    add_sam2_section(folder / "released")
    assemble(folder / "released", sam2(folder / "sam2.pt"), folder / "base")
    edit(folder / "base" / "config.json", lambda values: values.update(changes))
    return folder / "base"
