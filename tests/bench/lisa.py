"""GPU memory of LISA at full size, one sample a step: measured on a GPU, else an itemised estimate by formula.

`python -m tests.bench.gpu --preset lisa-7b` measures where there is a GPU and prints the estimate in any case. Random weights;
three choices of LoRA's targets. Peaks are `torch.cuda.max_memory_allocated` and the optimizer's pages, without the CUDA context;
GB are 10^9 bytes.
"""

import gc
from typing import Any

import torch
from torch import nn

from ans.config import Config
from ans.config.schema import TrainSettings
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.decoders.sam import VIT_B
from ans.model.four_bit import hold_in_four_bits
from ans.model.segmenter import Segmenter
from ans.objectives.batches import pad_right
from ans.tasks import referring
from ans.training import setup
from tests.bench import sizes
from tests.bench.trainer import Trainer, preset

CHOICES: dict[str, tuple[str, ...]] = {
    "none": (),
    "q,v": ("q_proj", "v_proj"),
    "q,k,v,o": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""LoRA's targets."""
WORDS = 40
"""Of the question in the sample; with the image, the system's text and the answer the sequence has about 700 tokens."""
FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a value: 4 bits, an 8-bit scale per 64 values, and a 32-bit scale per 256 of those (double quantisation)."""

VALUES: dict[str, Any] = {
    "model_type": "lisa",
    "template": "lisa",
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "image_token_index": 32000,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "sam_config": VIT_B,
}
"""LLaVA-1.5-7B (llava-hf) with SAM ViT-B (facebook)."""


def empty_model(config: ModelConfig) -> Segmenter:
    """The model without memory."""
    words = sizes.tokenizer(config.language.vocab_size, ("<image>", "</s>"))
    with torch.device("meta"):
        return Segmenter(config, words, config.family.build())


def trained_by(targets: tuple[str, ...], **changes: Any) -> Config:
    """The preset with LoRA on these layers; without any, without LoRA."""
    lora = {"enabled": bool(targets)} | ({"targets": list(targets)} if targets else {})
    return preset("lisa-7b", lora=lora, **changes)


def estimate(settings: TrainSettings, values: dict[str, Any] = VALUES) -> dict[str, float]:
    """GB by item, and their sum, for one sample a step. The image encoder of SAM and the language model work one after the other,
    so the larger of the two counts."""
    config = ModelConfig.from_dict(values)
    model = empty_model(config)
    language, tokens = config.language, config.family.grid(1, 1).tokens + WORDS + 84
    width, inner, layers = language.hidden_size, language.intermediate_size, language.num_hidden_layers
    trained = sum(p.numel() for p in setup.make_trainable(model, settings).values())
    parts = {"language": model.vlm.language_model.model, "vision": model.vlm.vision, "sam": model.sam.encoder}
    items = {}
    for name, part in parts.items():
        half = 4 if name == "sam" else 2
        small = sum(m.weight.numel() for m in part.modules() if type(m) is nn.Linear and not m.weight.requires_grad)
        small = 0 if name not in settings.four_bit else small
        whole = sum(p.numel() for p in part.parameters() if not p.requires_grad)
        embedding = language.vocab_size * width if name == "language" else 0
        items[f"{name}: weights"] = FOUR_BIT * small + half * (whole - small - embedding)
    items["embedding and output table"] = 2 * 2 * language.vocab_size * width
    items["projector"] = 2 * sum(p.numel() for p in model.vlm.multi_modal_projector.parameters())
    items["trained: values, gradient twice, AdamW"] = (4 + 8 + 8) * trained
    heads, places = config.decoder.sam.vision_config.num_attention_heads, (config.decoder.side // 4) ** 2
    sam = 2 * 2 * heads * places**2  # relative positions of a global layer, and their sum, in bf16
    kept = 2 * layers * tokens * width  # one state a layer, by checkpointing
    layer = 2 * tokens * (8 * width + 6 * inner) + 2 * width * inner  # one layer again, and one weight in bf16
    items["working memory: SAM's attention" if sam > kept + layer else "working memory: language model"] = max(sam, kept + layer)
    return {name: value / 1e9 for name, value in items.items()} | {"sum": sum(items.values()) / 1e9}


def measure(config: Config, values: dict[str, Any] = VALUES, device: str = "cuda") -> dict[str, float]:
    """Peak GB of three optimizer steps on one sample, the sequence's length, and the quickest step's seconds."""
    settings = config.train
    model = empty_model(ModelConfig.from_dict(values)).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        kind = torch.bfloat16 if name.startswith("vlm.") else torch.float32
        parameter.data = (0.02 * torch.randn(parameter.shape)).to(kind)
    for buffer in model.buffers():
        buffer.zero_()
    model.vlm.restore_buffers()
    for name, part in {"language": model.vlm.language_model.model, "vision": model.vlm.vision, "sam": model.sam.encoder}.items():
        if name in settings.four_bit:
            hold_in_four_bits(part, torch.device(device))
    model.vlm.language_model.is_loaded_in_4bit = "language" in settings.four_bit
    trainer = Trainer(model.to(device), config)
    batch = sample(model, settings.mask_points)
    seconds = []
    for number in range(4):
        if number == 1 and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds.append(sizes.seconds(lambda: trainer.step([("referring", batch)])))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    # CUDA's count knows nothing of pages, which lie there as long as there is room
    peak += sum(value.nbytes for value in states if getattr(value, "is_paged", False)) / 1e9
    return {"peak_gb": peak, "tokens": batch.ids.shape[1], "seconds": min(seconds[1:])}


def sample(model: Segmenter, mask_points: int) -> referring.Batch:
    """One image, one expression of `WORDS` words."""
    image = model.template.image_string(model.config.family.grid(1, 1).tokens)
    turn = prompts.Turn(image + model.template.questions[0].format(" ".join(["w1"] * WORDS)), prompts.SEG_ANSWERS[2])
    ids, labels, mask = pad_right([prompts.encode_conversation(model.tokenizer, model.template, [turn])])
    return referring.Batch(sizes.pixels_of(model, 1, 1), ids, labels, mask, [0], sizes.targets_of(model, 1, mask_points))


def report(measured: bool) -> dict[str, Any]:
    """Print both tables; what goes into the JSON line."""
    tables = {name: estimate(trained_by(targets).train) for name, targets in CHOICES.items()}
    result: dict[str, Any] = {"preset": "lisa-7b", "estimate_gb": tables, "measured": {}}
    print("An estimate by formula, in GB, for one sample a step; LoRA on: " + ", ".join(tables))
    for item in next(iter(tables.values())):
        print(f"{item:<42}" + "".join(f"{table[item]:>9.2f}" for table in tables.values()))
    for name, targets in CHOICES.items() if measured else ():
        result["measured"][name] = measure(trained_by(targets))
        gc.collect()
        torch.cuda.empty_cache()
        print(f"measured, LoRA on {name}: {result['measured'][name]}")
    return result
