"""Every intermediate of the official Sa2VA code, from pixels to masks. Sizes, texts and tokens all come from the golden case."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from tokenizers import Tokenizer
from torch import Tensor

from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.family import Pixels
from ans.model.preprocess import normalise, sam_image, tile_grid, tiles
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.model.tokens import load_tokenizer
from ans.model.visual_prompt import region_cells
from tests.golden_case import FOLDER, GoldenCase, hf_pixels, outputs, same_masks

pytestmark = pytest.mark.usefixtures("as_recorded")

CASES = GoldenCase().cases
SEGMENTED = GoldenCase().segmented
GENERATED = sorted(GoldenCase().meta["generation"])
VALUE = 1e-4
LOGIT = 1e-3


def close(ours: Tensor, golden: Tensor, tolerance: float = VALUE) -> None:
    assert ours.shape == golden.shape
    torch.testing.assert_close(ours.float(), golden.float(), rtol=0, atol=tolerance)


def cut(golden: GoldenCase, model: Segmenter, case: str):
    family = model.config.family
    return tiles(golden.image(case), family.image_size, family.min_tiles, family.max_tiles, family.use_thumbnail)


def seen(golden: GoldenCase, model: Segmenter, case: str) -> Pixels:
    image = golden.image(case)
    return Pixels(normalise(cut(golden, model, case)), model.config.family.grid(image.height, image.width))


def features(golden: GoldenCase, model: Segmenter, case: str) -> Features:
    return model.encode_images([golden.image(case)])


def turns(golden: GoldenCase, model: Segmenter, case: str) -> list[prompts.Turn]:
    text = golden.meta["text"][case]
    if "conversation" in text:
        tile = model.config.family.grid(1, 1, max_tiles=1).tokens
        image = model.template.image_string(text["n_tiles"] * tile)
        parts = text["conversation"]
        questions = [part["value"].replace("<image>\n", image) for part in parts[::2]]
        return [prompts.Turn(q, a["value"]) for q, a in zip(questions, parts[1::2], strict=True)]
    return [prompts.Turn(part["input"], part["output"], separated=True) for part in text["conversation_before_template"]]


def conversations(golden: GoldenCase, model: Segmenter, case: str) -> Conversations:
    ids, labels = golden[f"{case}/input_ids"], golden[f"{case}/labels"]
    regions = golden[f"{case}/region_masks"] if f"{case}/region_masks" in golden.tensors else None
    cells = None if regions is None else region_cells(regions, region_grid(model))
    return Conversations(ids, labels, torch.ones_like(ids), [0], [cells])


def region_grid(model: Segmenter) -> tuple[int, int]:
    return model.config.family.grid(1, 1).region


def test_tile_grid_table(golden: GoldenCase) -> None:
    table = golden.meta["tile_grid_image_size_448"]
    assert len(table) > 50
    for width, height, *grids in table:
        assert (*tile_grid(width, height, 448, 1, 12), *tile_grid(width, height, 448, 1, 6)) == tuple(grids), (width, height)


@pytest.mark.parametrize("case", CASES)
def test_tiles_and_pixels(golden: GoldenCase, golden_model: Segmenter, case: str) -> None:
    np.testing.assert_array_equal(np.asarray(golden.image(case)), golden[f"{case}/image"].numpy())
    parts = cut(golden, golden_model, case)
    np.testing.assert_array_equal(np.stack([np.asarray(part) for part in parts]), golden[f"{case}/tiles"].numpy())
    pixels = normalise(parts).double()
    stats = golden[f"{case}/pixel_values_stats"]
    ours = torch.stack([pixels.sum(), pixels.abs().sum(), (pixels**2).sum()])
    torch.testing.assert_close(ours, stats, rtol=1e-5, atol=1e-3)
    if f"{case}/pixel_values" in golden.tensors:
        close(pixels, golden[f"{case}/pixel_values"], 1e-6)


@pytest.mark.parametrize("case", SEGMENTED)
def test_sam_pixels(golden: GoldenCase, golden_model: Segmenter, case: str) -> None:
    image = sam_image(golden.image(case), golden_model.config.decoder.image_size)
    np.testing.assert_array_equal(np.asarray(image), golden[f"{case}/g_image"].numpy())
    if f"{case}/g_pixel_values_train" in golden.tensors:
        close(normalise([image]), golden[f"{case}/g_pixel_values_train"], 1e-6)
        close(hf_pixels(normalise([image])), golden[f"{case}/g_pixel_values_hf_fp32"], 2e-6)
    if (key := f"{case}/g_pixel_values_hf_bf16_corner16") in golden.tensors:
        assert torch.equal(hf_pixels(normalise([image]), torch.bfloat16)[..., :16, :16].float(), golden[key])


@pytest.mark.parametrize("case", CASES)
def test_vision_features(golden: GoldenCase, golden_model: Segmenter, case: str) -> None:
    found = seen(golden, golden_model, case)
    with torch.no_grad():
        if f"{case}/vit_embeddings" in golden.tensors:
            vision = golden_model.vlm.vision_model
            close(vision.embeddings(found.values), golden[f"{case}/vit_embeddings"])
            close(vision(pixel_values=found.values).last_hidden_state, golden[f"{case}/vit_last_hidden_state"])
        (features,) = golden_model.vlm.encode(found.values, [found.grid])
        close(golden_model.vlm.project(features.tokens), golden[f"{case}/vit_embeds"])


@pytest.mark.parametrize("case", CASES)
def test_token_ids_and_labels(golden: GoldenCase, golden_model: Segmenter, case: str) -> None:
    ids, labels = prompts.encode_conversation(golden_model.tokenizer, golden_model.template, turns(golden, golden_model, case))
    expected = golden.meta["text"][case]["template"]
    assert ids == expected["input_ids"]
    assert labels == expected["labels"]


@pytest.mark.parametrize("folder", [FOLDER, Path("weights/tiny")], ids=["golden", "tiny"])
def test_the_tokenizer_is_that_of_its_file(golden_folder, folder: Path) -> None:
    """Loaded from a model folder, the tokenizer splits words as its file says, not as some class's rules would have it."""
    model_folder = golden_folder if folder == FOLDER else folder
    config = ModelConfig.from_folder(model_folder)
    loaded = load_tokenizer(model_folder, config.language)
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for question in prompts.SEG_QUESTIONS:
        text = config.template.image_string(2) + question.format("the small red circle on the left")
        text = config.template.instruction.format(input=text)
        assert loaded.encode(text) == original.encode(text).ids


