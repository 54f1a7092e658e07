"""GPU memory of a training by formula: what is held is counted, what a step works with is bounded from below."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from ans.config.training import TrainSettings
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from ans.training.sharding import parts_of, stack_of

FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a value: 4 bits, an 8-bit scale per 64 values, and a 32-bit scale per 256 of those (double quantisation)."""

OF_LOGIT = 4 + 4
"""Bytes of an output beside its own: a copy in float32, of which the loss is computed, and that copy's gradient."""


@dataclass(frozen=True)
class Micro:
    """What a micro-batch puts through the language model while a gradient is wanted: `tokens`, `labels` of them are learnt."""

    tokens: int
    labels: int


def empty_model(config: ModelConfig) -> Segmenter:
    """Return the model without memory: its tensors have shapes only. Its tokenizer knows no words."""
    template = config.template
    special = dict.fromkeys(["<unk>", template.image_token, template.image_last, prompts.SEG_TOKEN])
    known = Tokenizer(models.WordLevel({text: number for number, text in enumerate(special)}, unk_token="<unk>"))
    with torch.device("meta"):
        vlm = config.family.build()
    # the mask part reads values while it is built, so it has memory for that long; what it would draw is not needed
    with no_init_weights():
        return Segmenter(config, PreTrainedTokenizerFast(tokenizer_object=known, unk_token="<unk>"), vlm).to("meta")


def estimate(
    model: Segmenter, settings: TrainSettings, micro: Micro, teacher: bool, loops: bool, shares: int = 1
) -> dict[str, float]:
    """Return GB by item, and their sum, of one process that trains `model` (`setup.make_trainable`, without memory).

    `teacher`: whether there is one; `loops`: whether two gradients are combined; `shares`: over how many processes the frozen layers are
    shared out. Weights and training state are counted. The working
    memory is that of the language model or, where it is known by formula, of the mask part's image encoder, whichever is
    larger: they work one after the other. Of other encoders and of the mask decoder nothing is counted, so more is needed.
    """
    half = 2 if settings.precision == "bf16" else 4
    language = model.config.language
    width, inner, layers = language.hidden_size, language.intermediate_size, language.num_hidden_layers
    table = {id(p) for p in model.vlm.language_model.get_input_embeddings().parameters()}
    items: dict[str, float] = {}
    largest = 0
    for name, part in parts_of(model).items():
        size = 4 if name == "sam" else half
        frozen = [p for p in part.parameters() if not p.requires_grad and id(p) not in table]
        linear = [m.weight for m in part.modules() if type(m) is nn.Linear and not m.weight.requires_grad]
        small = sum(w.numel() for w in linear) if name in settings.four_bit else 0
        items[f"{name}: weights"] = FOUR_BIT * small + size * (sum(p.numel() for p in frozen) - small)
        if shares > 1:
            stack = [[p for p in layer.parameters() if not p.requires_grad] for layer in stack_of(part)[1]]
            elsewhere = sum(p.numel() - share(p, shares) for layer in stack for p in layer)
            items[f"{name}: weights"] -= size * elsewhere
            largest = max(largest, *(size * sum(p.numel() for p in layer) for layer in stack))
    frozen_of = {"embed_head": 0, "proj": 0}
    trained = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained += parameter.numel()
        elif (shard := shard_of(model, name)) in frozen_of:
            frozen_of[shard] += parameter.numel()
    if shares > 1:
        items["layers gathered: one that runs, and the next"] = 2 * largest
    items["embedding and output table"] = half * frozen_of["embed_head"]
    items["projector"] = half * frozen_of["proj"]
    gradients = "gradient of each loop" if loops else "gradient twice"
    items[f"trained: values, {gradients}, AdamW" + (", teacher" if teacher else "")] = trained * (
        4 + 8 + 8 + 4 * teacher
    )  # all in float32
    kept = half * layers * micro.tokens * width  # one state a layer, by checkpointing
    layer = half * micro.tokens * (8 * width + 6 * inner) * (1 if settings.checkpoint_activations else layers)
    logits = micro.labels * language.vocab_size * (half + OF_LOGIT)
    of_language = (kept if settings.checkpoint_activations else 0) + layer + half * width * inner + logits
    encoder = _encoder_work(model.config)
    items["working memory: SAM's attention" if encoder > of_language else "working memory: language model"] = max(
        encoder, of_language
    )
    return {name: value / 1e9 for name, value in items.items()} | {"sum": sum(items.values()) / 1e9}


def share(parameter: nn.Parameter, shares: int) -> int:
    """Return how many values of a tensor each process holds: its rows are shared out, and padded to a multiple."""
    rows = len(parameter)
    return -(-rows // shares) * (parameter.numel() // rows)


def shard_of(model: Segmenter, name: str) -> str:
    """Return the part of the model that a parameter is stored in, by its name in the model."""
    keys = model.config.keys
    return keys.shard_of(keys.to_hf_name(name.replace(".base_layer.", "."), "model"))


def _encoder_work(config: ModelConfig) -> int:
    """Return bytes of SAM's attention over one image: relative positions of a global layer, and their sum, in bf16. 0 for other
    decoders."""
    if (sam := getattr(config.decoder, "sam", None)) is None:
        return 0
    return 2 * 2 * sam.vision_config.num_attention_heads * (config.decoder.side // 4) ** 4
