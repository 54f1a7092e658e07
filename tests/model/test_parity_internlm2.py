"""Sa2VA on InternVL2.5 with InternLM2: the language model and the vision transformer of the official code."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from ans.model.config import ModelConfig
from ans.model.families.sa2va_internlm2 import Family
from ans.model.families.sa2va_internvl import InternVL
from ans.model.family import Inputs
from tests.golden_case import GoldenCase, GoldenSet

pytestmark = pytest.mark.usefixtures("as_recorded")

GOLDEN = GoldenSet("sa2va_internlm2")
VALUE, LOGIT = 1e-5, 1e-5
"""The official code against Llama with the weights taken apart: 2e-6 (`meta.json`)."""


def config() -> dict[str, Any]:
    """The folder has the two parts; how they are put together is as in the folder of `sa2va`."""
    parts = {name: GOLDEN.meta[name] for name in ("vision_config", "llm_config")}
    size = {"force_image_size": parts["vision_config"]["image_size"], "template": "internlm2_chat"}
    return GoldenCase().config() | parts | size


def build() -> tuple[ModelConfig, InternVL]:
    """The official weights; the projector, which the folder has not, as it was drawn."""
    torch.manual_seed(0)
    read = ModelConfig.from_dict(config())
    assert isinstance(read.family, Family)
    vlm = read.family.build().eval()
    state = {name.removeprefix("vlm."): tensor for name, tensor in read.keys.from_hf(GOLDEN.state("state"), "model").items()}
    missing, unexpected = vlm.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("mlp1.") for name in missing)
    return read, vlm


def close(ours: Tensor, name: str, tolerance: float) -> None:
    assert ours.shape == GOLDEN[name].shape
    torch.testing.assert_close(ours, GOLDEN[name], rtol=0, atol=tolerance)


def text(vlm: InternVL, ids: Tensor, first: int = 0, mask: Tensor | None = None) -> Inputs:
    """Ids (B, L) without an image; those before `first` are in the cache."""
    mask = torch.ones_like(ids) if mask is None else mask
    positions = vlm.positions(ids, mask, [])[..., first:]
    embeds = vlm.language_model.get_input_embeddings()(ids[:, first:])
    return Inputs(embeds, mask, positions, torch.zeros_like(ids[:, first:], dtype=torch.bool))


@torch.no_grad()
def compare(vlm: InternVL) -> None:
    states = vlm.run(text(vlm, GOLDEN["input_ids"])).normed[0]
    close(vlm.vision_model(pixel_values=GOLDEN["pixels"]).last_hidden_state, "vit", VALUE)
    close(states, "last_hidden_state", VALUE)
    close(vlm.language_model.lm_head(states), "logits", LOGIT)


def test_language_model_and_vision_transformer() -> None:
    read, vlm = build()
    assert {read.keys.to_hf_name(f"vlm.{name}", "model") for name in vlm.state_dict() if not name.startswith("mlp1.")} == set(
        GOLDEN.meta["keys"]
    )
    compare(vlm)


def test_a_cache_and_padding_change_nothing() -> None:
    _, vlm = build()
    ids = GOLDEN["input_ids"]
    length = ids.shape[1]
    with torch.no_grad():
        whole = vlm.run(text(vlm, ids)).normed
        for cut in (length // 3, length - 1):
            cache = DynamicCache(config=vlm.language_model.config)
            parts = [vlm.run(text(vlm, ids[:, :cut]), cache).normed, vlm.run(text(vlm, ids, cut), cache).normed]
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
        for side in (1, 0):  # padded on the left, on the right
            padding = ids.new_zeros(1, 5)
            padded = torch.cat([padding, ids] if side else [ids, padding], 1)
            mask = torch.cat([padding, torch.ones_like(ids)] if side else [torch.ones_like(ids), padding], 1)
            found = vlm.run(text(vlm, padded, mask=mask)).normed[mask.bool()]
            torch.testing.assert_close(found[None], whole, rtol=0, atol=1e-5)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        _, vlm = build()
        vlm.train()
        if recompute:
            vlm.language_model.activation_checkpointing_enable({"use_reentrant": False})
            assert vlm.language_model.model.layers[0].gradient_checkpointing
        vlm.run(text(vlm, GOLDEN["input_ids"])).normed.square().mean().backward()
        gradients.append([parameter.grad for parameter in vlm.language_model.model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.tok_embeddings.weight",
        "language_model.model.layers.0.attention.wqkv.weight",
        "language_model.model.layers.1.attention.wo.weight",
        "language_model.model.layers.0.feed_forward.w3.weight",
        "language_model.model.layers.1.ffn_norm.weight",
        "language_model.lm_head.weight",
        "vision_model.encoder.layer.0.attention.q_norm.weight",
        "vision_model.encoder.layer.1.attention.v_proj.weight",
    ],
)
def test_a_perturbed_weight_is_seen(name: str) -> None:
    _, vlm = build()
    weight = vlm.get_parameter(name)
    weight.data += 0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(AssertionError):
        compare(vlm)


def test_what_would_change_results_is_refused() -> None:
    for change, message in (
        ({"hidden_act": "gelu"}, "llm_config.hidden_act: 'gelu' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "llm_config.rope_scaling: 'linear'"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_dict(config() | {"llm_config": GOLDEN.meta["llm_config"] | change})
