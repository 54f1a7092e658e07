"""What the recipes of the embedded bases share: their world, the mask decoder's own stage, and how a stage is run and written.

`run_stage` is a training loop of its own, because `ans.training` cannot make a base. It fine-tunes one: it expects all weights, keeps the
image encoders frozen (their features are computed without a gradient) and trains groups of the rest by tasks that read indexes. Here
everything starts from random values, the encoders first of all; one stage has no language model; and prompts are also points and sums of
word vectors, which no task has. Losses and the learning rate's schedule are the library's.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ans.config.schema import World
from ans.data.matching import record_image, region_mask
from ans.data.records import ImageRecord, Region
from ans.data.sources import refcoco
from ans.data.sources.common import read
from ans.model.config import ModelConfig
from ans.model.family import Grid
from ans.model.segmenter import Segmenter
from ans.model.visual_prompt import region_cells
from ans.objectives import mask
from ans.toy.world import write_world
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
LR = 1e-3
POINT_SCALE = 3.0  # a prompt's standard deviation is then about 2; smaller ones drown in SAM2's two-way transformer
POINT_NOISE = 0.03  # standard deviation of the points around the object's centre, in fractions of the image
POINTS_ONLY = 0.2  # of stage (a)'s steps; words alone, from the start, take four times as long to find objects at all
POINT_SHARE = 0.15  # of the prompts afterwards
ALIGN_SHARE = 0.25  # of the joint steps in which the `[SEG]` vector is drawn towards the word vectors, ever less
SAM2_LR_SCALE = 0.2  # at the full rate the decoder unlearns while the `[SEG]` vectors are still noise
Prepare = Callable[[Image.Image], tuple[np.ndarray, np.ndarray]]


def waves(side: int, width: int) -> Tensor:
    """Return (side * side, width) sines and cosines of a cell's x and y, about as large as the embeddings of patches."""
    frequencies = torch.pi * 2.0 ** torch.linspace(-1, 2, width // 4)
    angles = ((torch.arange(side) + 0.5) / side)[:, None] * frequencies
    axis = 0.7 * torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)], dim=-1).flatten(0, 1)


@dataclass(frozen=True)
class TrainingScene:
    """One image of the base's world in memory: pixels as uint8 RGB, and per object its mask, its centre (x, y in fractions of the
    mask part's square), its cells of the region grid, its expressions and its caption."""

    tile: np.ndarray
    sam: np.ndarray
    targets: Tensor
    centres: Tensor
    cells: Tensor
    expressions: list[list[str]]
    captions: list[str]


def load_scenes(root: Path, split: str, model: ModelConfig, prepare: Prepare) -> list[TrainingScene]:
    """Return every image with a region of `split`, the expressions of the three sets put together per object. `prepare`: an image ->
    `TrainingScene.tile` and `TrainingScene.sam`."""
    found: dict[str, tuple[ImageRecord, dict[int, tuple[Region, list[str], str]]]] = {}
    for name, record in records_of(root):
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
            TrainingScene(
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


def records_of(root: Path) -> Iterator[tuple[str, ImageRecord]]:
    """Yield each set's name with each of its images. The world is written whole, so that nothing of it is skipped."""
    for name, folder in SOURCES.items():
        for record in read(refcoco, root, folder, name):
            assert isinstance(record, ImageRecord)
            yield name, record


def _centre(one: np.ndarray) -> Tensor:
    """Return x, y of a mask's centre of gravity, in fractions of its width and height."""
    rows, columns = np.nonzero(one)
    return torch.tensor([(columns.mean() + 0.5) / one.shape[1], (rows.mean() + 0.5) / one.shape[0]], dtype=torch.float32)


def grid_of(model: Segmenter) -> Grid:
    """Return the image tokens of any image: the tiny models see one square of it."""
    return model.config.family.grid(1, 1)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    flat, truth = logits.flatten(1), targets.flatten(1)
    return (2.0 * mask.cross_entropy(flat, truth) + 0.5 * mask.dice(flat, truth)).mean()


def bag_of_words(model: Segmenter) -> nn.EmbeddingBag:
    """Return stage (a)'s language: the sum of a vector per word."""
    torch.manual_seed(SEED + 1)
    return nn.EmbeddingBag(len(model.tokenizer), model.config.decoder.width, mode="sum")


def word_vectors(bag: nn.EmbeddingBag, model: Segmenter, texts: list[str]) -> Tensor:
    ids = [model.tokenizer.encode(text) for text in texts]
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in ids])[:-1]])
    return bag(torch.tensor([token for row in ids for token in row]), offsets)


def sam_loss(
    model: Segmenter,
    bag: nn.EmbeddingBag,
    scenes: list[TrainingScene],
    rng: np.random.Generator,
    point_share: float,
    points: Callable[[Tensor], Tensor],
    pixels: Callable[[list[np.ndarray]], Tensor],
    each: int = 8,
) -> Tensor:
    """Return the loss of stage (a): 8 images, up to `each` expressions of each; `point_share` of them are replaced by a point on the
    object."""
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


def trained(module: nn.Module, skip: str = r"$^") -> Iterator[nn.Parameter]:
    return (p for name, p in module.named_parameters() if not re.search(skip, name))


def export(folder: Path, out: Path, model: Segmenter, stage: str) -> None:
    """Write the weights that the last stage left, loaded into `model`, to `out`; see `write_model`."""
    model.load_state_dict(torch.load(folder / f"{stage}.pt", weights_only=True)["modules"]["model"])
    write_model(model, out)


def write_model(model: Segmenter, out: Path) -> None:
    """Write a model folder in HF layout, fp16 on disk."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in model.config.keys.to_hf(model.state_dict(), "model").items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(dict(model.config.values), indent=2) + "\n", encoding="utf-8")
    model.tokenizer.save_pretrained(out)


def make_world(root: Path) -> None:
    """Write the world that the base is trained on, unless it is there already."""
    if not (root / "ref_seg").is_dir():
        write_world(root, WORLD)