def test_texts_are_the_official_ones(golden: GoldenCase) -> None:
    assert sorted(prompts.SEG_QUESTIONS) == sorted(q.replace("{class_name}", "{}") for q in golden.meta["seg_questions"])
    assert list(prompts.SEG_ANSWERS) == golden.meta["answer_list"]
    for name, official in golden.meta["templates"].items():
        ours = prompts.TEMPLATES[name]
        assert ours.instruction == official["INSTRUCTION"]
        assert (ours.suffix, ours.separator) == (official.get("SUFFIX", ""), official.get("SEP", ""))
        assert list(ours.stop_words) == official.get("STOP_WORDS", [])


def test_region_cells(golden: GoldenCase, golden_model: Segmenter) -> None:
    for case in CASES:
        if f"{case}/region_masks" in golden.tensors:
            ours = region_cells(golden[f"{case}/region_masks"], region_grid(golden_model))
            np.testing.assert_array_equal(ours.numpy(), golden[f"{case}/prompt_masks_grid"].numpy().astype(bool))
            last = [False] * (len(golden[f"{case}/vp_overall_mask"]) - 1) + [True]
            assert golden[f"{case}/vp_overall_mask"].bool().tolist() == last, "regions are those of the last tile"


@pytest.mark.parametrize("case", CASES)
def test_language_forward(golden: GoldenCase, golden_model: Segmenter, case: str) -> None:
    batch = conversations(golden, golden_model, case)
    with torch.no_grad(), given_embeds(golden_model) as embeds:
        out = golden_model(features(golden, golden_model, case), batch)
        logits = golden_model.vlm.language_model.lm_head(out.hidden)[0]
    if f"{case}/inputs_embeds" in golden.tensors:
        close(embeds[0][0], golden[f"{case}/inputs_embeds"])
    close(out.hidden[0], golden[f"{case}/last_hidden_state"])
    whole = f"{case}/logits" in golden.tensors
    close(logits if whole else logits[-48:], golden[f"{case}/logits" if whole else f"{case}/logits_last48"])
    close((out.language_loss / len(out.labels))[None], golden[f"{case}/llm_loss"])
    if case in SEGMENTED:
        assert (batch.ids[0] == golden_model.seg_token).nonzero()[:, 0].tolist() == golden[f"{case}/seg_positions"].tolist()
        close(out.seg_embeds, golden[f"{case}/seg_embeds"])


