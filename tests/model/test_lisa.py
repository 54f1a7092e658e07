"""LLaVA and SAM behind the two interfaces: against transformers' own forwards and image processors, on random weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.preprocess import longest_side
from ans.model.segmenter import Conversations, Segmenter
from ans.objectives.batches import pad_right
from ans.objectives.mask import within
from tests import lisa_case

SIZES = [(90, 120), (120, 90), (64, 64), (37, 101)]
"""(height, width)"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter.from_pretrained(lisa_case.write_model(tmp_path_factory.mktemp("lisa")))


@pytest.fixture(scope="module")
def reference():
    return lisa_case.reference()


def picture(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(size).integers(0, 256, (size[0] // 6, size[1] // 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_the_processors(model: Segmenter, size: tuple[int, int]) -> None:
    image = picture(size)
    clip = CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size=42)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.config.family.pixels(image).values, clip, rtol=0, atol=1e-5)
    sam = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})(image, return_tensors="pt")
    torch.testing.assert_close(model.config.decoder.pixels(image)[None], sam["pixel_values"], rtol=0, atol=1e-5)
    assert longest_side(*size, 64) == tuple(sam["reshaped_input_sizes"][0].tolist())


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_cut_back(model: Segmenter, size: tuple[int, int]) -> None:
    low_res = torch.randn(2, 16, 16)
    inside = [list(longest_side(*size, 64))]
    (masks,) = SamImageProcessorPil().post_process_masks(
        [low_res[:, None]], [list(size)], inside, binarize=False, pad_size={"height": 64, "width": 64}
    )
    torch.testing.assert_close(model.upscale(low_res, size), masks[:, 0], rtol=0, atol=1e-5)


def test_a_target_lies_where_its_image_does(model: Segmenter) -> None:
    """A 32 x 64 image fills the upper half of SAM's square; (64, 32) the left half."""
    mask = torch.zeros(32, 64, dtype=torch.uint8)
    mask[:, 60:] = 1
    expected = torch.zeros(16, 16)
    expected[:8, 15] = 1
    assert torch.equal(model.config.decoder.soft_target(mask), expected)
    assert torch.equal(model.config.decoder.soft_target(mask.T), expected.T)
    back = model.upscale(20 * (expected[None] - 0.5), (32, 64))[0] > 0
    assert torch.equal(back[:-2], mask[:-2] > 0), "the last rows mix with the padding, as in SAM"


@pytest.mark.parametrize("size", [(30, 60), (61, 40), (50, 50), (1, 90)])
def test_padding_begins_where_the_image_ends(model: Segmenter, size: tuple[int, int]) -> None:
    """The cells that a mask of the whole image touches are those that the loss looks at."""
    touched = model.config.decoder.soft_target(torch.ones(size)) > 0
    share = torch.tensor([model.config.decoder.image_share(*size)])
    assert torch.equal(within(share, *touched.shape)[0], touched)


