"""Sa2VA on Qwen3-VL and on Qwen2.5-VL: every intermediate of the official code, from pixels to masks, gradients and merged weights.

The official inference rounds an image to whole cells of 28 pixels before its processor resizes it again; the official training resizes
once, as we do everywhere. So the numbers of inference are compared on pixels that were resized twice.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from ans.checkpoints.convert import convert
from ans.config.schema import Convert, LoraSize
from ans.model import prompts
from ans.model.adapters import add_lora, select_trained
from ans.model.config import ModelConfig
from ans.model.family import Grid, Inputs, Pixels, States
from ans.model.generate import pad_left
from ans.model.modules import Features
from ans.model.segmenter import Conversations, Segmenter
from tests.golden_case import GoldenSet, given_to, hf_pixels, outputs, same_masks

pytestmark = pytest.mark.usefixtures("as_recorded")

SETS = {name: GoldenSet(name) for name in ("sa2va_qwen3vl", "sa2va_qwen25vl")}
CASES = [(name, case) for name, golden in SETS.items() for case in sorted(golden.meta["cases"])]
VALUE, LOGIT = 1e-4, 1e-3
TRAINED = ("lora", "embed_head", "fcs", "sam2_decoder")
"""What the official recipe trains."""


def close(ours: Tensor, golden: Tensor, tolerance: float = VALUE) -> None:
    assert ours.shape == golden.shape
    torch.testing.assert_close(ours.float(), golden, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: golden.write_model(tmp_path_factory.mktemp(name) / "hf") for name, golden in SETS.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Segmenter]:
    return {name: Segmenter.from_pretrained(folder) for name, folder in folders.items()}


@dataclass(frozen=True)
class Seen:
    """A case as the official inference sees it."""

    golden: GoldenSet
    case: str
    model: Segmenter

    @property
    def entry(self) -> dict[str, Any]:
        return self.golden.meta["cases"][self.case]

    def __getitem__(self, key: str) -> Tensor:
        return self.golden[f"{self.case}/{key}"]

    def masks(self, pixels: str) -> list[int]:
        """The numbers of the `[SEG]`s whose masks the folder has, of `pixels` hf_pre or train_pre."""
        prefix = f"{pixels}/seg"
        found = [int(key.removeprefix(prefix)) for key in self.entry if key.startswith(prefix)]
        assert found or not self.entry["n_masks"]
        return found

    def has(self, key: str) -> bool:
        return f"{self.case}/{key}" in self.golden.tensors

    @property
    def image(self) -> Image.Image:
        return self.golden.image(self.case)

    @property
    def pixels(self) -> Pixels:
        """Of the image that was rounded to whole cells of 28 pixels first."""
        rounded = self.image.resize(tuple(self.entry["size_after_first_resize_w_h"]), Image.Resampling.BICUBIC)
        return self.model.config.family.pixels(rounded)

    def features(self, official: bool = True) -> Features:
        """`official`: SAM2's pixels too as the official inference makes them."""
        sam, size = self.model.config.decoder.pixels(self.image), (self.image.height, self.image.width)
        return self.model.encode_pixels([self.pixels], (hf_pixels(sam) if official else sam)[None], [size])

    @property
    def question(self) -> str:
        return self.entry["text"].removeprefix("<image>\n")

    def run(self, ids: Tensor) -> tuple[Inputs, States]:
        """The language model on `ids` (1, L), which begin with the prompt."""
        found = self.features()
        mask = torch.ones_like(ids)
        with torch.no_grad():
            positions = self.model.vlm.positions(ids, mask, [one.grid for one in found.visual])
            inputs = self.model.inputs(ids, mask, positions, [[level.flatten(0, 1) for level in found.visual[0].levels]])
            return inputs, self.model.vlm.run(inputs)