@contextmanager
def given_embeds(model: Segmenter) -> Iterator[list[Tensor]]:
    """What the language model is given meanwhile, call by call."""
    found: list[Tensor] = []
    handle = model.vlm.language_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("case", SEGMENTED)
def test_sam2_features(golden: GoldenCase, golden_model: Segmenter, case: str) -> None:
    found = features(golden, golden_model, case)
    encoder = golden_model.sam.model.image_encoder
    with torch.no_grad(), outputs(encoder.trunk) as trunk:
        places = encoder(golden_model.config.decoder.pixels(golden.image(case))[None])["vision_pos_enc"]
        fine, middle, coarse = golden_model.sam.project(found.levels)
    for number, level in enumerate(trunk[0]):
        close(level, golden[f"{case}/sam/trunk{number}"])
    for number, level in enumerate(places):  # which the memory reads
        if f"{case}/sam/vision_pos_embeds{number}" in golden.tensors:
            close(level.flatten(2).permute(2, 0, 1), golden[f"{case}/sam/vision_pos_embeds{number}"])
    sizes = golden[f"{case}/sam/feat_sizes"].tolist()
    assert [list(level.shape[-2:]) for level in (fine, middle, coarse)] == sizes
    # The official lists hold the coarse map before `no_mem_embed` is added.
    coarse = coarse - golden_model.sam.model.no_mem_embed.view(1, -1, 1, 1)
    for number, level in enumerate((fine, middle, coarse)):
        close(level.flatten(2).permute(2, 0, 1), golden[f"{case}/sam/current_vision_feats{number}"])
    if f"{case}/sam/pix_feat_with_mem" in golden.tensors:
        given = given_to_the_mask_decoder(golden_model, found, golden[f"{case}/seg_embeds"][:1])
        close(given["sparse_prompt_embeddings"][:, :-1], golden[f"{case}/sam/sparse_embeddings_no_points"])
        close(given["dense_prompt_embeddings"], golden[f"{case}/sam/dense_embeddings"])
        close(given["image_pe"], golden[f"{case}/sam/image_pe"])
        close(given["image_embeddings"], golden[f"{case}/sam/pix_feat_with_mem"])


def decoder_of(model: Segmenter) -> MaskDecoder:
    (decoder,) = (module for module in model.modules() if isinstance(module, MaskDecoder))
    return decoder


def given_to_the_mask_decoder(model: Segmenter, found: Features, prompt: Tensor) -> dict[str, Tensor]:
    """What SAM2's own decoder is called with for one prompt vector (1, D), which comes behind the other sparse ones."""
    decoder = decoder_of(model)
    given: dict[str, Tensor] = {}
    handle = decoder.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model.masks(found, torch.tensor([0]), prompt)
    handle.remove()
    assert torch.equal(given["sparse_prompt_embeddings"][:, -1], prompt)
    return given


@pytest.mark.parametrize("case", SEGMENTED)
@pytest.mark.parametrize("pixels", ["train_pre", "hf_pre"])
def test_masks(golden: GoldenCase, golden_model: Segmenter, case: str, pixels: str) -> None:
    embeds = golden[f"{case}/seg_embeds"]
    image = golden.image(case)
    sam = golden_model.config.decoder.pixels(image)[None]
    sam, size = sam if pixels == "train_pre" else hf_pixels(sam), (image.height, image.width)
    with torch.no_grad(), outputs(decoder_of(golden_model)) as decoded:
        found = golden_model.encode_pixels([seen(golden, golden_model, case)], sam, [size])
        out = golden_model.masks(found, torch.zeros(len(embeds), dtype=torch.long), embeds)
        upscaled = golden_model.upscale(out.low_res, (image.height, image.width))
    for number in range(len(embeds)):
        key = f"{case}/{pixels}/seg{number}"
        if pixels == "train_pre":
            close(out.candidates[number][None], golden[f"{key}/low_res_multimasks"], LOGIT)
            close(pointer(golden_model, decoded[0], number), golden[f"{key}/obj_ptr"])
        close(out.ious[number][None], golden[f"{key}/ious"])
        close(out.low_res[number][None, None], golden[f"{key}/low_res_masks"], LOGIT)
        close(out.object_score[number][None], golden[f"{key}/object_score_logits"])
        if f"{key}/mask_logits_image_size" in golden.tensors:
            close(upscaled[number][None], golden[f"{key}/mask_logits_image_size"], LOGIT)
        ours = (upscaled[number] > 0).numpy()
        assert same_masks(ours, golden[f"{key}/mask_bool"][0].numpy().astype(bool), upscaled[number].numpy())
    if pixels == "train_pre":
        close(out.low_res[None], golden[f"{case}/train_path_low_res_masks"], LOGIT)


