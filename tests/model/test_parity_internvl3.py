"""Sa2VA on InternVL3: the same modules as on InternVL2.5. Numbers by the official code, from pixels to masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.segmenter import Conversations, Features, Segmenter
from tests.golden_case import GoldenSet, hf_pixels, outputs, same_masks

pytestmark = pytest.mark.usefixtures("as_recorded")

GOLDEN = GoldenSet("sa2va_internvl3")
META = GOLDEN.meta
CASES = sorted(META["cases"])


DECLARED = GOLDEN.config["llm_config"]["max_position_embeddings"]


@contextmanager
def dynamic_scaling(model: Segmenter, limit: int) -> Iterator[None]:
    """Meanwhile rotary positions are scaled beyond `limit`, as `config.json` says of the declared length, which no prompt reaches.
    Without it, as we build the model, the numbers have to be those of the declared length."""
    inner = model.vlm.language_model.model
    before, declared = inner.rotary_emb, GOLDEN.config["llm_config"]
    scaling = {"rope_type": "dynamic", "factor": declared["rope_scaling"]["factor"], "rope_theta": declared["rope_theta"]}
    values = model.config.language.to_dict() | {"max_position_embeddings": limit, "rope_parameters": scaling}
    inner.rotary_emb = Qwen2RotaryEmbedding(Qwen2Config(**values))
    try:
        yield
    finally:
        inner.rotary_emb = before


def close(ours: torch.Tensor, name: str, tolerance: float) -> None:
    golden = GOLDEN[name]
    assert ours.shape == golden.shape
    torch.testing.assert_close(ours.float(), golden, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter.from_pretrained(GOLDEN.write_model(tmp_path_factory.mktemp("internvl3") / "model"))


@pytest.mark.parametrize("case", CASES)
def test_from_pixels_to_masks(model: Segmenter, case: str) -> None:
    entry, image = META["cases"][case], GOLDEN.image(case)
    found = model.encode_images([image])
    pixels = model.config.family.pixels(image)
    assert len(pixels.values) == pixels.grid.tiles == entry["n_tiles"] == int(GOLDEN[f"{case}/n_tiles"])
    close(pixels.values[-1], f"{case}/pixel_values_last_tile", 1e-6)
    exact = pixels.values.double()
    stats = torch.stack([exact.sum(), exact.abs().sum(), exact.square().sum()])
    torch.testing.assert_close(stats, GOLDEN[f"{case}/pixel_values_stats"], rtol=1e-5, atol=1e-3)
    with torch.no_grad():
        close(model.vlm.project(found.visual[0].tokens).reshape(GOLDEN[f"{case}/vit_embeds"].shape), f"{case}/vit_embeds", 1e-4)

    question = entry["text"].removeprefix("<image>\n")
    text = model.template.image_string(found.visual[0].grid.tokens) + question
    prompt = prompts.encode_prompt(model.tokenizer, model.template, text)
    assert prompt == GOLDEN[f"{case}/input_ids"][0].tolist() and len(prompt) == entry["n_prompt"]
    ids = torch.tensor([prompt + entry["generated_ids"]])
    labels = torch.tensor([[prompts.IGNORE] * len(prompt) + entry["generated_ids"]])
    with torch.no_grad():
        out = model(found, Conversations(ids, labels, torch.ones_like(ids), [0], [None]))
        logits = model.vlm.language_model.lm_head(out.hidden)[0]
        embeds = model.vlm.embed(
            ids[:, : len(prompt)], model.vlm.project(found.visual[0].tokens).flatten(0, 1), model.image_token
        )
    total = GOLDEN[f"{case}/inputs_embeds_sum"]
    torch.testing.assert_close(embeds.double().sum()[None], total, rtol=1e-5, atol=1e-3)
    close(out.hidden[0], f"{case}/last_hidden_state", 1e-4)
    close(logits[-32:], f"{case}/logits_last32", 1e-3)
    for limit, key in ((META["limit"], f"limit{META['limit']}_logits_last32"), (DECLARED, "logits_last32")):
        with dynamic_scaling(model, limit), torch.no_grad():
            scaled = model(found, Conversations(ids, labels, torch.ones_like(ids), [0], [None]))
            close(model.vlm.language_model.lm_head(scaled.hidden)[0, -32:], f"{case}/{key}", 1e-3)
    assert out.logits.argmax(-1).tolist() == entry["generated_ids"], "the greedy answer, token by token"
    seg = (ids[0, :-1] == model.seg_token).nonzero()[:, 0]
    close(out.hidden[0, seg[seg >= len(prompt)]], f"{case}/seg_hidden", 1e-4)
    close(out.seg_embeds, f"{case}/seg_embeds", 1e-4)
    for kind in ("train_pre", "hf_pre"):
        masks_are(model, case, kind, out.seg_embeds)

    before, after = prompts.SEGMENT_PROMPT.split("{}")
    expression = question.removeprefix(before).removesuffix(after)
    official = seen_officially(model, case)
    with outputs(model.vlm.language_model.lm_head) as steps:
        (answer,) = model.segment(official, [[expression]], max_new_tokens=len(entry["generated_ids"]))[0]
    close(torch.cat([step.reshape(1, -1) for step in steps]), f"{case}/step_logits", 1e-3)
    assert len(answer.masks) == entry["n_masks"]
    assert answer.answer == entry["prediction"].strip()
    with torch.no_grad():
        low_res = model.masks(official, out.seg_image, out.seg_embeds).low_res
        upscaled = model.upscale(low_res, (image.height, image.width)).numpy()
    for number, mask in enumerate(answer.masks):
        assert same_masks(mask, GOLDEN[f"{case}/predict_mask{number}"][0].numpy().astype(bool), upscaled[number])


def seen_officially(model: Segmenter, case: str) -> Features:
    """SAM2's pixels as the official inference makes them."""
    image = GOLDEN.image(case)
    sam = hf_pixels(model.config.decoder.pixels(image)[None])
    return model.encode_pixels([model.config.family.pixels(image)], sam, [(image.height, image.width)])


