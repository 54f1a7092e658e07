"""Fine-tuning. `train` reads as a page: set up, then step after step: batches, gradients, update, teacher, hooks, state."""

import logging
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from ans.checkpoints.save import save_trained
from ans.config import Config, ConfigError, load
from ans.files import write_json
from ans.formats import shards
from ans.launch import STOPPED
from ans.processes import connect
from ans.progress import Progress
from ans.training import manifest as manifests
from ans.training import setup
from ans.training.ema import Teacher
from ans.training.hooks import Hook
from ans.training.hooks.checkpoints import StepCheckpoints
from ans.training.hooks.curves import Curves
from ans.training.hooks.examples import Examples
from ans.training.hooks.health import Health
from ans.training.hooks.sinks import Sinks
from ans.training.hooks.validation import Validation
from ans.training.hooks.video_validation import VideoValidation
from ans.training.mixture import Mixture
from ans.training.sharding import share_out
from ans.training.signals import StopSignal
from ans.training.step import Stepper, count
from ans.workspace import Workspace

log = logging.getLogger(__name__)


def train(config: Config, workspace: Workspace = Workspace(), guard_params: bool = False) -> None:
    """Fine-tune the base on the tasks that are on; leave trained tensors, a manifest and examples in `workspace.checkpoint`, curves
    in `workspace.training`.

    Started once per process (see `ans/launch.py`); the number of processes changes no sample and no random choice of a step's global
    batch. Killed and started again it continues, to the same bits. With `guard_params`, `params.yaml` has to hold the same settings
    when the training ends (`Run.refuse_other_settings`). Raises `FloatingPointError` at a loss or gradient that is not
    finite, `Degenerate` where going on would be pointless, `ResumeError` when continued under other conditions.
    """
    run = Run(config, workspace)
    first_step = run.resume()
    run.announce(first_step)
    stop, settings = StopSignal(), config.train
    batches = setup.batches(run.mixture, first_step * settings.accumulation, config.launch.workers)
    run.model.train()
    for step in range(first_step, run.steps):
        if any(hook.over for hook in run.hooks.values()):
            break
        # for dropout; all else is keyed by the sample
        torch.manual_seed(hash((settings.seed, step, run.accelerator.process_index)))
        micro_batches = list(islice(batches, settings.accumulation))
        counts, stopping = count(micro_batches, run.tasks, run.accelerator, stop.received)
        if stopping:
            run.save(step, wait=True)
            run.sinks.finish()
            run.progress.write(f"stopped at step {step} of {run.steps}, saved; start the same command again to go on there")
            run.accelerator.wait_for_everyone()  # SLURM kills all tasks when the first one ends
            raise SystemExit(STOPPED)
        values = run.stepper.update(run.stepper.gradients(micro_batches, counts, step, run.examples), step)
        run.teacher.update(step)
        for hook in run.hooks.values():
            hook.after(step + 1, values)
        run.progress.update(values=shown(values))
        if run.state.due():
            run.save(step + 1)
    run.progress.close()
    if guard_params:
        run.refuse_other_settings()
    run.finish()