def pointer(model: Segmenter, decoded: tuple[Tensor, ...], number: int) -> Tensor:
    """(1, D): what SAM2 would remember of a mask, by its own output and layers; images have no use for it."""
    _, ious, tokens, score = decoded
    sam = model.sam.model
    there = (score[number] > 0).float()
    with torch.no_grad():
        return there * sam.obj_ptr_proj(tokens[number, ious[number].argmax()]) + (1 - there) * sam.no_obj_ptr


@pytest.mark.parametrize("key", GENERATED)
def test_generation(golden: GoldenCase, golden_model: Segmenter, key: str) -> None:
    entry = golden.meta["generation"][key]
    case, text = entry["image"], entry["text"].removeprefix("<image>\n")
    image = golden.image(case)
    sam_pixels = hf_pixels(normalise([sam_image(image, golden_model.config.decoder.image_size)]))
    found = golden_model.encode_pixels([seen(golden, golden_model, case)], sam_pixels, [(image.height, image.width)])
    limit, cells = entry["max_new_tokens"], None
    if regions := entry["prompt_ids"].count(golden_model.tokenizer.convert_tokens_to_ids(golden_model.template.region_start)):
        inside = golden[f"{case}/region_masks"][:regions]
        cells = region_cells(inside, region_grid(golden_model))
        text = golden_model.region_question(cells, text)
    whole = golden_model.template.image_string(found.visual[0].grid.tokens) + text
    assert prompts.encode_prompt(golden_model.tokenizer, golden_model.template, whole) == entry["prompt_ids"]
    ids = torch.tensor([entry["prompt_ids"] + entry["generated_ids"][:-1]])
    labels = torch.full_like(ids, prompts.IGNORE)
    with torch.no_grad():
        tail = golden_model(found, Conversations(ids, labels, torch.ones_like(ids), [0], [cells])).hidden[0]
    close(tail[-len(golden[f"gen/{key}/last_hidden_states_tail"]) :], golden[f"gen/{key}/last_hidden_states_tail"])
    assert len(golden[f"gen/{key}/seg_embeds"]) == entry["n_masks"] and len(tail) == entry["n_hidden_rows"]
    if cells is not None:
        return generation_about_regions(golden_model, found, inside, cells, entry)
    prefix, suffix = prompts.SEGMENT_PROMPT.split("{}")
    expression = text.removeprefix(prefix).removesuffix(suffix)
    with outputs(golden_model.vlm.language_model.lm_head) as logits, outputs(golden_model.text_hidden_fcs) as embeds:
        (answer,) = golden_model.segment(found, [[expression]], limit)[0]
    assert said(logits) == entry["generated_ids"]
    assert answer.answer == entry["prediction"].strip() and len(answer.masks) == entry["n_masks"]
    assert sum(map(len, embeds)) == entry["n_masks"]
    if entry["n_masks"]:
        close(torch.cat(embeds), golden[f"gen/{key}/seg_embeds"])
        with torch.no_grad():
            low_res = golden_model.masks(found, torch.zeros(entry["n_masks"], dtype=torch.long), torch.cat(embeds)).low_res
            values = golden_model.upscale(low_res, (image.height, image.width)).numpy()
        for number, mask in enumerate(answer.masks):
            assert same_masks(mask, golden[f"gen/{key}/mask{number}"][0].numpy().astype(bool), values[number])


def generation_about_regions(model: Segmenter, found: Features, inside: Tensor, cells: Tensor, entry: dict) -> None:
    """The official prompt asks about several at once: read as in training, it gives the golden tokens one after the other. We
    ask about each alone, and what is then generated is what reading that prompt gives."""
    assert greedy(model, found, cells, entry["prompt_ids"], entry["generated_ids"]) == entry["generated_ids"]
    for number in range(len(cells)):
        one = cells[number : number + 1]
        text = model.template.image_string(found.visual[0].grid.tokens) + model.region_question(one, prompts.DESCRIBE_PROMPT)
        with outputs(model.vlm.language_model.lm_head) as logits:
            model.describe(found, [inside[number : number + 1]], entry["max_new_tokens"])
        ids = prompts.encode_prompt(model.tokenizer, model.template, text)
        assert greedy(model, found, one, ids, said(logits)) == said(logits)


