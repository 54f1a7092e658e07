"""The recipe of the tiny base weights: a model of 3 M parameters from nothing, on the synthetic world, on two CPU cores.

From nothing and jointly, the supervised recipe stays at "everything is foreground". So it is staged: (a) SAM2 alone, told which
object at first by a point, as SAM2 itself was trained, then by a sum of word vectors; (b) the vision-language model alone, on
region captions; (c) both together, the `[SEG]` vector first drawn towards (a)'s word vectors. (a) and (b) run side by side. Last (d) SAM2's
memory, on films, by itself. Every stage saves its state and resumes.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ans.data.mixing import keyed_rng
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.decoders.sam2 import Network
from ans.model.families.sa2va_internvl import InternVL
from ans.model.preprocess import normalise, sam_image
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives.batches import pad_right
from ans.toy import tiny_memory
from ans.toy.expressions import VOCABULARY
from ans.toy.recipe import (
    ALIGN_SHARE,
    LR,
    POINT_SCALE,
    POINT_SHARE,
    POINTS_ONLY,
    SAM2_LR_SCALE,
    SEED,
    WORLD,
    TrainingScene,
    bag_of_words,
    grid_of,
    load_scenes,
    mask_loss,
    run_stage,
    sam_loss,
    trained,
    waves,
    word_vectors,
)

STEPS = {"sam2": 4500, "vlm": 3000, "joint": 3000, "memory": 300}
TILE, PATCH, SIDE = 96, 8, 128
"""Pixels along a side of the vision encoder's image, of its patches, and of SAM2's image."""
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "[SEG]", "<p>", "</p>", "<vp>", "</vp>")


def tokenizer() -> PreTrainedTokenizerFast:
    """Return one token per word of the prompts and of the world; text comes back with single spaces."""
    regions = prompts.TEMPLATES["qwen_chat"].region_string([0] * 5, "")
    texts = [*prompts.SEG_QUESTIONS, *prompts.SEG_ANSWERS, *prompts.DESCRIBE_PROMPTS, regions]
    texts += ["user assistant", *VOCABULARY]
    for special in _SPECIAL:
        texts = [text.replace(special, " ") for text in texts]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *words])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    model.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    model.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>")


def config(vocabulary: int) -> dict[str, object]:
    """Return the tiny model's `config.json`: the official keys, with sizes that were tried (about 3 M parameters)."""
    return {
        "model_type": "sa2va_chat",
        "template": "qwen_chat",
        "select_layer": -1,
        "ps_version": "v2",
        "force_image_size": TILE,
        "downsample_ratio": 0.5,
        "dynamic_image_size": False,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 1,
        "tie_word_embeddings": False,
        "vision_config": {
            "model_type": "intern_vit_6b",
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
        },
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "vocab_size": vocabulary,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
        "sam2_config": {
            "image_size": SIDE,
            "embed_dim": 16,
            "num_heads": 1,
            "stages": [1, 1, 2, 1],
            "global_att_blocks": [3],
            "window_pos_embed_bkg_spatial_size": [4, 4],
            "window_spec": [8, 4, 4, 2],
            "d_model": 128,
            "memory_dim": 16,
            "memory_feedforward": 64,
            "memory_layers": 1,
        },
    }


def new_model() -> Segmenter:
    """Return random weights of the right scale: with default ones, a language vector drowns in SAM2's two-way transformer."""
    torch.manual_seed(SEED)
    words = tokenizer()
    model = Segmenter(ModelConfig.from_dict(config(len(words))), words)
    assert isinstance(model.vlm, InternVL) and isinstance(model.sam, Network)
    vision = model.vlm.vision_model
    nn.init.normal_(vision.embeddings.cls_token, std=0.02)
    places = vision.embeddings.position_embeddings
    assert places is not None
    with torch.no_grad():
        places[0, 1:] = waves(TILE // PATCH, 64)
    for name, parameter in vision.named_parameters():
        if ".lambda_" in name:
            nn.init.ones_(parameter)
    with torch.no_grad():
        for module in model.sam.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                module.weight.mul_(1.3)
        # No loss trains the IoU head, so it is told to choose the first of the three masks.
        last = model.sam.model.sam_mask_decoder.iou_prediction_head.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 4.0, -4.0, -4.0]))
    return model


