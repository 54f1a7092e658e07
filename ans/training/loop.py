"""Fine-tuning. `train` reads as a page: load, then step after step: batches, gradient, step, log, save."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ans.checkpoints.layout import SHARD_GROUPS, group_of, model_to_hf_name
from ans.checkpoints.save import save_trained
from ans.config import Config
from ans.data.dataset import Batch, ReferringDataset, training_rows
from ans.data.index import check_listing, read_index
from ans.model.adapters import add_lora, group_of_parameter, select_trained
from ans.model.segmenter import Conversations, Segmenter
from ans.objectives.supervised import supervised
from ans.processes import connect
from ans.training.curves import Curves
from ans.training.gradients import assign, clip, flat_gradient
from ans.training.schedule import lr_factor

SOURCES = ("refcoco", "refcoco_plus", "refcocog")


@dataclass(frozen=True)
class Run:
    """Where a run reads and writes."""

    base: Path = Path("models/base")
    indexes: Path = Path("data/index")
    out: Path = Path("models/checkpoint")
    reports: Path = Path("reports/train")


def train(config: Config, run: Run = Run()) -> None:
    """Fine-tune `run.base` by the supervised objective and leave trained tensors in `run.out`, curves in `run.reports`.

    Started once per process by `accelerate launch`; the number of processes changes no sample and no random choice of a step's
    global batch. Raises `FloatingPointError` at a loss or gradient that is not finite.
    """
    settings, preset = config.train, config.chosen.train
    accelerator = connect(preset.precision)
    torch.manual_seed(settings.seed + accelerator.process_index)  # dropout only; everything else is keyed
    model, trained = load_model(config, run, accelerator)
    frozen_before = checksum(model, trained)
    dataset, left_out = load_data(config, run, model, accelerator)
    manifest = describe(config, model, trained, dataset, left_out, accelerator.num_processes)
    curves = Curves(run.reports if accelerator.is_main_process else None)
    if accelerator.is_main_process:
        print(manifest_text(manifest), flush=True)
        curves.write_json("manifest.json", manifest)

    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(_groups(trained, config), lr=preset.lr, weight_decay=preset.weight_decay)
    rates = [group["lr"] for group in optimizer.param_groups]
    batches = iter(DataLoader(dataset, batch_size=None, num_workers=config.launch.workers, prefetch_factor=_prefetch(config)))
    progress = tqdm(range(settings.steps), desc="train", disable=None if accelerator.is_main_process else True, mininterval=1)
    model.train()
    for step in progress:
        micro_batches = list(islice(batches, preset.accumulation))
        gradient, values = step_gradient(model, parameters, micro_batches, config, accelerator)
        gradient, values["grad_norm"] = clip(gradient, preset.clip)
        factor = lr_factor(step, settings.steps, preset.warmup, preset.schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        assign(gradient, parameters)
        optimizer.step()
        values["lr"] = preset.lr * factor
        curves.add(step + 1, values)
        progress.set_postfix(loss=f"{values['loss']:.3f}", iou=f"{values['train_iou']:.3f}", refresh=False)
        last = step + 1 == settings.steps
        if accelerator.is_main_process and (last or (settings.save_every and (step + 1) % settings.save_every == 0)):
            name = "last.pth" if last else f"step_{step + 1:06d}.pth"
            save_trained(run.out / name, trained, manifest | {"step": step + 1})

    if checksum(model, trained) != frozen_before:
        raise RuntimeError("a frozen tensor changed during training; the run is not to be trusted")
    if accelerator.is_main_process:
        curves.finish()


def load_model(config: Config, run: Run, accelerator: Accelerator) -> tuple[Segmenter, dict[str, nn.Parameter]]:
    """The base on this process' device with LoRA in place, and its trained tensors (float32) by name."""
    lora = config.chosen.train.lora
    dtype = torch.bfloat16 if config.chosen.train.precision == "bf16" else torch.float32
    model = Segmenter.from_pretrained(run.base, accelerator.device, dtype)
    if "lora" in config.train.groups:
        add_lora(model, lora.rank, lora.alpha, lora.dropout, config.train.seed)
    if config.chosen.train.checkpoint_activations:
        model.vlm.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, select_trained(model, config.train.groups)


