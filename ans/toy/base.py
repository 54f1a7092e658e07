"""The recipe of the tiny base weights: a model of 3 M parameters from nothing, on the synthetic world, on two CPU cores.

From nothing and jointly, the supervised recipe stays at "everything is foreground". So it is staged: (a) SAM2 alone, told which
object at first by a point, as SAM2 itself was trained, then by a sum of word vectors; (b) the vision-language model alone, on
region captions; (c) both together, the `[SEG]` vector first drawn towards (a)'s word vectors. (a) and (b) run side by side. Every
stage saves its state and resumes.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ans.config.schema import World
from ans.data.matching import record_image, region_mask
from ans.data.mixing import keyed_rng
from ans.data.records import ImageRecord, Region
from ans.data.sources import refcoco
from ans.data.sources.common import read
from ans.evaluation.metrics import intersection_union
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.decoders.sam2 import Network
from ans.model.families.sa2va_internvl import InternVL
from ans.model.family import Grid
from ans.model.preprocess import normalise, sam_image
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.model.visual_prompt import region_cells
from ans.objectives import mask
from ans.objectives.batches import pad_right
from ans.toy.world import VOCABULARY, write_world
from ans.training.schedule import lr_factor

WORLD = World(
    seed=2024,
    train_images=4000,
    val_images=256,
    test_images=1,
    sa1b_images=1,
    sav_pairs=1,
    openimages_images=1,
    describe_images=1,
    reasonseg_images=4,
    shift=0.0,
)
SOURCES = {"refcoco": "ref_seg/refcoco", "refcoco_plus": "ref_seg/refcoco+", "refcocog": "ref_seg/refcocog"}
SEED = 17
STEPS = {"sam2": 4500, "vlm": 3000, "joint": 3000}
LR = 1e-3
POINT_SCALE = 3.0  # a prompt's standard deviation is then about 2; smaller ones drown in SAM2's two-way transformer
POINT_NOISE = 0.03  # standard deviation of the points around the object's centre, in fractions of the image
POINTS_ONLY = 0.2  # of stage (a)'s steps; words alone, from the start, take four times as long to find objects at all
POINT_SHARE = 0.15  # of the prompts afterwards
ALIGN_SHARE = 0.25  # of the joint steps in which the `[SEG]` vector is drawn towards the word vectors, ever less
SAM2_LR_SCALE = 0.2  # at the full rate the decoder unlearns while the `[SEG]` vectors are still noise
TILE, PATCH, SIDE = 96, 8, 128
"""Pixels along a side of the vision encoder's image, of its patches, and of SAM2's image."""

_SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "[SEG]", "<p>", "</p>", "<vp>", "</vp>")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the prompts and of the world; text comes back with single spaces."""
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
    """The tiny model's `config.json`: the official keys, with sizes that were tried (about 3 M parameters)."""
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
    """Random weights of the right scale: with default ones, a language vector drowns in SAM2's two-way transformer."""
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


Prepare = Callable[[Image.Image], tuple[np.ndarray, np.ndarray]]


def prepare(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The image as the vision encoder and as SAM2 sees it."""
    return np.asarray(sam_image(image, TILE)), np.asarray(sam_image(image, SIDE))


def waves(side: int, width: int) -> Tensor:
    """(side * side, width) sines and cosines of a cell's x and y, about as large as the embeddings of patches."""
    frequencies = torch.pi * 2.0 ** torch.linspace(-1, 2, width // 4)
    angles = ((torch.arange(side) + 0.5) / side)[:, None] * frequencies
    axis = 0.7 * torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)], dim=-1).flatten(0, 1)


@dataclass(frozen=True)
class Scene:
    """One image of the base's world in memory: pixels as uint8 RGB, and per object its mask, its centre (x, y in fractions of the
    mask part's square), its cells of the region grid, its expressions and its caption."""

    tile: np.ndarray
    sam: np.ndarray
    targets: Tensor
    centres: Tensor
    cells: Tensor
    expressions: list[list[str]]
    captions: list[str]


