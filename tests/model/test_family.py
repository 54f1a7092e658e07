"""What a family may differ in reaches generation, training and region prompts alike; an incomplete one is refused."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM
from transformers.masking_utils import create_causal_mask

from ans.model import config as config_module
from ans.model import decoder, family, prompts
from ans.model.config import ModelConfig, decoders, families
from ans.model.segmenter import Conversations, Segmenter
from ans.model.visual_prompt import region_cells
from ans.objectives.batches import pad_right
from tests import lisa_case, odd_family
from tests.golden_case import GoldenCase

SIZES = [(96, 160), (130, 64), (40, 200)]
"""(height, width): grids of 3 x 5, 4 x 2 and 1 x 6."""
ANSWER = "Sure, [SEG]."


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return odd_family.model()


def pictures() -> list[Image.Image]:
    noise = [np.random.default_rng(size).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8) for size in SIZES]
    return [Image.fromarray(one).resize(size[::-1]) for one, size in zip(noise, SIZES, strict=True)]


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, arguments: found.append(arguments[0]))
    yield found
    handle.remove()


def test_grids_are_the_images_own(model: Segmenter) -> None:
    features = model.encode_images(pictures())
    assert [one.grid.region for one in features.visual] == [(3, 5), (4, 2), (1, 6)]
    assert [one.tokens.shape[:2] for one in model.image_tokens(features)] == [(1, 15), (1, 8), (1, 6)]
    assert all(len(one.levels) == 3 for one in model.image_tokens(features))


def test_seg_states_of_an_answer_are_those_of_training(model: Segmenter) -> None:
    """A shared prefix, padded on the left and continued, against one whole forward, padded on the right."""
    images, texts = pictures(), [["the left red circle", "green"], ["the square"], ["a small blue square on the right"]]
    features = model.encode_images(images)
    with inputs_of(model.text_hidden_fcs) as given:
        model.segment_given(images, texts, ANSWER)
    rows = [(i, text) for i, row in enumerate(texts) for text in row]
    encoded = []
    for i, text in rows:
        question = model.template.image_string(features.visual[i].grid.tokens) + model.template.segment_question(text)
        encoded.append(prompts.encode_conversation(model.tokenizer, model.template, [prompts.Turn(question, ANSWER)]))
    ids, labels, mask = pad_right(encoded)
    batch = Conversations(ids, labels, mask, [i for i, _ in rows], [None] * len(rows))
    with torch.no_grad(), inputs_of(model.text_hidden_fcs) as trained:
        model(features, batch)
    torch.testing.assert_close(given[0], trained[0], rtol=1e-4, atol=1e-4)
    assert (trained[0].norm(dim=1) - given[0].norm(dim=1)[0]).abs().max() > 1e-2, "the rows differ"


def test_generation_continues_the_positions(model: Segmenter) -> None:
    """Greedy answers about regions of non-square grids are what the whole forward would say, token by token."""
    images = pictures()
    features = model.encode_images(images)
    masks = []
    for height, width in SIZES:
        one = np.zeros((1, height, width), np.uint8)
        one[0, : height // 2, width // 3 :] = 1
        masks.append(one)
    cells = [region_cells(torch.from_numpy(m), one.grid.region)[0] for m, one in zip(masks, features.visual, strict=True)]
    captions, _, _ = model.caption_ids(features, range(3), cells, [prompts.DESCRIBE_PROMPT] * 3, 8)
    assert [model.tokenizer.decode(ids) for ids in captions] == [row[0] for row in model.describe(images, masks, 8)]
    assert all(map(len, captions)) and len(set(map(tuple, captions))) > 1
    for i, ids in enumerate(captions):
        image = model.template.image_string(features.visual[i].grid.tokens)
        question = image + model.region_question(cells[i][None], prompts.DESCRIBE_PROMPT)
        prompt = prompts.encode_prompt(model.tokenizer, model.template, question)
        row = torch.tensor([prompt + ids])
        labels = torch.tensor([[prompts.IGNORE] * len(prompt) + ids])
        with torch.no_grad():
            out = model(features, Conversations(row, labels, torch.ones_like(row), [i], [cells[i][None]]))
        assert out.logits.argmax(-1).tolist() == ids


@pytest.mark.parametrize("part", ["row positions", "deep", "state before the norm"])
def test_the_comparison_sees_each_difference(model: Segmenter, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out of generation alone, each of them turns the comparison above red."""
    run = odd_family.Vlm.run

    def without(self, inputs, cache=None):
        if cache is None:
            return run(self, inputs, cache)
        if part == "row positions":
            inputs = family.Inputs(inputs.embeds, inputs.mask, inputs.positions[:1], inputs.visual, inputs.deep)
        if part == "deep":
            inputs = family.Inputs(inputs.embeds, inputs.mask, inputs.positions, inputs.visual)
        states = run(self, inputs, cache)
        return family.States(states.normed, states.normed) if part == "state before the norm" else states

    monkeypatch.setattr(odd_family.Vlm, "run", without)
    with pytest.raises(AssertionError):
        test_seg_states_of_an_answer_are_those_of_training(model)


# ------------------------------------------------------------------------------------------------------- one file a family


