"""`python -m ans evaluate`: a checkpoint's metrics as the pipeline would have them, beside a run whose files stay as they are."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ans.cli.evaluate import evaluate_checkpoint, table
from ans.config import Config, ConfigError
from ans.workspace import Workspace
from tests import forked, pipeline

pytestmark = pytest.mark.slow

SPLIT = "refcoco_val"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for three steps with a step checkpoint after the second, converted, and evaluated as the variant `full`."""
    work = pipeline.prepare(tmp_path_factory.mktemp("evaluate"))
    values = pipeline.small_values(
        work.parent / "world", train__save_every=2, train__lr=0.01, evaluate__splits=[SPLIT], evaluate__captions=[]
    )
    pipeline.train_to_evaluation(work, values)
    return work


@pytest.fixture
def config(work: Path) -> Config:
    return pipeline.small_config(work.parent / "world")


def contents(work: Path) -> dict[str, tuple[int, str]]:
    """Every file and folder of the workspace: when it was written, and what is in it."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in sorted(work.rglob("*"))
    }


def test_it_gives_the_pipelines_numbers_and_leaves_the_run_alone(work: Path, tmp_path: Path) -> None:
    """As a user starts it, with the run's own `$ANS_RUNS` and nothing of what stands behind the checkpoint used."""
    expected, before = pipeline.metrics(work, "full", SPLIT), contents(work)
    assert expected["ciou"] != pipeline_of_the_base(work, tmp_path)["ciou"], (
        "the training changed nothing, so neither would a mistake"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(pipeline.REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "ANS_RUNS": str(work / "runs"), "TMPDIR": str(scratch),
    }  # fmt: skip
    command = ("evaluate", "--checkpoint", "models/checkpoint/last.pth", "--split", SPLIT, "--json")
    done = forked.run("ans", *command, cwd=work, env=environment)
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout) == {"checkpoint": "models/checkpoint/last.pth", "step": 3, "split": SPLIT, **expected}
    assert contents(work) == before and not list(scratch.iterdir())


def pipeline_of_the_base(work: Path, folder: Path) -> dict[str, float]:
    """The metrics of the untouched base."""
    from ans.evaluation.evaluate import evaluate

    here = pipeline.beside(work, folder / "base")
    values = pipeline.small_values(work.parent / "world", evaluate__splits=[SPLIT], evaluate__captions=[])
    evaluate(Config(values), "base", here)
    return json.loads((here.results("base") / f"{SPLIT}.json").read_text(encoding="utf-8"))


def test_a_step_checkpoint_and_a_part_of_a_split(work: Path, config: Config) -> None:
    """Another split than those of the settings, by its first images alone."""
    checkpoint = work / "models" / "checkpoint" / "step_000002.pth"
    found = evaluate_checkpoint(config, checkpoint, "refcoco_plus_testB", 2, Workspace(work))
    assert (found["step"], found["split"], found["images"], found["capped"]) == (2, "refcoco_plus_testB", 2, 1)
    shown = dict(line.split(maxsplit=1) for line in table(found).splitlines())
    assert shown["ciou"] == f"{found['ciou']:.4f}" and shown["n"] == str(found["n"]) and list(shown) == list(found)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"split": "nothing_val"}, ConfigError, "no index named 'nothing'"),
        ({"split": "refcoco_trial"}, ValueError, "no region of split 'trial'; its splits are"),
        ({"limit": 0}, ConfigError, "evaluate.max_samples: must be at least 1"),
        ({"checkpoint": Path("models/checkpoint/step_9.pth")}, OSError, "step_9.pth"),
    ],
)
def test_what_is_not_there_is_named(
    work: Path, config: Config, changes: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    chosen: dict[str, Any] = {"checkpoint": Path("models/checkpoint/last.pth"), "split": SPLIT, "limit": None} | changes
    with pytest.raises(error, match=message):
        evaluate_checkpoint(config, chosen["checkpoint"], chosen["split"], chosen["limit"])
