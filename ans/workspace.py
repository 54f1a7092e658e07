"""Where everything of a run lies: the paths that `dvc.yaml` names, once."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder that holds `params.yaml`; stages run in it."""

    root: Path = Path(".")

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def world(self) -> Path:
        """The synthetic world, whatever `paths.root` says."""
        return self.root / "data/world"

    @property
    def indexes(self) -> Path:
        return self.root / "data/index"

    def index(self, name: str) -> Path:
        return self.indexes / f"{name}.arrow"

    def index_report(self, name: str) -> Path:
        return self.root / "reports/data" / f"{name}.json"

    def selected(self, stage: str) -> Path:
        """Return the indexes that `train` or `evaluate` reads, by content."""
        return self.root / "data/selected" / f"{stage}.json"

    @property
    def base(self) -> Path:
        """The base's weights, in shards by module group."""
        return self.root / "models/base"

    @property
    def checkpoint(self) -> Path:
        """The trained tensors, the manifest, and examples of the tasks."""
        return self.root / "models/checkpoint"

    @property
    def converted(self) -> Path:
        """The trained model in the Hugging Face layout."""
        return self.root / "models/hf"

    def variant(self, name: str) -> Path:
        return self.root / "models/variants" / name

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def training(self) -> Path:
        """Curves and metrics of the training."""
        return self.reports / "train"

    @property
    def live(self) -> Path:
        """DVCLive's files of the training that goes on; no result."""
        return self.training / "live"

    def results(self, variant: str) -> Path:
        """Return metrics of a variant, one file per split."""
        return self.reports / "eval" / variant

    def predictions(self, variant: str) -> Path:
        """Return predictions of a variant, one table per split."""
        return self.root / "data/eval" / variant

    @property
    def records(self) -> Path:
        """Notes of runs of DVC: the parameters that one began with, when and where a stage ran."""
        return self.root / ".dvc/tmp/ans"

    @property
    def runs(self) -> Path:
        """Unfinished work: `$ANS_RUNS`, else `runs`."""
        return Path(os.environ.get("ANS_RUNS", self.root / "runs"))
