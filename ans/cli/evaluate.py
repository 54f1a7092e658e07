"""A training checkpoint on one split, while its training goes on: `python -m ans evaluate --checkpoint FILE --split NAME`.

FILE is a step checkpoint: of a training that goes on it lies in runs/train-<digits> (or below `$ANS_RUNS`), of one that has ended in
models/checkpoint, beside last.pth. The metrics are those that the variant `full` would have, by the settings of params.yaml. Nothing
below this folder is written: the model is put together in a temporary folder (`TMPDIR` chooses where; on the disk
of models/base it takes only the shards that were trained). CUDA_VISIBLE_DEVICES chooses the GPU; empty, the CPU.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ans.workspace import Workspace

if TYPE_CHECKING:  # `--help` need not wait for pydantic
    from ans.config import Config

HELP = "metrics of a training checkpoint on one split, while the training goes on"
VARIANT = "full"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="e.g. runs/train-<digits>/step_000100.pth")
    parser.add_argument("--split", required=True, metavar="NAME", help="<index>_<part>, e.g. refcoco_val")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images (default: evaluate.max_samples)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")


def run(chosen: argparse.Namespace) -> None:
    """Run the command. Raises what `evaluate_checkpoint` does."""
    from ans.config import load

    with contextlib.redirect_stdout(sys.stderr):  # notes, so that the output is the result alone
        result = evaluate_checkpoint(load(Workspace().params), chosen.checkpoint, chosen.split, chosen.limit)
    print(json.dumps(result) if chosen.json else table(result))


@dataclass(frozen=True)
class Aside(Workspace):
    """A workspace whose unfinished work lies in it too, whatever `$ANS_RUNS` says."""

    @property
    def runs(self) -> Path:
        return self.root / "runs"


def evaluate_checkpoint(
    config: "Config", checkpoint: Path, split: str, limit: int | None = None, workspace: Workspace = Workspace()
) -> dict[str, Any]:
    """Return the metrics that the stages `convert`, `filter` and `evaluate` would write for the variant `full`, with the checkpoint,
    its step and the split in front. `limit`: images.

    Raises what these stages do, and does so for an unknown split before anything is made.
    """
    from ans.checkpoints.convert import convert
    from ans.checkpoints.variants import make_variant
    from ans.evaluation.evaluate import evaluate
    from ans.evaluation.plan import make_plan

    changes: dict[str, Any] = {
        "evaluate.splits": [split],
        "evaluate.captions": [],
        "evaluate.grounded": [],
        "convert.source": str(checkpoint),
    }
    changes["launch.feature_cache_gb"] = 0.0  # the cache belongs to the run
    config = config.changed(changes | ({"evaluate.max_samples": limit} if limit is not None else {}))
    scope = config.evaluate.scope
    make_plan(scope, workspace.indexes, Path(config.paths.root))
    with tempfile.TemporaryDirectory(prefix="ans-evaluate-") as folder:
        aside = Aside(Path(folder))
        aside.indexes.parent.mkdir(parents=True)
        aside.indexes.symlink_to(workspace.indexes.resolve())
        convert(config.convert, workspace.base, aside.converted)
        make_variant(workspace.base, aside.converted, config.variants[VARIANT], aside.variant(VARIANT), whole=True)
        evaluate(config, VARIANT, aside)
        (name,) = scope.split_results()
        metrics = json.loads((aside.results(VARIANT) / f"{name}.json").read_text(encoding="utf-8"))
        step = json.loads((aside.converted / "trained.json").read_text(encoding="utf-8"))["step"]
    return {"checkpoint": str(checkpoint), "step": step, "split": split, **metrics}


def table(result: dict[str, Any]) -> str:
    """Return one line for each entry, shares with four decimals."""
    return "\n".join(
        f"{name:<12} {value:.4f}" if isinstance(value, float) else f"{name:<12} {value}" for name, value in result.items()
    )
