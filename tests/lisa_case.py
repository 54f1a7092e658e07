"""A LISA model of a few thousand random weights, as a folder: LLaVA's and SAM's own modules, saved by transformers."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast, SamConfig, SamModel

from ans.model.families.lisa import TEMPLATE

WORDS = (
    "red",
    "green",
    "circle",
    "square",
    "left",
    "the",
    "image",
    "What",
    "is",
    "in",
    "this",
    "Sure",
    "it",
    "It",
    ",",
    ".",
    "?",
)
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 42,
    "patch_size": 14,
}
SAM = {
    "vision_config": {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
        "window_size": 2,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "initializer_range": 0.02,
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 16},
    "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
}


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>", "<image>", "[SEG]"]
    found = {word for part in TEMPLATE.instruction.split() for word in [part.strip(".,")]}
    names = [*special, *sorted({*WORDS, *found, ":", "'"})]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", names.index("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def config() -> dict[str, object]:
    """config.json of a LISA folder."""
    size = 8 * (len(tokenizer()) // 8 + 2)  # more rows than tokens, as LLaVA has
    language = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "model_type": "lisa",
        "template": "lisa",
        "vision_config": VISION,
        "text_config": {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 256, **language},
        "image_token_index": tokenizer().convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "sam_config": SAM,
    }


def reference() -> tuple[LlavaForConditionalGeneration, SamModel]:
    """transformers' own two models, random but for a seed, in eval mode."""
    torch.manual_seed(3)
    values = {key: value for key, value in config().items() if key not in ("model_type", "template", "sam_config")}
    llava, sam = LlavaForConditionalGeneration(LlavaConfig(**values)), SamModel(SamConfig(**SAM))
    for model in (llava, sam):
        for parameter in model.parameters():  # the defaults leave positions at zero and tokens too small to matter
            torch.nn.init.normal_(parameter, std=0.1)
    return llava.eval(), sam.eval()


def write_model(folder: Path) -> Path:
    """The folder of `reference()` joined by a random `text_hidden_fcs`."""
    llava, sam = reference()
    llava.save_pretrained(folder / "llava")
    sam.save_pretrained(folder / "sam")
    state = {}
    for part, prefix in (("llava", ""), ("sam", "sam.")):
        state |= {prefix + name: tensor for name, tensor in load_file(folder / part / "model.safetensors").items()}
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (16, 32), "2.bias": (16,)}
    state |= {f"text_hidden_fcs.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    out = folder / "lisa"
    out.mkdir()
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config()), encoding="utf-8")
    tokenizer().save_pretrained(out)
    return out
