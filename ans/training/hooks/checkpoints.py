"""Step checkpoints: the trained tensors every `train.save_every` steps, of which the newest are kept."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ans.checkpoints.save import save_trained
from ans.model.keys import Keys
from ans.training.hooks import Hook


class StepCheckpoints(Hook):
    """`step_<number>.pth` in `folder` every `every` steps (0: never), at most the newest `keep` of them (None: all)."""

    def __init__(
        self, folder: Path, every: int, keep: int | None, keys: Keys, trained: Mapping[str, nn.Parameter],
        manifest: Mapping[str, object],
    ) -> None:  # fmt: skip
        self.folder, self.every, self.keep = folder, every, keep
        self.keys, self.trained, self.manifest = keys, trained, manifest

    def after(self, step: int, values: dict[str, float]) -> None:
        if self.every and step % self.every == 0:
            save_trained(self.folder / f"step_{step:06d}.pth", self.keys, self.trained, dict(self.manifest) | {"step": step})
            for path in self.files()[: -self.keep if self.keep else 0]:
                path.unlink()

    def files(self) -> list[Path]:
        """Return the checkpoints that there are, oldest first."""
        return sorted(self.folder.glob("step_*.pth"))