@torch.no_grad()
def masks_are(model: Segmenter, case: str, kind: str, embeds: torch.Tensor) -> None:
    """The masks of all `[SEG]`, with SAM2's pixels as in training or as in the official inference."""
    image = GOLDEN.image(case)
    found = model.encode_images([image]) if kind == "train_pre" else seen_officially(model, case)
    masks = model.masks(found, torch.zeros(len(embeds), dtype=torch.long), embeds)
    upscaled = model.upscale(masks.low_res, (image.height, image.width))
    for number in range(META["cases"][case]["n_masks"]):
        key = f"{case}/{kind}/seg{number}"
        close(masks.low_res[number][None, None], f"{key}/low_res_masks", 1e-3)
        close(masks.ious[number][None], f"{key}/ious", 1e-4)
        ours = (upscaled[number] > 0).numpy()
        assert same_masks(ours, GOLDEN[f"{key}/mask_bool"][0].numpy().astype(bool), upscaled[number].numpy())


@pytest.mark.parametrize(
    "name",
    [
        "vlm.vision_model.encoder.layer.0.attention.q_proj.weight",
        "vlm.mlp1.1.weight",
        "vlm.language_model.model.layers.0.mlp.up_proj.weight",
        "vlm.language_model.lm_head.weight",
        "text_hidden_fcs.0.weight",
        "sam.model.image_encoder.trunk.blocks.0.attn.qkv.weight",
        "sam.model.sam_mask_decoder.transformer.layers.0.self_attn.v_proj.weight",
    ],
)
@pytest.mark.second
def test_a_perturbed_weight_is_seen(tmp_path: Path, name: str) -> None:
    model = Segmenter.from_pretrained(GOLDEN.write_model(tmp_path / "model"))
    weight = model.get_parameter(name)
    weight.data += 0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(AssertionError):
        for case in CASES:
            test_from_pixels_to_masks(model, case)


def test_dynamic_scaling_is_accepted_and_others_are_refused() -> None:
    """Dynamic scaling acts beyond 32,768 positions alone; the golden numbers were made with it. What would change results within
    that length is refused by name instead of being left out."""
    config = GOLDEN.config
    assert config["llm_config"]["rope_scaling"]["type"] == "dynamic"
    for change, path in (
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "llm_config.rope_scaling: 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "llm_config.rope_scaling: 'yarn'"),
        ({"use_sliding_window": True, "sliding_window": 16}, "llm_config.use_sliding_window: true"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "llm_config.layer_types: 'sliding_attention'"),
    ):
        with pytest.raises(ValueError, match=path):
            ModelConfig.from_dict(config | {"llm_config": config["llm_config"] | change})
    with pytest.raises(ValueError, match="pad2square: true"):
        ModelConfig.from_dict(config | {"pad2square": True})
    for change in ({"rope_scaling": None}, {"use_sliding_window": False, "sliding_window": 16}):
        ModelConfig.from_dict(config | {"llm_config": config["llm_config"] | change})