def load_data(config: Config, run: Run, model: Segmenter, accelerator: Accelerator) -> tuple[ReferringDataset, int]:
    """The training data of this process, and how many image rows were left out as belonging to an evaluated split."""
    settings, preset, root = config.train, config.chosen.train, Path(config.paths.root)
    indexes = [read_index(run.indexes / f"{name}.parquet") for name in SOURCES]
    for index in indexes:
        check_listing(index, root)
    rows, left_out = training_rows(indexes)
    dataset = ReferringDataset(
        indexes,
        rows,
        root,
        model.config,
        model.tokenizer,
        seed=settings.seed,
        batches=settings.steps * preset.accumulation,
        batch=preset.batch,
        objects_per_image=preset.objects_per_image,
        objects_per_conversation=preset.objects_per_conversation,
        max_tiles=preset.max_tiles,
        mask_points=settings.mask_points,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    return dataset, left_out


def step_gradient(
    model: Segmenter, parameters: list[nn.Parameter], micro_batches: list[Batch], config: Config, accelerator: Accelerator
) -> tuple[Tensor, dict[str, float]]:
    """One step's gradient (P,) over all micro-batches and processes, and its losses and training IoU as means over the step."""
    weights = config.train.loss
    device = accelerator.device
    counts = torch.tensor([[len(b.targets), b.language_tokens] for b in micro_batches], device=device).sum(0)
    objects, tokens = (int(count) for count in accelerator.reduce(counts, "sum"))
    gradient = torch.zeros(sum(p.numel() for p in parameters), device=device)
    sums = torch.zeros(6, device=device)
    for batch in micro_batches:
        with accelerator.autocast():
            features = model.encode_pixels(batch.tile_pixels, batch.sam_pixels, batch.sizes)
            rows = Conversations(
                batch.ids.to(device), batch.labels.to(device), batch.mask.to(device), batch.image_index, [None] * len(batch.ids)
            )
            targets, uniform = batch.targets.to(device), batch.uniform.to(device)
            out = supervised(model, features, rows, targets, uniform, weights, config.train.mask_points, objects, tokens)
        gradient += flat_gradient(out.total, parameters)
        sums += torch.stack([out.total.detach(), out.mask, out.dice, out.iou, out.language, out.train_iou])
    gradient, sums = accelerator.reduce(gradient, "sum"), accelerator.reduce(sums, "sum").tolist()
    if sums[0] != sums[0]:
        raise FloatingPointError("the loss is NaN; lower presets.<preset>.train.lr, or look at the batch")
    return gradient, {
        "loss": sums[0],
        "loss_mask": sums[1] / objects,
        "loss_dice": sums[2] / objects,
        "loss_iou": sums[3] / objects,
        "loss_language": sums[4] / tokens,
        "train_iou": sums[5] / objects,
    }


def checksum(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> int:
    """A sum over the bits of every frozen tensor, to prove afterwards that none has changed."""
    total = 0
    for name, tensor in model.state_dict().items():
        if name not in trained:
            bits = tensor.detach().view(torch.int16 if tensor.element_size() == 2 else torch.int32)
            weights = torch.arange(1, bits.numel() + 1, device=bits.device) % 65521
            total += int((bits.flatten().long() * weights).sum())
    return total


def describe(
    config: Config,
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    dataset: ReferringDataset,
    left_out: int,
    processes: int,
) -> dict[str, object]:
    """The run's manifest: what is trained and frozen, the effective batch, the data, and the settings."""
    preset = config.chosen.train
    groups = {name: {"state": "frozen", "tensors": 0, "parameters": 0} for name in SHARD_GROUPS}
    for name, parameter in model.named_parameters():
        if name in trained:
            entry = groups.setdefault(
                group_of_parameter(name) + " (trained)", {"state": "trained", "tensors": 0, "parameters": 0}
            )
        else:
            entry = groups[group_of(model_to_hf_name(name.replace(".base_layer.", ".")))]
        entry["tensors"] += 1
        entry["parameters"] += parameter.numel()
    return {
        "groups": {name: entry for name, entry in groups.items() if entry["tensors"]},
        "processes": processes,
        "batch": preset.batch,
        "accumulation": preset.accumulation,
        "effective_batch": preset.effective_batch(processes),
        "images": len(dataset.rows),
        "left_out_evaluated_images": left_out,
        "train": asdict(config.train),
        "preset": {"name": config.preset, **asdict(preset)},
        "versions": {"torch": str(torch.__version__), "python": sys.version.split()[0]},
    }


def manifest_text(manifest: dict[str, object]) -> str:
    """The manifest's first part as a small table."""
    lines = [
        f"{name:<24}{entry['state']:<9}{entry['tensors']:>5} tensors {entry['parameters']:>12,} parameters"
        for name, entry in manifest["groups"].items()
    ]
    lines.append(
        f"effective batch {manifest['effective_batch']} = {manifest['processes']} process(es) x {manifest['batch']} images "
        f"x {manifest['accumulation']} accumulated; {manifest['images']} training rows, "
        f"{manifest['left_out_evaluated_images']} left out because their image is in an evaluated split"
    )
    return "\n".join(lines)


def _groups(trained: Mapping[str, nn.Parameter], config: Config) -> list[dict[str, object]]:
    preset = config.chosen.train
    decoder = [p for name, p in trained.items() if group_of_parameter(name) == "sam2_decoder"]
    rest = [p for name, p in trained.items() if group_of_parameter(name) != "sam2_decoder"]
    groups = [{"params": rest, "lr": preset.lr}, {"params": decoder, "lr": preset.lr * preset.lr_sam2_scale}]
    return [group for group in groups if group["params"]]


def _prefetch(config: Config) -> int | None:
    return 4 if config.launch.workers else None
