"""Sa2VA on LLaVA-1.5, by the official layout, against transformers' own LLaVA and against the same SAM2 elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ans.checkpoints.convert import config_for_remote
from ans.model import prompts
from ans.model.adapters import add_lora, select_trained
from ans.model.loading import read_tensors
from ans.model.preprocess import CLIP_MEAN, CLIP_STD
from ans.model.segmenter import Conversations, Segmenter
from tests import small_releases

NAME = "Sa2VA on LLaVA"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_releases.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Segmenter:
    return Segmenter.from_pretrained(folder)


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_whole_image_is_squeezed_into_a_square(model: Segmenter) -> None:
    image = picture(60, 150)
    square = np.asarray(image.resize((42, 42), Image.Resampling.BICUBIC)).astype(np.float64) / 255
    expected = (square - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    found = model.config.family.pixels(image)
    np.testing.assert_allclose(found.values[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert found.grid.tokens == 9 and model.config.family.name == NAME


def test_prompt(model: Segmenter) -> None:
    """`USER: <image>..<image>\\n Please segment .. in this image. ASSISTANT:`, with the tokenizer's own start token."""
    text = model.template.image_string(9) + model.template.segment_question("the red circle")
    written = "USER: " + "<image>" * 9 + "\n Please segment the red circle in this image. ASSISTANT:"
    assert prompts.encode_prompt(model.tokenizer, model.template, text) == model.tokenizer.encode(written)
    turn = prompts.Turn(text, "It is [SEG].", separated=True)
    ids, labels = prompts.encode_conversation(model.tokenizer, model.template, [turn])
    said = [label for label in labels if label != prompts.IGNORE]
    assert (
        said == model.tokenizer.encode("It is [SEG].</s>", add_special_tokens=False) and said[-1] == model.tokenizer.eos_token_id
    )
    assert ids[0] == model.tokenizer.bos_token_id


def test_logits_and_states_are_llavas(model: Segmenter) -> None:
    theirs, images = small_releases.llava_reference(), [picture(60, 150), picture(90, 40)]
    image = model.template.image_string(9)
    encoded = [
        prompts.encode_conversation(model.tokenizer, model.template, [prompts.Turn(image + " What is left?", answer)])
        for answer in ("Sure, it is [SEG].", "Sure [SEG], it is [SEG].")
    ]
    length = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in encoded])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in encoded])
    labels = torch.tensor([labels + [prompts.IGNORE] * (length - len(labels)) for _, labels in encoded])
    pixels = torch.cat([model.config.family.pixels(one).values for one in images])
    with torch.no_grad():
        ours = model(model.encode_images(images), Conversations(ids, labels, mask, [0, 1], [None, None]))
        out = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask, output_hidden_states=True)
        seg = model.text_hidden_fcs(out.hidden_states[-1][ids == model.seg_token])
    torch.testing.assert_close(ours.logits, out.logits[:, :-1][labels[:, 1:] != prompts.IGNORE], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.seg_embeds, seg, rtol=1e-4, atol=1e-4)


def test_greedy_answers_are_llavas(model: Segmenter) -> None:
    image, text = picture(60, 150), "the red circle"
    whole = model.template.image_string(9) + model.template.segment_question(text)
    ids = torch.tensor([prompts.encode_prompt(model.tokenizer, model.template, whole)])
    said = small_releases.llava_reference().generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=model.config.family.pixels(image).values, max_new_tokens=6,
        do_sample=False, pad_token_id=0,
    )[0, ids.shape[1] :]  # fmt: skip
    (found,) = model.segment([image], [[text]], max_new_tokens=6)[0]
    assert found.answer == model.tokenizer.decode(said).strip()


def test_saved_and_trained_under_the_official_names(folder: Path, tmp_path: Path) -> None:
    model = Segmenter.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    before, after = read_tensors(folder), read_tensors(tmp_path / "again")
    assert before.keys() == after.keys() and all(torch.equal(before[name].float(), after[name].float()) for name in before)
    remote = config_for_remote(model.config)
    assert remote["architectures"] == ["Sa2VAChatModelLlava"]
    assert remote["auto_map"]["AutoModel"] == "ByteDance/Sa2VA-LLaVA-1.5-7B--modeling_sa2va_llava.Sa2VAChatModelLlava"
    add_lora(model, 2, 4.0, 0.0, 0)
    names = {
        model.config.keys.trained_name(name) for name in select_trained(model, ("lora", "embed_head", "fcs", "sam2_decoder"))
    }
    wrapped = "mllm.model.base_model.model."
    layer = f"{wrapped}model.language_model.layers.0"
    assert names >= {
        f"{layer}.self_attn.q_proj.lora_A.default.weight", f"{layer}.mlp.down_proj.lora_B.default.weight",
        f"{wrapped}model.language_model.embed_tokens.modules_to_save.default.weight",
        f"{wrapped}lm_head.modules_to_save.default.weight", "text_hidden_fcs.0.weight",
    }  # fmt: skip
    assert not [name for name in names if "vision_tower" in name or "projector" in name]


def test_regions_were_never_learnt(model: Segmenter) -> None:
    with pytest.raises(ValueError, match=f"{NAME} was not trained to describe regions; train it on captions first"):
        model.describe([picture(30, 30)], [torch.ones(1, 30, 30)])