def grid_of(model: Segmenter, patches: Tensor) -> Grid:
    """The cells of an image from its number of frames, rows and columns of patches."""
    merged = model.config.family.vision.spatial_merge_size
    frames, rows, columns = patches.tolist()
    assert frames == 1
    return Grid(1, rows // merged, columns // merged)


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def seen(request: pytest.FixtureRequest, models: dict[str, Segmenter]) -> Seen:
    name, case = request.param
    return Seen(SETS[name], case, models[name])


each_set = pytest.mark.parametrize("name", SETS)


# ---------------------------------------------------------------------------------------------------------------------- pixels


@each_set
def test_grids_at_the_official_limits(name: str) -> None:
    """The table's image sizes, of which some were drawn to have odd shapes: resized once, and twice."""
    golden = SETS[name]
    family = ModelConfig.from_dict({k: v for k, v in golden.config.items() if k not in ("min_pixels", "max_pixels")}).family
    (table,) = (rows for key, rows in golden.meta.items() if key.startswith("grid_table_real_limits"))
    merged = family.vision.spatial_merge_size
    assert len(table) > 10
    for width, height, *once, first_width, first_height, twice_rows, twice_columns in table:
        for size, patches in (((height, width), once), ((first_height, first_width), [twice_rows, twice_columns])):
            grid = family.grid(*size)
            assert [merged * grid.rows, merged * grid.columns] == patches, (width, height)
    assert family.grid(375, 500).tokens == golden.meta["real_limits_500x375"]["n_tokens"]


def patches_of(model: Segmenter, raw: Tensor) -> Tensor:
    """Patches of grey levels, normalised."""
    family = model.config.family
    mean, std = (torch.tensor(values)[:, None] for values in (family.mean, family.std))
    return ((raw.float() / 255).unflatten(1, (3, -1)) - mean).div(std).flatten(1)


def test_patches_and_pixels(seen: Seen) -> None:
    family, image = seen.model.config.family, seen.image
    assert [image.width, image.height] == seen.entry["size_w_h"]
    once = family.pixels(image)
    assert once.grid == family.grid(image.height, image.width) == grid_of(seen.model, seen["train_grid_thw"][0])
    close(once.values, patches_of(seen.model, seen["train_patches_u8"]), 1e-6)
    twice = seen.pixels
    assert twice.grid == grid_of(seen.model, seen["grid_thw"][0]) and twice.grid.tokens == seen.entry["n_image_tokens"]
    close(twice.values, patches_of(seen.model, seen["patches_u8"]), 1e-6)
    if seen.has("pixel_values_first16"):
        with given_to(seen.model.vlm.visual.patch_embed) as pixels, torch.no_grad():
            seen.model.vlm.encode(twice.values, [twice.grid])
        close(pixels[0][:16], seen["pixel_values_first16"], 1e-6)


@each_set
def test_normalisation_is_the_processors(name: str) -> None:
    values = json.loads((SETS[name].folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    family = ModelConfig.from_dict(SETS[name].config).family
    assert (list(family.mean), list(family.std)) == (values["image_mean"], values["image_std"])
    assert (family.vision.patch_size, family.vision.spatial_merge_size) == (values["patch_size"], values["merge_size"])


# ---------------------------------------------------------------------------------------------------------------------- vision


def test_vision_features(seen: Seen) -> None:
    pixels, vlm = seen.pixels, seen.model.vlm
    with outputs(vlm.visual.blocks[-1]) as last, torch.no_grad():
        (features,) = vlm.encode(pixels.values, [pixels.grid])
        close(vlm.project(features.tokens[0]), seen["vision_merged"])
    close(last[0], seen["vision_last_block"])
    deep = sorted(key for key in seen.golden.tensors if key.startswith(f"{seen.case}/deepstack"))
    assert len(deep) == len(features.deep) == len(getattr(seen.model.config.family.vision, "deepstack_visual_indexes", ()))
    for number, level in enumerate(features.deep):
        close(level[0], seen[f"deepstack{number}"])
    if seen.has("window_index"):
        vision = seen.model.config.family.vision
        index, ends = get_vision_window_index(seen["grid_thw"], vision.spatial_merge_size, vision.window_size, vision.patch_size)
        assert index.tolist() == seen["window_index"].tolist()
        assert ends.tolist() == seen["cu_window_seqlens"].unique_consecutive().tolist()  # empty windows too, in the official list


def test_images_of_several_shapes_are_encoded_together(models: dict[str, Segmenter]) -> None:
    for name, golden in SETS.items():
        images = [golden.image(case) for case in sorted(golden.meta["cases"])]
        together = models[name].encode_images(images).visual
        assert [one.grid for one in together] == [
            grid_of(models[name], golden[f"{case}/train_grid_thw"][0]) for case in sorted(golden.meta["cases"])
        ]
        for image, one in zip(images, together, strict=True):
            (alone,) = models[name].encode_images([image]).visual
            for ours, its in zip(one.levels, alone.levels, strict=True):
                torch.testing.assert_close(ours, its, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------------- language


def test_prompt(seen: Seen) -> None:
    template, grid = seen.model.template, seen.pixels.grid
    text = template.image_string(grid.tokens) + seen.question
    assert template.image_string(1) + seen.question in seen.entry["prompt"]
    assert prompts.encode_prompt(seen.model.tokenizer, template, text) == seen["input_ids"][0].tolist()
    assert len(seen["input_ids"][0]) == seen.entry["n_prompt"]
    before, after = prompts.SEGMENT_PROMPT.split("{}")
    assert seen.question.startswith(before) and seen.question.endswith(after)


def test_positions(seen: Seen) -> None:
    grids = [seen.pixels.grid]
    for ids, golden in ((seen["input_ids"], "position_ids"), (seen["full_ids"][None], "full_position_ids")):
        ours = seen.model.vlm.positions(ids, torch.ones_like(ids), grids)
        assert torch.equal(ours, seen[golden])
    ours = seen.model.vlm.positions(seen["input_ids"], torch.ones_like(seen["input_ids"]), grids)
    assert int(ours.max()) + 1 - ours.shape[-1] == int(seen["rope_delta"]) == seen.entry["rope_delta"]


@each_set
@pytest.mark.parametrize("part", ["left", "train"])
def test_positions_of_a_padded_batch(models: dict[str, Segmenter], name: str, part: str) -> None:
    golden, model = SETS[name], models[name]
    if part == "train":
        grids = [grid_of(model, row) for row in golden["train/grid_thw"]]
    else:
        grids = [Seen(golden, case, model).pixels.grid for case in golden.meta["cases"]]
    mask = golden[f"{part}/attention_mask"].long()
    ours, there = model.vlm.positions(golden[f"{part}/input_ids"], mask, grids), mask.bool()
    assert torch.equal(ours[:, there], golden[f"{part}/position_ids"][:, there])
    deltas = ours.amax((0, 2)) + 1 - mask.shape[1]  # the official length is the batch's
    assert deltas.tolist() == golden[f"{part}/rope_delta"][:, 0].tolist()


def test_language_forward(seen: Seen) -> None:
    ids = seen["full_ids"][None]
    _, states = seen.run(ids)
    with torch.no_grad():
        logits = seen.model.vlm.language_model.lm_head(states.normed)[0]
        close(states.seg[0], seen["last_hidden_state"])
        close(states.normed[0], seen["normed_hidden_state"] if seen.has("normed_hidden_state") else seen["last_hidden_state"])
        close(logits[-len(seen["logits_last32"]) :], seen["logits_last32"], LOGIT)
        # a [SEG] that is the last token was never an input
        place = (ids[0, :-1] == seen.model.seg_token).nonzero()[:, 0]
        place = place[place >= seen.entry["n_prompt"]]
        assert len(place) == seen.entry["n_masks"]
        if len(place):
            close(states.seg[0, place], seen["seg_hidden"])
            close(seen.model.seg_embed(states.seg[0, place]), seen["seg_embeds"])


@each_set
def test_a_left_padded_batch(models: dict[str, Segmenter], name: str) -> None:
    golden, model = SETS[name], models[name]
    cases = [Seen(golden, case, model) for case in golden.meta["cases"]]
    ids, mask = pad_left([one["input_ids"][0].tolist() for one in cases])
    assert torch.equal(mask, golden["left/attention_mask"])
    visual = [one.features().visual[0] for one in cases]
    positions = model.vlm.positions(ids, mask, [one.grid for one in visual])
    with torch.no_grad():
        inputs = model.inputs(ids, mask, positions, [[level.flatten(0, 1) for level in one.levels] for one in visual])
        logits = model.vlm.language_model.lm_head(model.vlm.run(inputs).normed[:, -1])
    close(logits, golden["left/last_logits"], LOGIT)


# ------------------------------------------------------------------------------------------------------- generation and masks


def test_generation(seen: Seen) -> None:
    """A prompt whose beginning is shared, continued step by step from the cache, against the official greedy answer."""
    model, entry, limit = seen.model, seen.entry, len(seen.entry["generated_ids"])
    before, after = prompts.SEGMENT_PROMPT.split("{}")
    expression = seen.question.removeprefix(before).removesuffix(after)
    with outputs(model.vlm.language_model.lm_head) as logits, given_to(model.text_hidden_fcs) as states:
        (answer,) = model.segment(seen.features(), [[expression]], limit)[0]
    steps = torch.cat(logits)
    assert steps.argmax(-1).tolist() == entry["generated_ids"]
    close(steps, seen["step_logits"], LOGIT)
    assert answer.answer == entry["prediction"].strip() and len(answer.masks) == entry["n_masks"]
    if entry["n_masks"]:
        close(torch.cat(states), seen["seg_hidden"])
    with torch.no_grad():
        embeds = model.seg_embed(torch.cat(states)) if states else torch.zeros(0, model.config.decoder.width)
        low_res = model.masks(seen.features(), torch.zeros(len(embeds), dtype=torch.long), embeds).low_res
        upscaled = model.upscale(low_res, (seen.image.height, seen.image.width)).numpy()
    known = [f"hf_pre/seg{number}/mask_bool" for number in seen.masks("hf_pre")]
    for number, mask in enumerate(answer.masks):
        for golden in (f"predict_mask{number}", f"hf_pre/seg{number}/mask_bool"):
            if golden in known or golden.startswith("predict"):
                assert same_masks(mask, seen[golden][0].numpy().astype(bool), upscaled[number])


@pytest.mark.parametrize("pixels", ["hf_pre", "train_pre"])
def test_masks(seen: Seen, pixels: str) -> None:
    embeds = seen["seg_embeds"]
    with torch.no_grad():
        masks = seen.model.masks(seen.features(official=pixels == "hf_pre"), torch.zeros(len(embeds), dtype=torch.long), embeds)
        upscaled = seen.model.upscale(masks.low_res, (seen.image.height, seen.image.width))
    for number in seen.masks(pixels):
        key = f"{pixels}/seg{number}"
        close(masks.low_res[number][None, None], seen[f"{key}/low_res_masks"], LOGIT)
        close(masks.ious[number][None], seen[f"{key}/ious"])
        ours = (upscaled[number] > 0).numpy()
        assert same_masks(ours, seen[f"{key}/mask_bool"][0].numpy().astype(bool), upscaled[number].numpy())


@each_set
def test_public_calls_agree_with_the_parts(models: dict[str, Segmenter], name: str) -> None:
    """Several images of several shapes, several questions each, with shared beginnings, against one by one."""
    golden, model = SETS[name], models[name]
    images = [golden.image(case) for case in golden.meta["cases"]]
    texts = [["the small red circle", "cup"], *[["the left black dog"]] * (len(images) - 1)]
    with given_to(model.text_hidden_fcs) as batched:
        together = model.segment(images, texts, 14)
    alone = [[model.segment([image], [[text]], 14)[0][0] for text in row] for image, row in zip(images, texts, strict=True)]
    assert [[one.answer for one in row] for row in together] == [[one.answer for one in row] for row in alone]
    assert batched and len({one.answer for row in together for one in row}) > 1
    # a given answer, continued from a shared beginning, against one whole forward that is padded on the right
    answer = "Sure, [SEG]."
    features, rows = model.encode_images(images), [(i, text) for i, row in enumerate(texts) for text in row]
    with given_to(model.text_hidden_fcs) as given:
        model.segment_given(features, texts, answer)
    encoded = []
    for i, text in rows:
        question = model.template.image_string(features.visual[i].grid.tokens) + model.template.segment_question(text)
        said = model.tokenizer.encode(answer, add_special_tokens=False)
        encoded.append(prompts.encode_prompt(model.tokenizer, model.template, question) + said)
    length = max(map(len, encoded))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in encoded])
    labels = torch.full_like(ids, prompts.IGNORE)
    with torch.no_grad(), given_to(model.text_hidden_fcs) as whole:
        model(features, Conversations(ids, labels, mask, [i for i, _ in rows], [None] * len(rows)))
    close(torch.cat(given), torch.cat(whole))
    with pytest.raises(ValueError, match="Sa2VA on Qwen.* was not trained to describe regions"):
        model.describe(images, [torch.ones(1, *image.size[::-1]) for image in images])


# -------------------------------------------------------------------------------------------------------------------- training


@cache
def trained_state(name: str) -> dict[str, Tensor]:
    return SETS[name].state("pth_train_state")


def with_lora(folder: Path, name: str) -> tuple[Segmenter, dict[str, torch.nn.Parameter]]:
    """The model with LoRA of the official checkpoint, not merged, and its trained tensors by the official names."""
    lora = SETS[name].meta["train"]["lora"]
    model = Segmenter.from_pretrained(folder)
    add_lora(model, lora["r"], lora["alpha"], 0.0, 0)
    keys = model.config.keys
    trained = {keys.trained_name(own): tensor for own, tensor in select_trained(model, TRAINED).items()}
    for key, tensor in trained.items():
        tensor.data.copy_(trained_state(name)[key])
    return model, trained


@each_set
def test_the_trained_tensors_are_the_official_ones(folders: dict[str, Path], name: str) -> None:
    golden, (model, trained) = SETS[name], with_lora(folders[name], name)
    keys = model.config.keys
    official = set(golden.meta["pth_keys"])
    assert official == trained_state(name).keys()
    hf = {key: keys.checkpoint_to_hf_name(key.replace(".lora_A.default.", ".")) for key in official if ".lora_B." not in key}
    assert trained.keys() == {key for key in official if ".lora_" in key or keys.reached(hf[key])}
    inside = {f"mllm.model.{key}" for key in golden.meta["train"]["trainable"]}
    assert inside == {key for key in trained if key.startswith("mllm.")}
    adapted = {key.split(".lora_A.")[0] for key in inside if ".lora_A." in key}
    wanted = golden.meta["train"]["lora"]["targets"]
    assert adapted == {f"mllm.model.base_model.model.model.{target}" for target in wanted}


@each_set
def test_a_training_step(folders: dict[str, Path], name: str) -> None:
    """The official loss and its gradients, at LoRA, at the two tables and at `text_hidden_fcs`."""
    golden, (model, trained) = SETS[name], with_lora(folders[name], name)
    facts, ids, mask = golden.meta["train"], golden["train/input_ids"], golden["train/attention_mask"].long()
    images = [golden.image(case) for case in golden.meta["cases"]]
    found = model.encode_images(images)
    assert [one.grid for one in found.visual] == [grid_of(model, row) for row in golden["train/grid_thw"]]
    template, tokenizer = model.template, model.tokenizer
    for row, visual in enumerate(found.visual):  # as our own training writes it
        whole = tokenizer.decode(ids[row][mask[row].bool()].tolist(), skip_special_tokens=False)
        question = whole.split(template.image_end)[1].split(template.suffix)[0].removeprefix("\n")
        said = tokenizer.decode([i for i in golden["train/labels"][row].tolist() if i >= 0], skip_special_tokens=False)
        turn = prompts.Turn(
            template.image_string(visual.grid.tokens) + question, said.removesuffix(template.suffix), separated=True
        )
        ours, labels = prompts.encode_conversation(tokenizer, template, [turn])
        assert ours == ids[row][mask[row].bool()].tolist()
        assert labels == golden["train/labels"][row][mask[row].bool()].tolist()

    batch = Conversations(ids, golden["train/labels"], mask, list(range(len(ids))), [None] * len(ids))
    with given_to(model.text_hidden_fcs) as given, given_to(model.vlm.language_model.model.norm) as before:
        out = model(found, batch)
    close(given[0], golden["train/seg_hidden"])
    close(out.seg_embeds, golden["train/seg_embeds"])
    read_before = not golden.meta["hidden_states[-1] equals the normed state"]
    there = mask.bool()
    close((before[0] if read_before else out.hidden)[there], golden["train/last_hidden_state"][there])
    language = out.language_loss / len(out.labels)
    close(language[None], golden["train/llm_loss"])
    loss = language + out.seg_embeds.square().mean()
    assert loss.item() == pytest.approx(facts["total"], rel=1e-5, abs=VALUE)
    loss.backward()
    for key, norm in facts["grad_norms"].items():
        gradient = trained[f"mllm.model.{key}"].grad
        assert gradient is not None and gradient.norm().item() == pytest.approx(norm, rel=1e-4), key
    stored = [key for key in golden.tensors if key.startswith("train/grad/")]
    assert len(stored) > 4
    for key in stored:
        gradient = trained[key.removeprefix("train/grad/")].grad
        assert gradient is not None
        torch.testing.assert_close(gradient, golden[key], rtol=1e-4, atol=VALUE)  # as large as the tuned rows are


@each_set
@pytest.mark.second
def test_merging(folders: dict[str, Path], models: dict[str, Segmenter], tmp_path: Path, name: str) -> None:
    """The official checkpoint on its base, as the official tool merges it; what comes out says what the adapters said."""
    golden, lora = SETS[name], SETS[name].meta["train"]["lora"]
    base, out, path = tmp_path / "base", tmp_path / "out", tmp_path / "trained.pth"
    models[name].save_pretrained(base)
    torch.save({"state_dict": trained_state(name)}, path)
    settings = Convert(
        source=str(path), under=None, groups=TRAINED, lora=LoraSize(rank=lora["r"], alpha=lora["alpha"], rslora=False),
        precision="float32",
    )  # fmt: skip
    convert(settings, base, out)
    made = {key: tensor for file in out.glob("*.safetensors") for key, tensor in load_file(file).items()}
    expected = golden.state("hf_state") | golden.state("merged_changed")
    assert made.keys() == expected.keys() >= golden.meta["hf_keys"].keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(made[key], tensor, rtol=0, atol=1e-6, msg=key)
    merged, (unmerged, _) = Segmenter.from_pretrained(out), with_lora(folders[name], name)
    images = [golden.image(case) for case in golden.meta["cases"]]
    ids, mask = golden["train/input_ids"], golden["train/attention_mask"].long()
    batch = Conversations(ids, golden["train/labels"], mask, list(range(len(ids))), [None] * len(ids))
    with torch.no_grad():
        ours, theirs = (model.eval()(model.encode_images(images), batch) for model in (merged, unmerged))
    close(ours.hidden[mask.bool()], theirs.hidden[mask.bool()])
    loss = (ours.language_loss / len(ours.labels)).item()
    assert loss == pytest.approx(golden.meta["train"]["merged_loss"], rel=1e-5, abs=VALUE)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Sa2VAChatModelQwen"]
    kind = {"sa2va_qwen3vl": "Qwen3-VL", "sa2va_qwen25vl": "Qwen2_5-VL"}[name]
    assert config["auto_map"]["AutoModel"].startswith(f"ByteDance/Sa2VA-{kind}-")


# ---------------------------------------------------------------------------------------------------------------- it can fail


@each_set
@pytest.mark.parametrize(
    "part",
    [
        "vlm.visual.patch_embed.proj.weight",
        "vlm.visual.blocks.0.attn.qkv.weight",
        "vlm.visual.merger",
        "vlm.visual.deepstack_merger_list.0.linear_fc2.weight",
        "vlm.visual.pos_embed.weight",
        "vlm.language_model.model.layers.0.self_attn.q_proj.weight",
        "vlm.language_model.model.embed_tokens.weight",
        "vlm.language_model.model.norm.weight",
        "vlm.language_model.lm_head.weight",
        "text_hidden_fcs.0.weight",
        "sam.model.image_encoder.trunk.blocks.0.attn.qkv.weight",
        "sam.model.sam_mask_decoder.transformer.layers.0.self_attn.v_proj.weight",
    ],
)
@pytest.mark.second
def test_a_perturbed_weight_is_seen(folders: dict[str, Path], name: str, part: str) -> None:
    model, golden = Segmenter.from_pretrained(folders[name]), SETS[name]
    found = [tensor for own, tensor in model.named_parameters() if own.startswith(part)]
    if not found:
        assert name == "sa2va_qwen25vl" and ("deepstack" in part or "pos_embed" in part), "this family has no such part"
        return
    for weight in found:
        weight.data += 0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(AssertionError):
        for case in golden.meta["cases"]:
            one = Seen(golden, case, model)
            test_vision_features(one)
            test_language_forward(one)
            test_masks(one, "train_pre")


@pytest.mark.parametrize("name", SETS)
def test_what_would_change_results_is_refused(name: str) -> None:
    config = SETS[name].config
    for change, message in (
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "text_config.rope_scaling: 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "text_config.rope_parameters: 'yarn'"),
        ({"use_sliding_window": True, "sliding_window": 16}, "text_config.use_sliding_window: true"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "text_config.layer_types: 'sliding_attention'"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_dict(config | {"text_config": config["text_config"] | change})