def load_scenes(root: Path, split: str, model: ModelConfig, prepare: Prepare) -> list[Scene]:
    """Every image with a region of `split`, the expressions of the three sets put together per object. `prepare`: an image ->
    `Scene.tile` and `Scene.sam`."""
    found: dict[str, tuple[ImageRecord, dict[int, tuple[Region, list[str], str]]]] = {}
    for name, record in _records(root):
        regions = found.setdefault(record.path, (record, {}))[1]
        for region in record.regions:
            if region.split != split:
                continue
            texts = [expression.sent for expression in region.expressions]
            _, expressions, caption = regions.setdefault(region.region_id, (region, [], ""))
            expressions += texts
            regions[region.region_id] = (region, expressions, texts[0] if name == "refcoco_plus" else caption)
    scenes = []
    for record, regions in found.values():
        usable = [entry for entry in regions.values() if entry[1] and entry[2]]
        if not usable:
            continue
        tile, sam = prepare(record_image(root, record))
        inside = torch.tensor([sam.shape[1], sam.shape[0]]) / max(sam.shape)
        masks = np.stack([region_mask(record, region) for region, _, _ in usable])
        scenes.append(
            Scene(
                tile,
                sam,
                torch.stack([model.decoder.soft_target(torch.from_numpy(one)) for one in masks]),
                torch.stack([_centre(one) * inside for one in masks]),
                region_cells(torch.from_numpy(masks), model.family.grid(record.height, record.width).region),
                [expressions for _, expressions, _ in usable],
                [caption for _, _, caption in usable],
            )
        )
    return scenes


def _records(root: Path) -> Iterator[tuple[str, ImageRecord]]:
    """Each set's name with each of its images. The world is written whole, so that nothing of it is skipped."""
    for name, folder in SOURCES.items():
        for record in read(refcoco, root, folder, name):
            assert isinstance(record, ImageRecord)
            yield name, record


def _centre(one: np.ndarray) -> Tensor:
    """x, y of a mask's centre of gravity, in fractions of its width and height."""
    rows, columns = np.nonzero(one)
    return torch.tensor([(columns.mean() + 0.5) / one.shape[1], (rows.mean() + 0.5) / one.shape[0]], dtype=torch.float32)


def point_prompts(model: Segmenter, centres: Tensor) -> Tensor:
    """(N, 2) points in fractions of the image -> (N, D) language vectors that mean "the object here"."""
    assert isinstance(model.sam, Network)
    encoding = model.sam.model.sam_prompt_encoder.pe_layer
    return POINT_SCALE * encoding.forward_with_coords(centres[:, None] * SIDE, (SIDE, SIDE))[:, 0]


def grid_of(model: Segmenter) -> Grid:
    """The image tokens of any image: the tiny models see one square of it."""
    return model.config.family.grid(1, 1)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    flat, truth = logits.flatten(1), targets.flatten(1)
    return (2.0 * mask.cross_entropy(flat, truth) + 0.5 * mask.dice(flat, truth)).mean()


def _pixels(arrays: list[np.ndarray]) -> Tensor:
    return normalise([Image.fromarray(array) for array in arrays])


def bag_of_words(model: Segmenter) -> nn.EmbeddingBag:
    """Stage (a)'s language: the sum of a vector per word."""
    torch.manual_seed(SEED + 1)
    return nn.EmbeddingBag(len(model.tokenizer), model.config.decoder.width, mode="sum")


def word_vectors(bag: nn.EmbeddingBag, model: Segmenter, texts: list[str]) -> Tensor:
    ids = [model.tokenizer.encode(text) for text in texts]
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in ids])[:-1]])
    return bag(torch.tensor([token for row in ids for token in row]), offsets)


def sam_loss(
    model: Segmenter,
    bag: nn.EmbeddingBag,
    scenes: list[Scene],
    rng: np.random.Generator,
    point_share: float,
    points: Callable[[Tensor], Tensor],
    pixels: Callable[[list[np.ndarray]], Tensor],
    each: int = 8,
) -> Tensor:
    """Stage (a): 8 images, up to `each` expressions of each; `point_share` of them are replaced by a point on the object."""
    chosen = [scenes[i] for i in rng.choice(len(scenes), 8, replace=False)]
    rows = []
    for place, scene in enumerate(chosen):
        pairs = [(place, number, text) for number, texts in enumerate(scene.expressions) for text in texts]
        rows += [pairs[i] for i in rng.permutation(len(pairs))[:each]]
    centres = torch.stack([chosen[place].centres[number] for place, number, _ in rows])
    centres = centres + torch.from_numpy(rng.normal(0, POINT_NOISE, centres.shape)).float()
    by_point = torch.from_numpy(rng.random(len(rows)) < point_share)
    words = word_vectors(bag, model, [text for _, _, text in rows])
    prompt = torch.where(by_point[:, None], points(centres), words)
    levels = model.sam.encode(pixels([scene.sam for scene in chosen]))
    masks = model.sam.decode(model.sam.project(levels), torch.tensor([place for place, _, _ in rows]), prompt)
    return mask_loss(masks.low_res, torch.stack([chosen[place].targets[number] for place, number, _ in rows]))


