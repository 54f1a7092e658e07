"""The sizes of released models, counted on the meta device, against sums by hand; and all their tensors have official names."""

from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from ans.model.config import ModelConfig
from ans.planning.released import RELEASED

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + bias * outputs


def decoder(
    vocabulary: int, width: int, inner: int, layers: int, heads: int, narrow: int, head: int, bias: bool, norms: bool
) -> int:
    """Two tables, layers of attention with grouped keys and SwiGLU, RMS norms; `norms`: of queries and keys too."""
    attention = (
        linear(width, heads * head, bias) + 2 * linear(width, narrow * head, bias) + heads * head * width + norms * 2 * head
    )
    return 2 * vocabulary * width + layers * (attention + 3 * width * inner + 2 * width) + width


def internvit_300m() -> int:
    return 304_012_288  # as published with the releases


def internvit_6b() -> int:
    """45 layers of width 3200; RMS norms, also of all queries and keys, and no bias on q, k and v."""
    width, inner = 3200, 12800
    attention = 3 * width * width + linear(width, width) + 2 * width
    layer = attention + linear(width, inner) + linear(inner, width) + 2 * width + 2 * width
    return linear(3 * 14 * 14, width) + width + (32 * 32 + 1) * width + 45 * layer


def projector(width: int, vision: int = 1024) -> int:
    return 2 * 4 * vision + linear(4 * vision, width) + linear(width, width)


def qwen25vl_tower(out: int) -> int:
    """32 blocks of width 1280 with SwiGLU and RMS norms, patches of 2 x 14 x 14, and the merger of four patches."""
    width, inner = 1280, 3420
    block = linear(width, 3 * width) + linear(width, width) + 2 * linear(width, inner) + linear(inner, width) + 2 * width
    return 3 * 2 * 14 * 14 * width + 32 * block + width + linear(4 * width, 4 * width) + linear(4 * width, out)


def qwen3vl_tower(width: int, inner: int, depth: int, out: int) -> int:
    """Patches of 2 x 16 x 16, a table of 48 x 48 positions, a merger, and three more for the deep features."""
    block = linear(width, 3 * width) + linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width
    merged = linear(4 * width, 4 * width) + linear(4 * width, out)
    return linear(3 * 2 * 16 * 16, width) + 48 * 48 * width + depth * block + 2 * width + merged + 3 * (8 * width + merged)


def clip_large() -> int:
    """24 blocks of width 1024 on 24 x 24 patches and a class token."""
    width, inner = 1024, 4096
    block = 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width
    return 3 * 14 * 14 * width + width + (24 * 24 + 1) * width + 24 * block + 4 * width


def llama(*sizes: int) -> int:
    return decoder(*sizes, sizes[1] // sizes[4], bias=False, norms=False)


def qwen2(*sizes: int) -> int:
    return decoder(*sizes, sizes[1] // sizes[4], bias=True, norms=False)


def qwen3(*sizes: int) -> int:
    return decoder(*sizes, 128, bias=False, norms=True)


EXPECTED = {
    "ByteDance/Sa2VA-1B": internvit_300m() + projector(896) + qwen2(151679, 896, 4864, 24, 14, 2),
    "ByteDance/Sa2VA-4B": internvit_300m() + projector(2048) + qwen2(151679, 2048, 11008, 36, 16, 2),
    "ByteDance/Sa2VA-8B": internvit_300m() + projector(4096) + llama(92558, 4096, 14336, 32, 32, 8),
    "ByteDance/Sa2VA-26B": internvit_6b() + projector(6144, 3200) + llama(92558, 6144, 16384, 48, 48, 8),
    "ByteDance/Sa2VA-InternVL3-2B": internvit_300m() + projector(1536) + qwen2(151679, 1536, 8960, 28, 12, 2),
    "ByteDance/Sa2VA-InternVL3-8B": internvit_300m() + projector(3584) + qwen2(151679, 3584, 18944, 28, 28, 4),
    "ByteDance/Sa2VA-InternVL3-14B": internvit_300m() + projector(5120) + qwen2(151679, 5120, 13824, 48, 40, 8),
    "ByteDance/Sa2VA-Qwen2_5-VL-3B": qwen25vl_tower(2048) + qwen2(151670, 2048, 11008, 36, 16, 2),
    "ByteDance/Sa2VA-Qwen2_5-VL-7B": qwen25vl_tower(3584) + qwen2(151670, 3584, 18944, 28, 28, 4),
    "ByteDance/Sa2VA-Qwen3-VL-2B": qwen3vl_tower(1024, 4096, 24, 2048) + qwen3(151674, 2048, 6144, 28, 16, 8),
    "ByteDance/Sa2VA-Qwen3-VL-4B": qwen3vl_tower(1024, 4096, 24, 2560) + qwen3(151674, 2560, 9728, 36, 32, 8),
    "ByteDance/Sa2VA-Qwen3-VL-4B-SAM3": qwen3vl_tower(1024, 4096, 24, 2560) + qwen3(151674, 2560, 9728, 36, 32, 8),
    "ByteDance/Sa2VA-LLaVA-1.5-7B": clip_large()
    + linear(1024, 4096)
    + linear(4096, 4096)
    + llama(32007, 4096, 11008, 32, 32, 32),
    "Qwen/Qwen3-VL-8B-Instruct": qwen3vl_tower(1152, 4304, 27, 4096) + qwen3(151674, 4096, 12288, 36, 32, 8),
}


WITHOUT_PRESET = {"ByteDance/Sa2VA-Qwen3-VL-4B-SAM3", "ByteDance/Sa2VA-LLaVA-1.5-7B"}
"""They are named in `weights.location` (docs/real-runs.md)."""

PUBLISHED = {
    "ByteDance/Sa2VA-Qwen3-VL-4B": 5_057_072_434,
    "ByteDance/Sa2VA-Qwen3-VL-4B-SAM3": 5_306_227_586,
    "ByteDance/Sa2VA-LLaVA-1.5-7B": 7_305_220_402,
}
"""Numbers in the released files, mask decoder included. Of each release since InternVL3 there are 256 fewer than of all tensors, which
of them is not known here."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_total(name: str) -> None:
    config = ModelConfig.from_dict(RELEASED[name])
    width = config.language.hidden_size
    with torch.device("meta"):
        vlm = config.family.build()
    sam = config.decoder.build()
    layers = linear(width, width) + linear(width, config.decoder.width)
    total = layers + sum(tensor.numel() for module in (vlm, sam) for tensor in module.state_dict().values())
    assert total - 256 == PUBLISHED[name]
    for tensor in sam.state_dict():
        config.keys.shard_of(config.keys.to_hf_name(f"sam.{tensor}", "model"))


def test_every_release_with_a_preset_is_here() -> None:
    values = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    named = {preset["weights"]["location"] for preset in values["presets"].values() if preset["weights"]["source"] == "hub"}
    assert named | WITHOUT_PRESET == {*EXPECTED, "llava-hf/llava-1.5-7b-hf"} == set(RELEASED)


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters(name: str) -> None:
    config = ModelConfig.from_dict(RELEASED[name])
    with torch.device("meta"):
        model = config.family.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == EXPECTED[name]
    for parameter, _ in model.named_parameters():
        config.keys.shard_of(config.keys.to_hf_name(f"vlm.{parameter}", "model"))  # raises KeyError for one that is not mapped