def shown(values: Mapping[str, float]) -> dict[str, float]:
    """Return, of a step's values, those of a line of progress: losses, IoU, gradient norm, learning rate, and the GPU's memory in GiB."""
    line = {name: value for name, value in values.items() if name in ("loss", "grad_norm", "lr") or name.endswith("_train_iou")}
    return line | ({"memory": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {})


class Run:
    """A training with all its parts."""

    def __init__(self, config: Config, workspace: Workspace) -> None:
        settings = config.train
        self.config, self.workspace, self.accelerator = config, workspace, connect(settings.precision)
        first, processes = self.accelerator.is_main_process, self.accelerator.num_processes
        if not first:  # they would say the same
            logging.getLogger("ans").setLevel(logging.ERROR)
        shared, device = config.launch.shard_frozen, self.accelerator.device
        self.model, self.trained = setup.load_model(settings, workspace.base, torch.device("cpu") if shared else device)
        if shared:
            self.model.meet = share_out(self.model, device, processes)
        self.tasks = setup.load_tasks(config, workspace, self.model, first)
        self.steps, epoch = setup.steps_of(settings, self.tasks, processes)
        self.mixture = Mixture(
            self.tasks, self.steps, settings.batch, settings.accumulation, self.accelerator.process_index, processes
        )
        self.frozen = setup.frozen_checksum(self.model, self.trained)
        self.optimizer = setup.new_optimizer(self.model, self.trained, settings)
        taught = self.trained if any(task.teacher for task in self.tasks.values()) else {}
        self.teacher = Teacher(taught, settings.ema.decay, settings.ema.warmup)
        self.stepper = Stepper(
            self.model, self.tasks, settings, self.steps, list(self.trained.values()), setup.slices_of_groups(self.model, self.trained),
            self.optimizer, setup.image_encoder(config, self.model, workspace, processes), partial(self.teacher.of, self.model),
            self.accelerator,
        )  # fmt: skip
        base = setup.base_checksum(workspace, self.accelerator)
        self.state = setup.resume_folder(config, workspace, base, self.tasks, self.accelerator)
        for name, task in self.tasks.items():
            task.count_bad_images_in(self.state.bad_images(name))
        self.manifest = manifests.describe(config, self.model, self.trained, self.tasks, self.steps, base, processes)
        batch = settings.effective_batch(processes)
        self.progress = Progress(self.steps, "train", "step", quiet=not first, holds=(batch, "images"))
        self.curves = Curves(workspace.training if first else None)
        self.examples = Examples(settings.gallery, self.steps, first)
        self.hooks: dict[str, Hook] = {
            "curves": self.curves, "health": Health(self.tasks, settings.min_seg_rate), "examples": self.examples,
        }  # fmt: skip
        sinks = Sinks(
            config.launch.log_with if first else (), workspace.live, workspace.runs / "logs", self.state.folder.name,
            self.manifest["train"], self.curves,
        )  # fmt: skip
        self.validation: Validation | None = None
        if settings.validation is not None:
            videos = config.validation_videos()
            kind = Validation if videos is None else partial(VideoValidation, videos)
            self.hooks["validation"] = self.validation = kind(
                settings.validation, workspace.indexes, Path(config.paths.root), self.model, self.trained,
                settings.validation.every or epoch, self.curves, sinks, self.progress, self.accelerator,
            )  # fmt: skip
        self.hooks["sinks"] = self.sinks = sinks
        if first:
            self.hooks["checkpoints"] = StepCheckpoints(
                self.state.folder, settings.save_every, settings.keep, self.model.config.keys, self.trained, self.manifest
            )

    def resume(self) -> int:
        """Take up the last saved state; the step (from 0) to go on with."""
        state = self.state.load()
        if state is None:
            return 0
        for name, parameter in self.trained.items():
            parameter.data.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        setup.page_again(self.optimizer)
        self.teacher.load_state_dict(state["teacher"])
        for name, hook in self.hooks.items():
            hook.load_state_dict(state["hooks"][name])
        self.progress.start_at(state["step"])
        if self.accelerator.is_main_process and (before := state["processes"]) != (now := self.accelerator.num_processes):
            log.info(
                f"begun on {before} process(es), continued on {now}: the samples are the same, LoRA's dropout and the order of sums are not"
            )
        return state["step"]

    def save(self, step: int, wait: bool = False) -> None:
        """Save everything that is needed to go on after `step` steps; `wait` until it is on the disk."""
        if self.accelerator.is_main_process:
            hooks = {name: hook.state_dict() for name, hook in self.hooks.items()}
            parts = {"optimizer": self.optimizer.state_dict(), "teacher": self.teacher.state_dict(), "hooks": hooks}
            state = {"step": step, "processes": self.accelerator.num_processes, "trained": dict(self.trained)}
            self.state.save(state | parts, wait)

    def announce(self, first_step: int) -> None:
        """Say what is trained on what."""
        if not self.accelerator.is_main_process:
            return
        log.info(manifests.text(self.manifest) + (f"\ncontinued at step {first_step}" if first_step else ""))
        if not first_step and (similar := self.state.similar()):
            log.info("\n".join(["starting a new run; unfinished runs with similar settings:", *similar]))
        if unseen := self.config.evaluated_alone():
            log.info(
                f"note: {', '.join(unseen)} will be evaluated, and training does not leave its photographs out; where they "
                "may be among those learnt from, name it in train.referring.sources too"
            )

    def refuse_other_settings(self) -> None:
        """Raise `ConfigError` where params.yaml no longer holds the settings that the run was started with: DVC, which reads it when
        the stage ends, would note others beside the results. The finished run is kept, so nothing is lost."""
        params = self.workspace.params
        try:
            now = load(params)
            same = (now.train, now.tasks, now.preset) == (self.config.train, self.config.tasks, self.config.preset)
        except ConfigError:
            same = False
        if not same:
            self.save(self.steps, wait=True)
            raise ConfigError(
                f"{params}: its training settings were changed while the run went on, perhaps by another `dvc exp run -S`. The run "
                "is finished and kept: put the settings back (git diff shows what changed) and start it again to have its results"
            )

    def finish(self) -> None:
        """Leave the results, and remove the state. Raises `RuntimeError` where a frozen tensor has changed."""
        if setup.frozen_checksum(self.model, self.trained) != self.frozen:
            raise RuntimeError("a frozen tensor changed during training; do not use this run")
        if self.validation is not None:
            self.validation.finish()
        if not self.accelerator.is_main_process:
            return
        out = self.workspace.checkpoint
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.state.folder.glob("step_*.pth")):
            (out / path.name).unlink(missing_ok=True)
            shards.link(path, out / path.name)
        best = self.validation.best if self.validation is not None else None
        if best is not None:
            self.manifest["best"] = best["row"]
            best_step = self.manifest | {"step": best["row"]["step"]}
            save_trained(out / "best.pth", self.model.config.keys, best["trained"], best_step)
        validation = self.config.train.validation
        if best is None or validation is None or not validation.save_best_only:
            last_step = self.manifest | {"step": self.curves.rows["loss"][-1][0]}
            save_trained(out / "last.pth", self.model.config.keys, self.trained, last_step)
        write_json(out / "manifest.json", self.manifest)
        write_json(out / "examples.json", self.examples.kept)
        self.curves.finish()
        self.sinks.finish()
        for name in self.tasks:
            if self.state.bad_images(name).is_file():
                skipped = set(self.state.bad_images(name).read_text(encoding="utf-8").splitlines())
                log.warning(
                    f"{name}: {len(skipped)} images could not be used and were skipped:\n" + "\n".join(sorted(skipped)[:20])
                )
        write_json(self.workspace.training / "history.json", self.validation.history if self.validation is not None else [])
        self.state.remove()