def _caption_row(
    model: Segmenter, place: int, scene: Scene, number: int, rng: np.random.Generator
) -> tuple[int, prompts.Turn, Tensor]:
    cells = scene.cells[number][None]
    question = prompts.DESCRIBE_PROMPTS[rng.integers(len(prompts.DESCRIBE_PROMPTS))]
    text = model.template.image_string(cells[0].numel()) + model.region_question(cells, question)
    return place, prompts.Turn(text, scene.captions[number]), cells


def _forward_rows(
    model: Segmenter, tiles: list[np.ndarray], rows: list[tuple[int, prompts.Turn, Tensor | None]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean language loss, `[SEG]` vectors and their images, for single-turn rows (image, turn, region cells)."""
    encoded = [prompts.encode_conversation(model.tokenizer, model.template, [turn]) for _, turn, _ in rows]
    ids, labels, attention = pad_right(encoded)
    batch = Conversations(ids, labels, attention, [i for i, _, _ in rows], [cells for _, _, cells in rows])
    features = Features(model.vlm.encode(_pixels(tiles), [grid_of(model)] * len(tiles)), (), [])
    out = model(features, batch)
    return out.language_loss / len(out.labels), out.seg_embeds, out.seg_image


def vlm_loss(model: Segmenter, scenes: list[Scene], rng: np.random.Generator) -> Tensor:
    """Stage (b): 16 images, up to 3 region captions of each."""
    chosen = [scenes[i] for i in rng.choice(len(scenes), 16, replace=False)]
    rows: list[tuple[int, prompts.Turn, Tensor | None]] = []
    for place, scene in enumerate(chosen):
        for number in rng.permutation(len(scene.captions))[:3]:
            rows.append(_caption_row(model, place, scene, int(number), rng))
    return _forward_rows(model, [scene.tile for scene in chosen], rows)[0]


def joint_loss(model: Segmenter, bag: nn.EmbeddingBag, scenes: list[Scene], rng: np.random.Generator, align: float) -> Tensor:
    """Stage (c): 12 images, up to 4 segmentation rows and one caption of each; `align` weighs the pull to the word vectors."""
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


def run_stage(
    name: str,
    steps: int,
    modules: Mapping[str, nn.Module],
    groups: Sequence[dict[str, Any]],
    loss_at: Callable[[int], Tensor],
    folder: Path,
    save_every: int = 200,
) -> None:
    """Train `groups` for `steps` steps; leave the modules' weights in `folder/<name>.pt`. Resumes from it."""
    path = folder / f"{name}.pt"
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=0.01, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    first = 0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    progress = tqdm(range(first, steps), desc=name, initial=first, total=steps, mininterval=10)
    average = None
    for step in progress:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * lr_factor(step, steps, 0.03, "cosine")
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        optimizer.step()
        average = float(loss) if average is None else 0.98 * average + 0.02 * float(loss)
        progress.set_postfix(loss=f"{average:.3f}", refresh=False)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"modules": {key: module.state_dict() for key, module in modules.items()}, "step": step + 1}
            torch.save(state | {"optimizer": optimizer.state_dict()}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)


def _trained(module: nn.Module, skip: str = r"$^") -> Iterator[nn.Parameter]:
    return (p for name, p in module.named_parameters() if not re.search(skip, name))


_UNUSED = (
    r"memory|mask_downsample|no_obj_ptr|obj_ptr_proj|no_mem_pos_enc|maskmem|iou_prediction_head|pred_obj_score_head|point_embed"
)


def stage(name: str, root: Path, folder: Path) -> None:
    """Run one stage; `joint` starts from what the other two left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model()
    scenes = load_scenes(root, "train", model.config, prepare)
    bag = bag_of_words(model)
    if name == "sam2":
        groups = [{"params": [*_trained(model.sam, _UNUSED), *bag.parameters()]}]
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
            {"params": list(_trained(model.sam, _UNUSED)), "lr": LR * SAM2_LR_SCALE},
        ]
        limit = ALIGN_SHARE * STEPS["joint"]

        def loss_at(step: int) -> Tensor:
            return joint_loss(model, bag, scenes, keyed_rng(SEED, 3, step), max(0.0, 1 - step / limit))

        run_stage(name, STEPS[name], {"model": model}, groups, loss_at, folder)


def export(folder: Path, out: Path, model: Segmenter) -> None:
    """Write the joint stage's weights, loaded into `model`, to `out`; see `write_model`."""
    model.load_state_dict(torch.load(folder / "joint.pt", weights_only=True)["modules"]["model"])
    write_model(model, out)


def write_model(model: Segmenter, out: Path) -> None:
    """Write a model folder in HF layout, fp16 on disk."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in model.config.keys.to_hf(model.state_dict(), "model").items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(dict(model.config.values), indent=2) + "\n", encoding="utf-8")
    model.tokenizer.save_pretrained(out)


def make_world(root: Path) -> None:
    """The world that the base is trained on, unless it is there already."""
    if not (root / "ref_seg").is_dir():
        write_world(root, WORLD)


def measure(root: Path, folder: Path) -> None:
    """Evaluate `folder` on the held-out scenes of its own world; leave `metrics.json` and SHA256SUMS beside the weights.

    Free generation on every expression; captions against the full description of each object; and three blind baselines.
    """
    model = Segmenter.from_pretrained(folder)
    rows, captions, right, total = [], [], 0, 0
    blind: dict[str, list[tuple[int, int]]] = {"everything": [], "random object": [], "shuffled expressions": []}
    rng = keyed_rng(SEED, 4)
    for records in tqdm(list(_held_out(root)), desc="held-out", disable=None):
        images = [record_image(root, record) for record, _ in records]
        read = model.read(images)
        texts = [[text for _, text, _ in entries] for _, entries in records]
        shuffled = [[row[i] for i in rng.permutation(len(row))] for row in texts]
        answers = model.segment(read, texts, max_new_tokens=16)
        wrong = model.segment(read, shuffled, max_new_tokens=16)
        for (record, entries), found, other in zip(records, answers, wrong, strict=True):
            objects = list({region.region_id: region_mask(record, region).astype(bool) for region, _, _ in entries}.values())
            for (region, _, _), one, two in zip(entries, found, other, strict=True):
                truth = region_mask(record, region).astype(bool)
                blind["random object"].append(intersection_union(objects[rng.integers(len(objects))], truth))
                rows.append((*intersection_union(one.mask, truth), len(one.masks) > 0))
                blind["everything"].append((int(truth.sum()), truth.size))
                blind["shuffled expressions"].append(intersection_union(two.mask, truth))
        if not model.config.family.regions:
            continue
        described = [{region.region_id: (region, caption) for region, _, caption in entries if caption} for _, entries in records]
        masks = [
            np.stack([region_mask(record, region) for region, _ in regions.values()])
            for (record, _), regions in zip(records, described, strict=True)
        ]
        for regions, said in zip(described, model.describe(read, masks, max_new_tokens=16), strict=True):
            for (_, caption), text in zip(regions.values(), said, strict=True):
                captions.append(text == caption)
                wanted, got = caption.split(), text.split()
                right += sum(a == b for a, b in zip(wanted, got, strict=False))
                total += max(len(wanted), len(got))
    intersection, union = (sum(row[i] for row in rows) for i in (0, 1))
    metrics = {
        "ciou": intersection / union,
        "miou": sum(i / u for i, u, _ in rows) / len(rows),
        "seg_rate": sum(seg for _, _, seg in rows) / len(rows),
        "expressions": len(rows),
        **({"caption_token_accuracy": right / total, "caption_exact": sum(captions) / len(captions)} if captions else {}),
        "blind": {name: sum(i for i, _ in pairs) / sum(u for _, u in pairs) for name, pairs in blind.items()},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    names = sorted(path.name for path in folder.iterdir() if path.name not in ("SHA256SUMS", "README.md", "metrics.json"))
    sums = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    print(json.dumps(metrics, indent=2))


def _held_out(root: Path, batch: int = 16) -> Iterator[list[tuple[ImageRecord, list[tuple[Region, str, str]]]]]:
    """Batches of images of the world's val split, each with (region, expression, caption or "")."""
    images: dict[str, tuple[ImageRecord, list[tuple[Region, str, str]]]] = {}
    for name, record in _records(root):
        for region in record.regions:
            if region.split == "val":
                caption = region.expressions[0].sent if name == "refcoco_plus" else ""
                entries = images.setdefault(record.path, (record, []))[1]
                entries += [(region, expression.sent, caption) for expression in region.expressions]
    items = [item for item in images.values() if any(caption for _, _, caption in item[1])]
    for start in range(0, len(items), batch):
        yield items[start : start + batch]