def test_image_tokens_are_derived(model: Segmenter) -> None:
    assert model.config.family.grid(100, 50).tokens == (42 // 14) ** 2
    official = lisa_case.config() | {"vision_config": lisa_case.VISION | {"image_size": 336, "patch_size": 14}}
    assert ModelConfig.from_dict(official).family.grid(100, 50).tokens == 576


def test_image_features_are_llavas(model: Segmenter, reference) -> None:
    pixels = torch.randn(3, 3, 42, 42)
    with torch.no_grad():
        theirs = reference[0].get_image_features(pixels, vision_feature_layer=-2, vision_feature_select_strategy="default")
        visual = model.vlm.encode(pixels, [model.config.family.grid(42, 42)] * 3)
        ours = model.vlm.project(torch.cat([one.tokens for one in visual]))
    torch.testing.assert_close(ours, torch.stack(theirs.pooler_output), rtol=1e-5, atol=1e-5)


def test_logits_are_llavas(model: Segmenter, reference) -> None:
    """Two conversations of different length about two images, padded; every labelled position."""
    images = [picture(size) for size in SIZES[:2]]
    features = model.encode_images(images)
    image = model.template.image_string(model.config.family.grid(1, 1).tokens)
    turns = [
        prompts.Turn(image + model.template.segment_question(text), answer)
        for text, answer in (("the red circle", "Sure, [SEG]."), ("What is left?", "It is [SEG]."))
    ]
    encoded = [prompts.encode_conversation(model.tokenizer, model.template, [turn]) for turn in turns]
    ids, labels, mask = pad_right(encoded)
    assert all(row[0] == model.tokenizer.bos_token_id for row in ids) and (ids == model.seg_token).sum(1).tolist() == [1, 1]
    with torch.no_grad():
        ours = model(features, Conversations(ids, labels, mask, [0, 1], [None, None]))
        pixels = torch.cat([model.config.family.pixels(image).values for image in images])
        theirs = reference[0](input_ids=ids, pixel_values=pixels, attention_mask=mask, output_hidden_states=True)
        labelled = labels[:, 1:] != prompts.IGNORE
        torch.testing.assert_close(ours.logits, theirs.logits[:, :-1][labelled], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            ours.seg_embeds, model.text_hidden_fcs(theirs.hidden_states[-1][ids == model.seg_token]), rtol=1e-4, atol=1e-4
        )
    assert ours.seg_image.tolist() == [0, 1]


def test_masks_are_sams(model: Segmenter, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' forward with the given sparse prompt in its prompt encoder's place; three prompts on two images."""
    sam, vectors, pixels, index = reference[1], torch.randn(3, 16), torch.randn(2, 3, 64, 64), torch.tensor([0, 1, 1])
    with torch.no_grad():
        levels = model.sam.encode(pixels)
        ours = model.sam.decode(model.sam.project(levels), index, vectors)
        torch.testing.assert_close(levels[0], sam.get_image_embeddings(pixels), rtol=1e-5, atol=1e-5)
        for number, vector in enumerate(vectors):
            dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, 4, 4)
            monkeypatch.setattr(sam.prompt_encoder, "forward", lambda v=vector, d=dense, **_: (v[None, None, None], d))
            theirs = sam(pixel_values=pixels[index[number]][None], multimask_output=False)
            torch.testing.assert_close(ours.low_res[number], theirs.pred_masks[0, 0, 0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours.ious[number], theirs.iou_scores[0, 0], rtol=1e-4, atol=1e-4)


def test_free_generation_is_llavas(model: Segmenter, reference) -> None:
    """The same greedy ids as transformers' `generate`, and a mask for every `[SEG]` in them."""
    image, text = picture(SIZES[0]), "the red circle"
    (found,) = model.segment([image], [[text]], max_new_tokens=6)[0]
    whole = model.template.image_string(model.config.family.grid(1, 1).tokens) + model.template.segment_question(text)
    ids = torch.tensor([prompts.encode_prompt(model.tokenizer, model.template, whole)])
    said = reference[0].generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=model.config.family.pixels(image).values, max_new_tokens=6,
        do_sample=False, pad_token_id=0,
    )[0, ids.shape[1] :]  # fmt: skip
    assert found.answer == model.tokenizer.decode(said).strip()
    forced = model.segment_given([image, picture(SIZES[3])], [[text], [text, "square"]], "Sure, [SEG].")
    assert [[one.mask.shape for one in row] for row in forced] == [[SIZES[0]], [SIZES[3]] * 2]


def test_questions_of_phrases_and_sentences(model: Segmenter) -> None:
    template = model.template
    assert template.segment_question("a cup") == "What is a cup in this image? Please output segmentation mask."
    assert template.segment_question("Where can I sit?") == "Where can I sit? Please output segmentation mask."
    assert all("{}" in text for text in (*template.training_questions("a cup"), *template.training_questions("Sit where?")))
    assert prompts.TEMPLATES["qwen_chat"].segment_question("Sit where?") == prompts.SEGMENT_PROMPT.format("Sit where?")
    with pytest.raises(ValueError, match="describe: LISA on LLaVA was not trained to describe regions"):
        model.describe([picture(SIZES[0])], [np.ones((1, *SIZES[0]))])


def test_mistakes_in_the_folder_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="no family reads this model: 'other' with .* llama; known are lisa, sa2va_internlm2, "):
        ModelConfig.from_dict(lisa_case.config() | {"model_type": "other"})
    with pytest.raises(ValueError, match="vision_feature_layer: only one layer"):
        ModelConfig.from_dict(lisa_case.config() | {"vision_feature_layer": [-2, -1]})