def prepare(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the image as the vision encoder and as SAM2 sees it."""
    return np.asarray(sam_image(image, TILE)), np.asarray(sam_image(image, SIDE))


def point_prompts(model: Segmenter, centres: Tensor) -> Tensor:
    """Map (N, 2) points in fractions of the image to (N, D) language vectors that mean "the object here"."""
    assert isinstance(model.sam, Network)
    encoding = model.sam.model.sam_prompt_encoder.pe_layer
    return POINT_SCALE * encoding.forward_with_coords(centres[:, None] * SIDE, (SIDE, SIDE))[:, 0]


def _pixels(arrays: list[np.ndarray]) -> Tensor:
    return normalise([Image.fromarray(array) for array in arrays])


def _caption_row(
    model: Segmenter, place: int, scene: TrainingScene, number: int, rng: np.random.Generator
) -> tuple[int, prompts.Turn, Tensor]:
    cells = scene.cells[number][None]
    question = prompts.DESCRIBE_PROMPTS[rng.integers(len(prompts.DESCRIBE_PROMPTS))]
    text = model.template.image_string(cells[0].numel()) + model.region_question(cells, question)
    return place, prompts.Turn(text, scene.captions[number]), cells


def _forward_rows(
    model: Segmenter, tiles: list[np.ndarray], rows: list[tuple[int, prompts.Turn, Tensor | None]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean language loss, `[SEG]` vectors and their images, for single-turn rows (image, turn, region cells)."""
    encoded = [prompts.encode_conversation(model.tokenizer, model.template, [turn]) for _, turn, _ in rows]
    ids, labels, attention = pad_right(encoded)
    batch = Conversations(ids, labels, attention, [i for i, _, _ in rows], [cells for _, _, cells in rows])
    features = Features(model.vlm.encode(_pixels(tiles), [grid_of(model)] * len(tiles)), (), [])
    out = model(features, batch)
    return out.language_loss / len(out.labels), out.seg_embeds, out.seg_image


def vlm_loss(model: Segmenter, scenes: list[TrainingScene], rng: np.random.Generator) -> Tensor:
    """Return the loss of stage (b): 16 images, up to 3 region captions of each."""
    chosen = [scenes[i] for i in rng.choice(len(scenes), 16, replace=False)]
    rows: list[tuple[int, prompts.Turn, Tensor | None]] = []
    for place, scene in enumerate(chosen):
        for number in rng.permutation(len(scene.captions))[:3]:
            rows.append(_caption_row(model, place, scene, int(number), rng))
    return _forward_rows(model, [scene.tile for scene in chosen], rows)[0]


def joint_loss(
    model: Segmenter, bag: nn.EmbeddingBag, scenes: list[TrainingScene], rng: np.random.Generator, align: float
) -> Tensor:
    """Return the loss of stage (c): 12 images, up to 4 segmentation rows and one caption of each; `align` weighs the pull to the word
    vectors."""
    chosen = [scenes[i] for i in rng.choice(len(scenes), 12, replace=False)]
    rows: list[tuple[int, prompts.Turn, Tensor | None]] = []
    texts, targets = [], []
    image = model.template.image_string(grid_of(model).tokens)
    for place, scene in enumerate(chosen):
        order = rng.permutation(len(scene.captions))
        for number in order[:4]:
            text = scene.expressions[number][rng.integers(len(scene.expressions[number]))]
            question = prompts.SEG_QUESTIONS[rng.integers(len(prompts.SEG_QUESTIONS))].format(text)
            answer = prompts.SEG_ANSWERS[rng.integers(len(prompts.SEG_ANSWERS))]
            rows.append((place, prompts.Turn(image + question, answer), None))
            texts.append(text)
            targets.append(scene.targets[number])
        rows.append(_caption_row(model, place, scene, int(order[0]), rng))
    language, seg_embeds, seg_image = _forward_rows(model, [scene.tile for scene in chosen], rows)
    levels = model.sam.encode(_pixels([scene.sam for scene in chosen]))
    masks = model.sam.decode(model.sam.project(levels), seg_image, seg_embeds)
    loss = mask_loss(masks.low_res, torch.stack(targets)) + language
    if align:
        with torch.no_grad():
            goal = word_vectors(bag, model, texts)
        loss = loss + align * F.mse_loss(seg_embeds, goal)
    return loss


_UNUSED = (
    r"memory|mask_downsample|no_obj_ptr|obj_ptr_proj|no_mem_pos_enc|maskmem|iou_prediction_head|pred_obj_score_head|point_embed"
)


def stage(name: str, root: Path, folder: Path) -> None:
    """Run one stage; `joint` starts from what the first two left in `folder`, `memory` from what `joint` did."""
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model()
    if name == "memory":
        model.load_state_dict(torch.load(folder / "joint.pt", weights_only=True)["modules"]["model"])
        films = tiny_memory.load_films(model.eval(), WORLD.seed)
        groups = [{"params": tiny_memory.prepare(model, films), "lr": tiny_memory.LR}]
        limit = tiny_memory.GIVEN * STEPS[name]
        run_stage(
            name, STEPS[name], {"model": model}, groups,
            lambda step: tiny_memory.memory_loss(model, films, keyed_rng(SEED, 4, step), step < limit), folder, save_every=50,
        )  # fmt: skip
        return
    scenes = load_scenes(root, "train", model.config, prepare)
    bag = bag_of_words(model)
    if name == "sam2":
        groups = [{"params": [*trained(model.sam, _UNUSED), *bag.parameters()]}]
        modules = {"sam": model.sam, "bag": bag}

        def loss_at(step: int) -> Tensor:
            share = 1.0 if step < POINTS_ONLY * STEPS["sam2"] else POINT_SHARE
            return sam_loss(model, bag, scenes, keyed_rng(SEED, 1, step), share, partial(point_prompts, model), _pixels)

        run_stage(name, STEPS[name], modules, groups, loss_at, folder)
    elif name == "vlm":
        groups = [{"params": list(model.vlm.parameters())}]
        run_stage(name, STEPS[name], {"vlm": model.vlm}, groups, lambda s: vlm_loss(model, scenes, keyed_rng(SEED, 2, s)), folder)
    else:
        for part, key, module in (("sam2", "sam", model.sam), ("sam2", "bag", bag), ("vlm", "vlm", model.vlm)):
            module.load_state_dict(torch.load(folder / f"{part}.pt", weights_only=True)["modules"][key])
        groups = [
            {"params": [*model.vlm.parameters(), *model.text_hidden_fcs.parameters()]},
            {"params": list(trained(model.sam, _UNUSED)), "lr": LR * SAM2_LR_SCALE},
        ]
        limit = ALIGN_SHARE * STEPS["joint"]

        def loss_at(step: int) -> Tensor:
            return joint_loss(model, bag, scenes, keyed_rng(SEED, 3, step), max(0.0, 1 - step / limit))

        run_stage(name, STEPS[name], {"model": model}, groups, loss_at, folder)