def test_each_file_is_of_one_family() -> None:
    sa2va, lisa = GoldenCase().config(), lisa_case.config()
    for values, name, mask in ((sa2va, "sa2va_internvl", "sam2"), (lisa, "lisa", "sam")):
        assert [n for n, kind in families().items() if kind.owns(values)] == [name]
        read = ModelConfig.from_dict(values)
        assert type(read.family) is families()[name] and type(read.decoder) is decoders()[mask]
        assert all(kind.decoder in decoders() for kind in families().values())


def test_the_decoder_is_chosen_apart_from_the_family() -> None:
    """LISA's vision-language side with SAM2."""
    values: dict[str, Any] = {key: value for key, value in lisa_case.config().items() if key != "sam_config"}
    values["sam2_config"] = GoldenCase().config()["sam2_config"]
    model = ModelConfig.from_dict(values)
    assert type(model.decoder) is decoders()["sam2"] and type(model.family) is families()["lisa"]
    made = Segmenter(model, lisa_case.tokenizer())
    names = {model.keys.to_hf_name(name, "model") for name in made.state_dict()}
    assert {model.keys.shard_of(name) for name in names} >= {"vision", "sam2_encoder", "sam2_decoder", "fcs"}
    (found,) = made.eval().segment([pictures()[0]], [["the red circle"]], 4)[0]
    assert found.mask.shape == SIZES[0]
    with pytest.raises(ValueError, match="sam_config and sam2_config: a model has one mask decoder"):
        ModelConfig.from_dict(values | {"sam_config": lisa_case.SAM})


def test_a_new_file_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "families", lambda: families() | {"odd": odd_family.Family})
    language = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    values = {"model_type": "odd", "text_config": language, "image_token_id": 3}
    assert isinstance(ModelConfig.from_dict(values).family, odd_family.Family)
    with pytest.raises(ValueError, match="odd and twice both claim 'odd'"):
        monkeypatch.setattr(config_module, "families", lambda: {"odd": odd_family.Family, "twice": odd_family.Family})
        ModelConfig.from_dict(values)


def test_incomplete_ones_are_refused() -> None:
    class NoGrid(odd_family.Family):
        grid = family.Family.grid

    methods = ("owns", "read", "grid", "pixels", "build", "made_of", "assembled")
    no_names = type("NoNames", (family.Family,), {name: getattr(odd_family.Family, name) for name in methods})

    class NoPrompts(decoder.MaskNetwork):
        def encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
            return (pixels,)

    class NoRun(family.Vlm):
        pass

    with pytest.raises(TypeError, match="abstract method '?grid"):
        NoGrid(None, prompts.TEMPLATES["qwen_chat"], 0)
    with pytest.raises(TypeError, match="NoNames does not say: system, title, decoder, tables"):
        no_names()
    with pytest.raises(TypeError, match="abstract methods '?decode'?, '?dtype"):
        NoPrompts()
    with pytest.raises(TypeError, match="abstract methods '?dtype'?, '?encode"):
        NoRun()


def test_a_missing_key_is_named(tmp_path) -> None:
    values: Mapping[str, Any] = GoldenCase().config()
    without = {key: value for key, value in values.items() if key != "vision_config"}
    (tmp_path / "config.json").write_text(json.dumps(without))
    with pytest.raises(ValueError, match=r"config\.json: key 'vision_config' is missing"):
        ModelConfig.from_folder(tmp_path)
    with pytest.raises(ValueError, match="template: 'odd' is unknown; there are phi3_chat"):
        ModelConfig.from_dict({**values, "template": "odd"})
    with pytest.raises(ValueError, match="sam2_config.depth: unknown key"):
        ModelConfig.from_dict({**values, "sam2_config": {"depth": 3}})


@pytest.mark.parametrize(("before", "length"), [(0, 6), (5, 1), (5, 4)])
def test_attention_is_that_of_transformers(before: int, length: int) -> None:
    """Its own mask for rows padded on the left, with and without tokens in the cache; for rows without padding none where it has none."""
    mask = torch.ones(3, before + length, dtype=torch.long)
    mask[0, :3], mask[2, :1] = 0, 0
    config = Qwen2Config(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, attn_implementation="sdpa")
    embeds = torch.zeros(3, length, 8)
    for padded, whole in ((True, mask), (False, torch.ones_like(mask))):
        cache = DynamicCache(config=config)
        if before:
            cache.update(torch.zeros(3, 1, before, 4), torch.zeros(3, 1, before, 4), 0)
        theirs = create_causal_mask(config, embeds, whole, cache)
        inputs = family.Inputs(embeds, whole, torch.zeros(1, 3, length), torch.zeros(3, length, dtype=torch.bool), padded=padded)
        ours = inputs.attention()
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.equal(ours.expand_as(theirs), theirs)


def test_what_lies_behind_a_row_needs_no_mask() -> None:
    """Rows padded on the right, as training has them: their tokens see the same with the causal rule alone."""
    torch.manual_seed(2)
    config = Qwen2Config(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    model, mask = Qwen2ForCausalLM(config).eval().model, torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    embeds = torch.randn(2, 9, 32)
    with torch.no_grad():
        inputs = family.Inputs(embeds, mask, torch.arange(9).expand(1, 2, 9), torch.zeros(2, 9, dtype=torch.bool), padded=False)
        alone = model(inputs_embeds=embeds, attention_mask={"full_attention": inputs.attention()}).last_hidden_state
        whole = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(alone[mask.bool()], whole[mask.bool()], rtol=1e-5, atol=1e-6)
