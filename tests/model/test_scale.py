"""The released sizes: every parameter of Sa2VA-4B counted and named without a weight, and steps of Sa2VA-1B at full size."""

from pathlib import Path

import pytest
import torch

from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Segmenter
from tests.bench import sizes

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
KEYS = sizes.official("sa2va-4b").keys
SAM2 = "grounding_encoder.sam2_model."


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + bias * outputs


def norm(width: int) -> int:
    return 2 * width


def vision() -> int:
    """InternViT-300M: 24 layers of width 1024, patches of 14 px in 448 px."""
    width, inner = 1024, 4096
    attention = linear(width, 3 * width) + linear(width, width)
    mlp = linear(width, inner) + linear(inner, width)
    scales = 2 * width
    layer = attention + mlp + 2 * norm(width) + scales
    patches, positions = linear(3 * 14 * 14, width), (448 // 14) ** 2 + 1
    return patches + width + positions * width + 24 * layer


def language(width: int, inner: int, narrow: int, layers: int) -> int:
    """Qwen2.5 with a table of its own for the output: bias on q, k, v alone, norms without bias."""
    attention = linear(width, width) + 2 * linear(width, narrow) + linear(width, width, bias=False)
    layer = attention + 3 * linear(width, inner, bias=False) + 2 * width
    return 2 * 151679 * width + layers * layer + width


def projector(width: int) -> int:
    """Four patches become one image token: 4 * 1024 wide."""
    return norm(4096) + linear(4096, width) + linear(width, width)


def hiera() -> int:
    """Hiera-L: stages of (2, 6, 36, 4) blocks, 144 wide at first; a stage's first block doubles the width."""
    total = linear(3 * 7 * 7, 144) + 144 * 7 * 7 + 144 * 8 * 8
    width = 144
    for stage, blocks in enumerate((2, 6, 36, 4)):
        for block in range(blocks):
            out = 2 * width if stage and not block else width
            total += norm(width) + linear(width, 3 * out) + linear(out, out)
            total += norm(out) + linear(out, 4 * out) + linear(4 * out, out)
            total += linear(width, out) if out != width else 0
            width = out
    neck = sum(linear(channels, 256) for channels in (144, 288, 576, 1152))
    return total + neck


def mask_decoder() -> int:
    width, half, inner = 256, 128, 2048
    full = 4 * linear(width, width)
    narrow = 3 * linear(width, half) + linear(half, width)
    layer = full + 2 * narrow + linear(width, inner) + linear(inner, width) + 4 * norm(width)
    transformer = 2 * layer + narrow + norm(width)
    tokens = (1 + 4 + 1) * width  # IoU, masks, object score
    upscaling = 4 * width * 64 + 64 + norm(64) + 4 * 64 * 32 + 32  # transposed convolutions of 2 x 2
    high_resolution = linear(width, 32) + linear(width, 64)
    hypernetworks = 4 * (2 * linear(width, width) + linear(width, 32))
    heads = 2 * linear(width, width) + linear(width, 4) + 2 * linear(width, width) + linear(width, 1)
    return transformer + tokens + upscaling + high_resolution + hypernetworks + heads


def prompt_encoder() -> int:
    points = (4 + 1) * 256  # two kinds of point, two corners of a box, and the padding point
    masks = 4 * 4 + 4 + norm(4) + 4 * 4 * 16 + 16 + norm(16) + linear(16, 256)
    return points + masks + 256  # "no mask"


def memory() -> int:
    """What only videos use, but every released file holds: attention to the memory, its encoder, object pointers."""
    width, narrow, inner = 256, 64, 2048
    own = 4 * linear(width, width)
    cross = 2 * linear(width, width) + 2 * linear(narrow, width)
    layer = own + cross + linear(width, inner) + linear(inner, width) + 3 * norm(width)
    channels = (1, 4, 16, 64, 256)
    downsampler = sum(9 * a * b + b + norm(b) for a, b in zip(channels, channels[1:], strict=False)) + linear(width, width)
    fuser = 2 * (width + 49 * width + width + norm(width) + linear(width, 4 * width) + linear(4 * width, width))
    encoder = downsampler + linear(width, width) + fuser + linear(width, narrow)
    pointers = 3 * linear(width, width) + 4 * 4 + 1  # and the convolution that shrinks a mask for them
    single = 7 * narrow + 3 * width  # positions in time; no memory, its position, no object
    return 4 * layer + norm(width) + encoder + pointers + single


EXPECTED = {
    "vision": vision(),
    "embed_head": 2 * 151679 * 2048,
    "llm": language(2048, 11008, 256, 36) - 2 * 151679 * 2048,
    "proj": projector(2048),
    "fcs": linear(2048, 2048) + linear(2048, 256),
    "sam2_decoder": mask_decoder(),
    "sam2_encoder": hiera() + prompt_encoder() + memory(),
}


@pytest.fixture(scope="module")
def sa2va_4b() -> Segmenter:
    """All of Sa2VA-4B on the meta device. (SAM2 computes numbers while it is built, so it is built first and then emptied.)"""
    config = sizes.official("sa2va-4b")
    with torch.device("meta"):
        vlm = config.family.build()
    return Segmenter(config, sizes.tokenizer(config.language.vocab_size), vlm).to("meta")


def test_every_parameter_of_4b_is_counted(sa2va_4b: Segmenter) -> None:
    found = dict.fromkeys(EXPECTED, 0)
    for name, parameter in sa2va_4b.named_parameters():
        found[KEYS.shard_of(KEYS.to_hf_name(name, "model"))] += parameter.numel()
    assert found == EXPECTED
    assert all(parameter.is_meta for parameter in sa2va_4b.parameters())
    # As published, in millions: SAM2-L (facebookresearch/sam2), InternViT-300M, InternVL2.5-4B without the five new rows.
    assert round((EXPECTED["sam2_decoder"] + EXPECTED["sam2_encoder"]) / 1e6, 1) == 224.4
    assert round(EXPECTED["vision"] / 1e6) == 304
    internvl = sum(EXPECTED[group] for group in ("vision", "embed_head", "llm", "proj")) - 2 * 5 * 2048
    assert round(internvl / 1e9, 2) == 3.71


def test_the_parts_of_1b_are_as_published() -> None:
    internvl = vision() + language(896, 4864, 128, 24) + projector(896) - 2 * 5 * 896
    assert round(internvl / 1e6) == 938  # InternVL2.5-1B
    with torch.device("meta"):
        vlm = sizes.official("sa2va-1b").family.build()
    assert sum(p.numel() for p in vlm.parameters()) == internvl + 2 * 5 * 896


OFFICIAL = {
    "vision_model.embeddings.class_embedding": (1, 1, 1024),
    "vision_model.embeddings.position_embedding": (1, 1025, 1024),
    "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "vision_model.encoder.layers.23.attn.qkv.weight": (3072, 1024),
    "vision_model.encoder.layers.23.attn.qkv.bias": (3072,),
    "vision_model.encoder.layers.0.attn.proj.weight": (1024, 1024),
    "vision_model.encoder.layers.0.ls2": (1024,),
    "vision_model.encoder.layers.7.mlp.fc1.weight": (4096, 1024),
    "vision_model.encoder.layers.7.norm2.bias": (1024,),
    "language_model.model.embed_tokens.weight": (151679, 2048),
    "language_model.model.layers.35.self_attn.q_proj.bias": (2048,),
    "language_model.model.layers.35.self_attn.k_proj.weight": (256, 2048),
    "language_model.model.layers.0.mlp.down_proj.weight": (2048, 11008),
    "language_model.model.layers.0.post_attention_layernorm.weight": (2048,),
    "language_model.model.norm.weight": (2048,),
    "language_model.lm_head.weight": (151679, 2048),
    "mlp1.0.weight": (4096,),
    "mlp1.1.weight": (2048, 4096),
    "mlp1.3.weight": (2048, 2048),
    "text_hidden_fcs.0.weight": (2048, 2048),
    "text_hidden_fcs.2.weight": (256, 2048),
    SAM2 + "image_encoder.trunk.blocks.44.attn.qkv.weight": (3456, 576),
    SAM2 + "image_encoder.trunk.blocks.47.mlp.layers.0.weight": (4608, 1152),
    SAM2 + "image_encoder.trunk.pos_embed_window": (1, 144, 8, 8),
    SAM2 + "image_encoder.neck.convs.0.conv.weight": (256, 1152, 1, 1),
    SAM2 + "sam_mask_decoder.conv_s0.weight": (32, 256, 1, 1),
    SAM2 + "sam_mask_decoder.output_hypernetworks_mlps.3.layers.2.weight": (32, 256),
    SAM2 + "sam_mask_decoder.iou_prediction_head.layers.2.weight": (4, 256),
    SAM2 + "sam_mask_decoder.pred_obj_score_head.layers.2.weight": (1, 256),
    SAM2 + "sam_prompt_encoder.not_a_point_embed.weight": (1, 256),
    SAM2 + "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 128),
    SAM2 + "memory_encoder.fuser.layers.1.g_weight": (256,),
    SAM2 + "memory_attention.layers.3.cross_attn_image.k_proj.weight": (256, 64),
    SAM2 + "obj_ptr_proj.layers.2.weight": (256, 256),
    SAM2 + "maskmem_tpos_enc": (7, 1, 1, 64),
    SAM2 + "no_mem_embed": (1, 1, 256),
}
"""Names and shapes of the released Sa2VA-4B, one or more of every kind."""


def test_every_official_key_of_4b_is_mapped(sa2va_4b: Segmenter) -> None:
    ours = sa2va_4b.state_dict()
    hf = KEYS.to_hf(ours, "model")
    assert {name: tuple(hf[name].shape) for name in OFFICIAL} == OFFICIAL
    layer, block = 2 + 2 + 2 + 4 + 2 + 2, 2 + 2 + 4 + 4  # tensors: ViT layer; LLM layer
    expected = {"vision": 4 + 24 * layer, "embed_head": 2, "llm": 36 * block + 1, "proj": 6, "fcs": 4}
    assert {group: sum(KEYS.shard_of(name) == group for name in hf) for group in expected} == expected
    back = KEYS.from_hf(hf, "model")
    assert {name: tensor.shape for name, tensor in back.items()} == {name: tensor.shape for name, tensor in ours.items()}
    for name in ours:
        assert name in KEYS.from_hf_names(KEYS.to_hf_name(name, "model"), "model")


def test_every_trained_tensor_of_4b_has_an_official_checkpoint_name(sa2va_4b: Segmenter) -> None:
    """Runs last: it puts LoRA on the fixture's model."""
    add_lora(sa2va_4b, 128, 256, 0.05, generator_seed=0)
    trained = select_trained(sa2va_4b, ("lora", "proj", "fcs", "sam2_decoder"))
    names = {KEYS.trained_name(name): tuple(p.shape) for name, p in trained.items()}
    assert len(names) == len(trained)
    in_language = "mllm.model.language_model.base_model.model.model.layers."
    assert sum(name.startswith(in_language) for name in names) == 36 * 7 * 2
    assert names[in_language + "35.mlp.down_proj.lora_A.default.weight"] == (128, 11008)
    assert names["mllm.model.mlp1.1.weight"] == (2048, 4096)
    lora = 36 * 128 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008))
    heads = 2 * (2 * linear(256, 256)) + linear(256, 4) + linear(256, 1)
    expected = lora + EXPECTED["proj"] + EXPECTED["fcs"] + EXPECTED["sam2_decoder"] - heads
    assert sum(p.numel() for p in trained.values()) == expected
