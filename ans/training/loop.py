"""Fine-tuning. `train` reads as a page: load, then step after step: batches, gradients, surgery, step, teacher, log, save."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ans.checkpoints import shards
from ans.checkpoints.layout import SHARD_GROUPS, group_of, model_to_hf_name
from ans.checkpoints.save import save_trained
from ans.config import Config, ConfigError, load
from ans.data.arrow import read_index
from ans.data.dataset import Referring, Regions, Sampling, TrainingData, training_rows
from ans.data.readers import check_listing
from ans.files import runs_folder
from ans.launch import STOPPED
from ans.model.adapters import add_lora, add_seg_row, group_of_parameter, select_trained
from ans.model.feature_cache import FeatureCache
from ans.model.four_bit import numbers
from ans.model.segmenter import Features, Segmenter
from ans.objectives.batches import CaptionBatch, Images, MaskBatch, ReferringBatch
from ans.objectives.loop1 import loop1
from ans.objectives.loop2 import loop2
from ans.objectives.losses import Chain, Counts, Losses
from ans.objectives.supervised import supervised
from ans.objectives.surgery import combine, conflict
from ans.processes import connect
from ans.progress import Progress
from ans.training.chains import Chains
from ans.training.curves import Curves, write_json
from ans.training.ema import Teacher
from ans.training.gradients import add_gradient, assign, clip
from ans.training.schedule import lr_factor
from ans.training.state import ResumeFolder, code_version, fingerprint
from ans.training.validation import Validation
from ans.training.watch import Watch

Pair = tuple[ReferringBatch | MaskBatch, CaptionBatch | None]
Encode = Callable[[Images], Features]


@dataclass(frozen=True)
class Run:
    """Where a run reads and writes."""

    base: Path = Path("models/base")
    indexes: Path = Path("data/index")
    out: Path = Path("models/checkpoint")
    reports: Path = Path("reports/train")
    params: Path | None = None
    """The file that the configuration came from, which must say the same when the run ends."""


@dataclass(frozen=True)
class Gradients:
    """One step's flat gradients (P,), summed over micro-batches and processes. `second` is None without loop 2."""

    first: Tensor
    second: Tensor | None
    values: dict[str, float]