def greedy(model: Segmenter, found: Features, cells: Tensor, prompt: list[int], answer: list[int]) -> list[int]:
    """The likeliest token at each place of an answer, by the teacher-forced forward."""
    ids = torch.tensor([prompt + answer])
    labels = torch.tensor([[prompts.IGNORE] * len(prompt) + answer])
    with torch.no_grad():
        out = model(found, Conversations(ids, labels, torch.ones_like(ids), [0], [cells]))
    return out.logits.argmax(-1).tolist()


def said(logits: list[Tensor]) -> list[int]:
    """The tokens of a greedy answer, from what the language model's head gave step by step."""
    return [int(step.reshape(-1, step.shape[-1])[-1].argmax()) for step in logits]


def test_public_calls_agree_with_the_parts(golden: GoldenCase, golden_model: Segmenter) -> None:
    """`segment` and `describe` on a batch give the golden answers; the batch changes no answer."""
    refs = [(key, e) for key, e in golden.meta["generation"].items() if key.endswith(":ref")]
    images = [golden.image(entry["image"]) for _, entry in refs]
    prefix, suffix = prompts.SEGMENT_PROMPT.split("{}")
    texts = [[e["text"].removeprefix("<image>\n").removeprefix(prefix).removesuffix(suffix)] for _, e in refs]
    limit = refs[0][1]["max_new_tokens"]
    results = golden_model.segment(images, texts, max_new_tokens=limit)
    for (_, entry), row in zip(refs, results, strict=True):
        assert row[0].answer == entry["prediction"].strip()
        assert len(row[0].masks) == entry["n_masks"]
    alone = [golden_model.segment([image], [text], max_new_tokens=limit)[0][0] for image, text in zip(images, texts, strict=True)]
    assert [row[0].answer for row in results] == [one.answer for one in alone]


def test_describe_asks_for_each_region_alone(golden: GoldenCase, golden_model: Segmenter) -> None:
    for case in CASES:
        if f"{case}/region_masks" in golden.tensors:
            image, regions = golden.image(case), golden[f"{case}/region_masks"].numpy()
            together = golden_model.describe([image, image], [regions, regions[:1]], max_new_tokens=6)
            alone = [golden_model.describe([image], [regions[n : n + 1]], max_new_tokens=6)[0][0] for n in range(len(regions))]
            assert together == [alone, alone[:1]]


def test_to_describe_no_image_is_encoded_for_masks(
    golden: GoldenCase, golden_model: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if f"{case}/region_masks" in golden.tensors)
    image, regions = golden.image(case), golden[f"{case}/region_masks"].numpy()
    shared = golden_model.describe(golden_model.read([image]), [regions], max_new_tokens=6)

    def encode(_: Tensor) -> None:
        raise AssertionError("the mask part encoded an image of which no mask is asked")

    monkeypatch.setattr(golden_model.sam, "encode", encode)
    assert golden_model.describe([image], [regions], max_new_tokens=6) == shared


@pytest.mark.parametrize(
    "name",
    [
        "vlm.vision_model.encoder.layer.0.attention.q_proj.weight",
        "vlm.mlp1.1.weight",
        "vlm.language_model.model.layers.0.mlp.up_proj.weight",
        "text_hidden_fcs.0.weight",
        "sam.model.image_encoder.trunk.blocks.0.attn.qkv.weight",
        "sam.model.sam_mask_decoder.transformer.layers.0.self_attn.v_proj.weight",
    ],
)
@pytest.mark.second
def test_a_perturbed_weight_is_seen(golden: GoldenCase, golden_folder, name: str) -> None:
    """The comparisons above can fail: one changed tensor anywhere moves the masks or the logits out of tolerance."""
    model = Segmenter.from_pretrained(golden_folder)
    weight = model.get_parameter(name)
    weight.data += 0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(AssertionError):
        for case in SEGMENTED:
            test_language_forward(golden, model, case)
            test_sam2_features(golden, model, case)
            test_masks(golden, model, case, "train_pre")


def test_golden_folder_is_complete() -> None:
    for name in ("meta.json", "goldens.safetensors", "hf_state.safetensors", "pth_train_state.safetensors", "tokenizer.json"):
        assert (FOLDER / name).is_file(), f"{FOLDER / name} is missing"
