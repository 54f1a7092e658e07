"""What a training is made of, put together from the configuration."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ans.config import Config
from ans.config.sections import task_names
from ans.config.training import TrainSettings
from ans.data.arrow import Index, read_index
from ans.data.clips import Clip, read
from ans.data.readers import check_listing
from ans.data.samples import Evaluated
from ans.formats import shards
from ans.model.adapters import add_lora, add_seg_row, group_of_parameter, select_trained
from ans.model.feature_cache import FeatureCache
from ans.model.segmenter import Features, Segmenter
from ans.objectives.batches import Images
from ans.provenance import digest
from ans.tasks import load as load_task
from ans.tasks.base import AnyTask, Setting
from ans.training.mixture import MicroBatch, Mixture
from ans.training.sharding import local
from ans.training.signals import blocked_in_workers, end_with_the_training
from ans.training.state import ResumeFolder, describe
from ans.workspace import Workspace


def load_model(settings: TrainSettings, base: Path, device: torch.device) -> tuple[Segmenter, dict[str, nn.Parameter]]:
    """Return the base on `device` with LoRA in place, and its trained tensors (float32) by name."""
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model = Segmenter.from_pretrained(base, device, dtype, settings.four_bit)
    return model, make_trainable(model, settings)


def make_trainable(model: Segmenter, settings: TrainSettings) -> dict[str, nn.Parameter]:
    """Put LoRA in place and freeze all else but the trained groups; the trained tensors (float32) by name."""
    if "lora" in settings.trained:
        lora = settings.lora
        add_lora(model, lora.rank, lora.alpha, lora.dropout, settings.seed, lora.targets)
    if "seg_row" in settings.trained:
        add_seg_row(model)
    if settings.checkpoint_activations:
        model.vlm.language_model.activation_checkpointing_enable({"use_reentrant": False})
    return select_trained(model, settings.trained)


class Indexes:
    """Opens indexes by name, each once. With `root` their listings are compared with what lies there."""

    def __init__(self, workspace: Workspace, root: Path | None) -> None:
        self.workspace, self.root = workspace, root
        self.opened: dict[str, Index] = {}

    def __call__(self, name: str) -> Index:
        if name not in self.opened:
            index = read_index(self.workspace.index(name))
            if self.root is not None:
                check_listing(index, self.root)
            self.opened[name] = index
        return self.opened[name]


def load_tasks(config: Config, workspace: Workspace, model: Segmenter, first_process: bool) -> dict[str, AnyTask]:
    """Return the tasks that are on, with their data, in the order of their streams. Raises `ListingChanged` for an index that is out of
    date; the first process alone looks, since of a large set that takes long, and each would look at the same disk."""
    root = Path(config.paths.root)
    indexes = Indexes(workspace, root if first_process else None)
    evaluated, clips = Evaluated(map(indexes, config.training_indexes()), root), Evaluated((), root)
    for of in config.clips_left_out().values():
        for clip in read(of.reader, root, of.folder, of.split):
            for file in clip.files if isinstance(clip, Clip) else ():
                clips.add(file)
    setting = Setting(config.train, model.config, model.tokenizer, root, indexes, evaluated, clips, config.index.max_bad_fraction)
    tasks = {name: load_task(name)(settings, setting) for name, settings in config.tasks.items()}
    return dict(sorted(tasks.items(), key=lambda item: item[1].stream))


def steps_of(settings: TrainSettings, tasks: Mapping[str, AnyTask], processes: int) -> tuple[int, int]:
    """Return optimizer steps of the whole run and of an epoch, a pass over the samples of the (first) primary task.

    Raises `ValueError` where epochs are asked for and several tasks take turns.
    """
    primary = [task for task in tasks.values() if task.role == "primary"]
    if not primary:  # refused when params.yaml is read
        return settings.steps, settings.steps
    epoch = settings.epoch_steps(len(primary[0]), processes)
    if settings.epochs is None:
        return settings.steps, epoch
    if len(primary) > 1:
        names = ", ".join(name for name, task in tasks.items() if task.role == "primary")
        raise ValueError(f"train.epochs: counts passes over one task's samples, but {names} take turns; set train.steps instead")
    return settings.epochs * epoch, epoch


def new_optimizer(model: Segmenter, trained: Mapping[str, nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """Return AdamW; the paged one raises `ModuleNotFoundError` without bitsandbytes."""
    kind: Callable[..., torch.optim.Optimizer] = partial(torch.optim.AdamW, fused=True)
    if settings.optimizer == "paged_adamw":
        from bitsandbytes.optim import PagedAdamW32bit as kind  # an extra
    decoder = [p for name, p in trained.items() if group_of_parameter(model, name) == "sam2_decoder"]
    rest = [p for name, p in trained.items() if group_of_parameter(model, name) != "sam2_decoder"]
    groups = [{"params": rest, "lr": settings.lr}, {"params": decoder, "lr": settings.lr * settings.lr_sam2_scale}]
    return kind([group for group in groups if group["params"]], lr=settings.lr, weight_decay=settings.weight_decay)


def page_again(optimizer: torch.optim.Optimizer) -> None:
    """Put a loaded state of a paged optimizer where such an optimizer keeps it: `torch.load` makes ordinary tensors of pages,
    which still say that they are pages, and bitsandbytes ends the process over that (bitsandbytes#782). Not tried on a GPU."""
    if not hasattr(optimizer, "get_state_buffer"):
        return
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = optimizer.get_state_buffer(parameter, value.dtype)
                state[name].copy_(value)


def image_encoder(config: Config, model: Segmenter, workspace: Workspace, processes: int) -> Callable[[Images], Features]:
    """Run the frozen encoders over one micro-batch's images, once; with `launch.feature_cache_gb`, their features lie on disk."""
    encode = model.encode_pixels
    if gigabytes := config.launch.feature_cache_gb:
        encode = FeatureCache(model, config.train.precision, 1e9 * gigabytes, workspace.runs, processes).encode_pixels
    return lambda images: encode(images.pixels, images.sam, images.sizes)


def resume_folder(
    config: Config, workspace: Workspace, base: str, tasks: Mapping[str, AnyTask], accelerator: Accelerator
) -> ResumeFolder:
    """Return the run's folder, the same on every process: only the first reads the inputs for the fingerprint."""
    description: list[dict[str, Any]] = [{}]
    if accelerator.is_main_process:
        inputs = map(workspace.index, config.training_indexes())
        description = [describe(config, base, inputs, checksums(tasks), accelerator.num_processes)]
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(description)
    conditions = {
        # with them each image is encoded by itself
        "features on disk (launch.feature_cache_gb)": "on" if config.launch.feature_cache_gb else "off",
        "code": digest("ans.training.__main__", *(f"ans.tasks.{task}" for task in task_names())),
    }
    folder = ResumeFolder(workspace.runs, description[0], conditions, config.launch.save_state_seconds)
    if accelerator.is_main_process:
        folder.lock(workspace.checkpoint)
    return folder


def checksums(tasks: Mapping[str, AnyTask]) -> dict[str, str]:
    """Return those of what the tasks have read besides indexes."""
    return {name: checksum for task in tasks.values() for name, checksum in task.checksums().items()}


def base_checksum(workspace: Workspace, accelerator: Accelerator) -> str:
    """Return sha256 of the base's weights; "" on processes that do not need it."""
    return shards.shards_checksum(workspace.base) if accelerator.is_main_process else ""


def batches(mixture: Mixture, first: int, workers: int) -> Iterator[MicroBatch]:
    """Return the micro-batches from number `first` on, made by `workers` processes (0: by this one)."""
    loader = DataLoader(
        mixture, batch_size=None, sampler=range(first, len(mixture)), num_workers=workers, prefetch_factor=2 if workers else None,
        worker_init_fn=end_with_the_training,
    )  # fmt: skip
    with blocked_in_workers():
        return iter(loader)


def slices_of_groups(model: Segmenter, trained: Mapping[str, nn.Parameter]) -> dict[str, list[slice]]:
    """Return where each trained group lies in the flat vector."""
    slices: dict[str, list[slice]] = {}
    end = 0
    for name, parameter in trained.items():
        group = group_of_parameter(model, name)
        assert group is not None, name
        parts = slices.setdefault(group, [])
        # parts that touch become one: a product for each small tensor takes ten times as long
        start = parts.pop().start if parts and parts[-1].stop == end else end
        end += parameter.numel()
        parts.append(slice(start, end))
    return slices


def frozen_checksum(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> int:
    """Return a sum over the bits of every frozen tensor that this process holds, to prove afterwards that none has changed."""
    total = 0
    moving = {parameter.data_ptr() for parameter in trained.values()}  # tied tensors have two names
    for name, tensor in ((name, local(tensor)) for name, tensor in model.state_dict().items()):
        if name not in trained and tensor.data_ptr() not in moving:
            kind = {1: torch.uint8, 2: torch.int16}.get(tensor.element_size(), torch.int32)
            values = tensor.detach().contiguous().flatten().view(kind)
            for bits in values.split(1 << 22):  # whole, the numbers beside an embedding would take gigabytes
                weights = torch.arange(1, len(bits) + 1, device=bits.device) % 65521
                total = (31 * total + int((bits.long() * weights).sum())) % 2**61
    return total