def train(config: Config, run: Run = Run()) -> None:
    """Fine-tune `run.base` by the dual loop and leave trained tensors, a manifest and the loops' chains in `run.out`, curves in
    `run.reports`.

    Started once per process (see `ans/launch.py`); the number of processes changes no sample and no random choice of a step's
    global batch. Killed and started again it continues, to the same bits. Raises `FloatingPointError` at a loss or gradient that
    is not finite, `Degenerate` where going on would be pointless, `ResumeError` when continued under other conditions.
    """
    preset, asked = config.chosen.train, config
    accelerator = connect(preset.precision)
    model, trained = load_model(config, run, accelerator)
    data, left_out = load_data(config, run, model, accelerator)
    config = config.of_steps(len(data) // preset.accumulation)
    settings = config.train
    parameters, groups = list(trained.values()), slices_of_groups(trained)
    frozen_before = checksum(model, trained)
    optimizer = new_optimizer(trained, config)
    rates = [group["lr"] for group in optimizer.param_groups]
    encode = image_encoder(config, model, accelerator)
    teacher = Teacher(trained if config.loop1 else {}, settings.ema.decay, settings.ema.warmup)
    curves = Curves(run.reports if accelerator.is_main_process else None)
    chains = Chains(settings.gallery, settings.steps)
    watch = Watch(settings.min_seg_rate)
    parts = {"optimizer": optimizer, "teacher": teacher, "curves": curves, "chains": chains, "watch": watch}
    validation = None
    if preset.validation:
        validation = Validation(preset.validation, run.indexes, Path(config.paths.root), model, accelerator)
        parts["validation"] = validation
    epoch = preset.epoch_steps(len(data.referring.rows), accelerator.num_processes)

    folder = resume_folder(config, run, accelerator)
    first_step = 0
    if state := folder.load():
        first_step = state["step"]
        for name, parameter in trained.items():
            parameter.data.copy_(state["trained"][name])
        for name, part in parts.items():
            part.load_state_dict(state[name])
        page_again(optimizer)
    del state  # copies of all that is trained

    manifest = describe(config, model, trained, data, left_out, accelerator.num_processes)
    manifest["base_sha256"] = shards.fingerprint(run.base)
    if accelerator.is_main_process:
        print(manifest_text(manifest) + (f"\ncontinued at step {first_step}" if first_step else ""), flush=True)
        if unseen := config.evaluated_alone():
            print(
                f"note: {', '.join(unseen)} will be evaluated, and training does not leave its images out; where they may be "
                f"among those learnt from, name it in presets.{config.preset}.train.referring too",
                flush=True,
            )

    def save_state(step: int) -> None:
        if accelerator.is_main_process:
            folder.save({"step": step, "trained": dict(trained)} | {name: part.state_dict() for name, part in parts.items()})

    stop = StopSignal()
    progress = Progress(settings.steps, "train", "step", first_step, quiet=not accelerator.is_main_process)
    model.train()
    batches = _batches(data, first_step * preset.accumulation, config.launch.workers)
    for step in range(first_step, settings.steps):
        if validation and validation.over:
            break
        torch.manual_seed(hash((settings.seed, step, accelerator.process_index)))  # for dropout; all else is keyed by sample
        pairs = list(islice(batches, preset.accumulation))
        totals = count(pairs, accelerator, stop.received)
        if totals.stop:
            save_state(step)
            curves.write()
            progress.write(f"stopped at step {step} of {settings.steps}, saved; start the same command again to go on there")
            raise SystemExit(STOPPED)
        speaking = partial(teacher.speaking, model)
        gradients = step_gradients(model, encode, speaking, parameters, pairs, config, step, totals, accelerator, chains)
        values, gradient = gradients.values, gradients.first
        if gradients.second is not None:
            values |= conflict(gradients.first, gradients.second, groups)
            gradient = combine(gradients.first, gradients.second, settings.surgery, settings.beta)
        gradient, values["grad_norm"] = clip(gradient, preset.clip)
        factor = lr_factor(step, settings.steps, preset.warmup, preset.schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        assign(gradient, parameters)
        optimizer.step()
        optimizer.zero_grad()
        del gradients, gradient  # a flat vector for each loop, and their combination: not beside the next step's
        teacher.update(step)
        values["lr"] = preset.lr * factor
        curves.add(step + 1, values)
        watch.look(step + 1, values)
        if validation and (step + 1) % epoch == 0:
            loss = sum(value for _, value in curves.rows["loss"][-epoch:]) / epoch
            seen = validation.look(step + 1, loss, model, trained)
            curves.add(step + 1, seen)
            said = ", ".join(f"{name} {value:.3f}" for name, value in seen.items())
            progress.write(f"epoch {(step + 1) // epoch}: {said}")
        progress.update(loss=values["loss"])
        curves.write_when_due()
        if accelerator.is_main_process and settings.save_every and (step + 1) % settings.save_every == 0:
            save_trained(folder.folder / f"step_{step + 1:06d}.pth", trained, manifest | {"step": step + 1})
            _keep_newest(folder.folder, settings.keep)
        if accelerator.is_main_process and folder.due():
            save_state(step + 1)
    progress.close()
    if checksum(model, trained) != frozen_before:
        raise RuntimeError("a frozen tensor changed during training; the run is not to be trusted")
    if run.params is not None:
        _refuse_other_settings(run.params, asked, partial(save_state, settings.steps))
    if accelerator.is_main_process:
        run.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.folder.glob("step_*.pth")):
            (run.out / path.name).unlink(missing_ok=True)
            shards.link(path, run.out / path.name)
        if validation:
            manifest["best"] = validation.best["row"]
            save_trained(run.out / "best.pth", validation.best["trained"], manifest | {"step": manifest["best"]["step"]})
        if not (validation and validation.chosen.save_best_only):
            save_trained(run.out / "last.pth", trained, manifest | {"step": curves.rows["loss"][-1][0]})
        write_json(run.out / "manifest.json", manifest)
        write_json(run.out / "chains.json", chains.kept)
        curves.finish(validation.best["row"] if validation else {})
        write_json(run.reports / "history.json", validation.history if validation else [])
        folder.remove()


@dataclass(frozen=True)
class Totals:
    """Counts of a whole step, and whether a process was asked to stop."""

    first: Counts
    second: Counts
    stop: bool


def count(pairs: list[Pair], accelerator: Accelerator, stop: bool) -> Totals:
    """Counts over micro-batches and processes. One process that was asked to stop stops all, at the same step."""
    local = torch.zeros(6, device=accelerator.device)
    for first, second in pairs:
        local += torch.tensor([*first.counts, *(second.counts if second else (0, 0, 0)), 0], device=local.device)
    local[5] = float(stop)
    *counts, stopping = (int(value) for value in accelerator.reduce(local, "sum"))
    return Totals(Counts(*counts[:2]), Counts(*counts[2:]), stopping > 0)


def step_gradients(
    model: Segmenter,
    encode: Encode,
    teacher: partial[AbstractContextManager[None]],
    parameters: list[nn.Parameter],
    pairs: list[Pair],
    config: Config,
    step: int,
    totals: Totals,
    accelerator: Accelerator,
    chains: Chains | None = None,
) -> Gradients:
    """The step's gradients over all micro-batches and processes, and its values. Loop 1's graph is gone before loop 2 starts."""
    settings = config.train
    size = sum(p.numel() for p in parameters)
    gradients = [torch.zeros(size, device=accelerator.device) for _ in range(2 if config.loop2 else 1)]
    sums: dict[str, Tensor] = {}

    def learn(losses: Losses, number: int) -> None:
        add_gradient(losses.total, parameters, gradients[number])
        values = losses.values if number else losses.values | {"loss": losses.total.detach()}
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value

    def look(loop: int) -> bool:
        return chains is not None and accelerator.is_main_process and chains.wanted(loop, step)

    for first, second in pairs:
        with accelerator.autocast():
            losses, chain = _first(model, encode(first.images), teacher, first, config, step, totals.first)
        learn(losses, 0)
        if chain is not None and look(1):
            chains.keep(1, step, first, chain)
        del losses, chain
        if second is not None:
            with accelerator.autocast():
                arguments = (config.loop2, settings.loss, config.chosen.train.mask_points, totals.second, look(2))
                losses, chain = loop2(model, encode(second.images), second, *arguments)
            learn(losses, 1)
            if chain is not None:
                chains.keep(2, step, second, chain)
    reduced = [accelerator.reduce(gradient, "sum") for gradient in gradients]
    values = accelerator.reduce(
        torch.stack([torch.as_tensor(v, device=accelerator.device).float() for v in sums.values()]), "sum"
    )
    named = dict(zip(sums, values.tolist(), strict=True))
    if any(value != value for value in named.values()):
        wrong = ", ".join(name for name, value in named.items() if value != value)
        raise FloatingPointError(f"step {step + 1}: NaN in {wrong}; lower presets.<preset>.train.lr, or look at the batch")
    if "loop1_caption_gradient2" in named:
        named["loop1_caption_gradient"] = named.pop("loop1_caption_gradient2") ** 0.5
    return Gradients(reduced[0], reduced[1] if config.loop2 else None, named)


def _first(
    model: Segmenter,
    features: Features,
    teacher: partial[AbstractContextManager[None]],
    batch: ReferringBatch | MaskBatch,
    config: Config,
    step: int,
    counts: Counts,
) -> tuple[Losses, Chain | None]:
    settings, points = config.train, config.chosen.train.mask_points
    if isinstance(batch, ReferringBatch):
        return supervised(model, features, batch, settings.loss, points, counts), None
    tau = settings.loop1.tau_at(step, settings.steps)
    return loop1(model, teacher, features, batch, settings.loop1, settings.loss, points, tau, counts)


def resume_folder(config: Config, run: Run, accelerator: Accelerator) -> ResumeFolder:
    """The run's folder, the same on every process: only the first reads the inputs for the fingerprint."""
    name = [""]
    if accelerator.is_main_process:
        indexes = [run.indexes / f"{name}.arrow" for name in config.training_indexes()]
        name = [f"train-{fingerprint(config, shards.fingerprint(run.base), indexes)}"]
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(name)
    conditions = {
        "the number of processes": accelerator.num_processes,
        # with them each image is encoded by itself
        "features on disk (launch.feature_cache_gb)": "on" if config.launch.feature_cache_gb else "off",
        "code": code_version(),
    }
    folder = ResumeFolder(runs_folder() / name[0], conditions, config.launch.save_state_seconds)
    if accelerator.is_main_process:
        folder.lock()
    return folder


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _refuse_other_settings(params: Path, config: Config, save: Callable[[], None]) -> None:
    """Raise `ConfigError` where `params` no longer holds the settings that the run was begun with: DVC, which reads it when the
    stage ends, would note others beside the results. `save` keeps the finished run, so that nothing is lost."""
    try:
        now = load(params)
        changed = (now.preset, now.train, now.chosen.train) != (config.preset, config.train, config.chosen.train)
    except ConfigError:
        changed = True
    if changed:
        save()
        raise ConfigError(
            f"{params}: its training settings were changed while the run went on, perhaps by another `dvc exp run -S`. The run "
            "is finished and kept: put the settings back (git diff shows what changed) and start it again to have its results"
        )


class StopSignal:
    """Notes SIGTERM and Ctrl-C, so that the step in hand is finished and the state saved."""

    def __init__(self) -> None:
        self.received = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.received = True


def load_model(config: Config, run: Run, accelerator: Accelerator) -> tuple[Segmenter, dict[str, nn.Parameter]]:
    """The base on this process' device with LoRA in place, and its trained tensors (float32) by name."""
    lora = config.chosen.train.lora
    dtype = torch.bfloat16 if config.chosen.train.precision == "bf16" else torch.float32
    model = Segmenter.from_pretrained(run.base, accelerator.device, dtype, config.chosen.train.four_bit)
    if "lora" in config.chosen.train.trained:
        add_lora(model, lora.rank, lora.alpha, lora.dropout, config.train.seed, lora.targets)
    if "seg_row" in config.chosen.train.trained:
        add_seg_row(model)
    if config.chosen.train.checkpoint_activations:
        model.vlm.language_model.activation_checkpointing_enable({"use_reentrant": False})
    return model, select_trained(model, config.chosen.train.trained)


def image_encoder(config: Config, model: Segmenter, accelerator: Accelerator) -> Encode:
    """The frozen encoders over one micro-batch's images, once; with `launch.feature_cache_gb`, what they say lies on disk."""
    encode = model.encode_pixels
    if cache := config.launch.feature_cache_gb:
        encode = FeatureCache(model, config.chosen.train.precision, 1e9 * cache, accelerator.num_processes).encode_pixels
    return lambda images: encode(images.tiles, images.sam, images.sizes)


def load_data(config: Config, run: Run, model: Segmenter, accelerator: Accelerator) -> tuple[TrainingData, int]:
    """The training data of this process, and how many image rows were left out as belonging to an evaluated split."""
    settings, preset, root = config.train, config.chosen.train, Path(config.paths.root)
    referring = [read_index(run.indexes / f"{name}.arrow") for name in preset.referring]
    sources = config.loop1.sources if config.loop1 else {}
    masks = [Regions(n, read_index(run.indexes / f"{n}.arrow"), source.max_samples) for n, source in sources.items()]
    captions = None
    if loop2 := config.loop2:
        captions = Regions(loop2.source, read_index(run.indexes / f"{loop2.source}.arrow"), loop2.max_samples, described=True)
    if accelerator.is_main_process:  # of a large set it takes long, and each process would look at the same disk
        for index in [*referring, *(source.index for source in [*masks, *([captions] if captions else [])])]:
            check_listing(index, root)
    rows, left_out = training_rows(referring)
    rows = rows[: preset.max_train_samples]
    steps = settings.steps
    if preset.epochs is not None:
        steps = preset.epochs * preset.epoch_steps(len(rows), accelerator.num_processes)
    sampling = Sampling(
        seed=settings.seed,
        batch=preset.batch,
        max_tiles=preset.max_tiles,
        mask_points=preset.mask_points,
        objects_per_image=preset.objects_per_image,
        masks_per_image=settings.loop1.objects_per_image,
        objects_per_conversation=preset.objects_per_conversation,
        caption_len=preset.caption_len,
        top_k=settings.loop1.top_k,
        description_prompts=settings.loop1.description_prompts,
    )
    data = TrainingData(
        Referring(referring, rows),
        masks,
        [source.repeats for source in sources.values()],
        captions,
        root,
        model.config,
        model.tokenizer,
        sampling,
        items=steps * preset.accumulation,
        accumulation=preset.accumulation,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    return data, left_out


def checksum(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> int:
    """A sum over the bits of every frozen tensor, to prove afterwards that none has changed."""
    total = 0
    moving = {parameter.data_ptr() for parameter in trained.values()}  # tied tensors have two names
    for name, tensor in model.state_dict().items():
        if name not in trained and tensor.data_ptr() not in moving:
            kind = {1: torch.uint8, 2: torch.int16}.get(tensor.element_size(), torch.int32)
            values = tensor.detach().contiguous().flatten().view(kind)
            for bits in values.split(1 << 22):  # whole, the numbers beside an embedding would take gigabytes
                weights = torch.arange(1, len(bits) + 1, device=bits.device) % 65521
                total = (31 * total + int((bits.long() * weights).sum())) % 2**61
    return total


def describe(
    config: Config,
    model: Segmenter,
    trained: Mapping[str, nn.Parameter],
    data: TrainingData,
    left_out: int,
    processes: int,
) -> dict[str, object]:
    """The run's manifest: what is trained and frozen, the effective batch, the data, and the settings. `seg_token`: the row that
    group `seg_row` is."""
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
        entry["parameters"] += numbers(parameter)
    return {
        "groups": {name: entry for name, entry in groups.items() if entry["tensors"]},
        "processes": processes,
        "batch": preset.batch,
        "accumulation": preset.accumulation,
        "effective_batch": preset.effective_batch(processes),
        "samples": data.sizes(),
        "left_out_evaluated_images": left_out,
        "trained": list(preset.trained),
        "seg_token": model.seg_token,
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
        f"x {manifest['accumulation']} accumulated"
    )
    lines += [f"{count:>9,} samples of {name}" for name, count in manifest["samples"].items()]
    lines.append(f"{manifest['left_out_evaluated_images']:>9,} images left out, because they are in an evaluated split")
    return "\n".join(lines)


def new_optimizer(trained: Mapping[str, nn.Parameter], config: Config) -> torch.optim.Optimizer:
    """AdamW by the preset; the paged one raises `ModuleNotFoundError` without bitsandbytes."""
    preset = config.chosen.train
    kind = partial(torch.optim.AdamW, fused=True)
    if preset.optimizer == "paged_adamw":
        from bitsandbytes.optim import PagedAdamW32bit as kind  # an extra
    return kind(_groups(trained, config), lr=preset.lr, weight_decay=preset.weight_decay)


def page_again(optimizer: torch.optim.Optimizer) -> None:
    """Put a loaded state of a paged optimizer where such an optimizer keeps it: `torch.load` makes ordinary tensors of pages,
    which still say that they are pages, and bitsandbytes ends the process over that (bitsandbytes#782). Not tried on a GPU."""
    if not hasattr(optimizer, "get_state_buffer"):
        return
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = optimizer.get_state_buffer(parameter, value.dtype)
                state[name].copy_(value)


def _groups(trained: Mapping[str, nn.Parameter], config: Config) -> list[dict[str, object]]:
    preset = config.chosen.train
    decoder = [p for name, p in trained.items() if group_of_parameter(name) == "sam2_decoder"]
    rest = [p for name, p in trained.items() if group_of_parameter(name) != "sam2_decoder"]
    groups = [{"params": rest, "lr": preset.lr}, {"params": decoder, "lr": preset.lr * preset.lr_sam2_scale}]
    return [group for group in groups if group["params"]]


def slices_of_groups(trained: Mapping[str, nn.Parameter]) -> dict[str, list[slice]]:
    """Where each trained group lies in the flat vector."""
    slices: dict[str, list[slice]] = {}
    end = 0
    for name, parameter in trained.items():
        parts = slices.setdefault(group_of_parameter(name), [])
        # parts that touch become one: a product for each small tensor takes ten times as long
        start = parts.pop().start if parts and parts[-1].stop == end else end
        end += parameter.numel()
        parts.append(slice(start, end))
    return slices


def _batches(data: TrainingData, first: int, workers: int) -> Iterator[Pair]:
    """The micro-batches from number `first` on, made by `workers` processes (0: by this one).

    SIGTERM and Ctrl-C are for the training alone: a terminal and a batch system send them to the workers too, and a worker that
    dies of them takes the training along before it has saved. Workers inherit what is blocked here.
    """
    loader = DataLoader(
        data, batch_size=None, sampler=range(first, len(data)), num_workers=workers, prefetch_factor=2 if workers else None,
        worker_init_fn=_end_with_the_training,
    )  # fmt: skip
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _end_with_the_training(_: int) -> None:
    """In a worker: end at a SIGTERM that the training itself sends, as Python does to its workers when it exits."""

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _keep_newest(folder: Path, keep: int | None) -> None:
    for path in sorted(folder.glob("step_*.pth"))[: -keep if keep else 0]:
        path.unlink()
