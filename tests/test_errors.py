"""Wrong input reaches the user as one message that names what is wrong, by the commands that DVC runs."""

import re
import shutil
from pathlib import Path

import pytest

from ans.training.loop import train
from tests import forked, pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("errors"))


def message(work: Path, stage: str, *arguments: str) -> str:
    """What a failing stage says, without progress bars and manifest."""
    environment = {"PYTHONPATH": str(pipeline.REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HOME": str(work)}
    done = forked.run(f"stages.{stage}", *arguments, cwd=work, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


BY_COMMAND = {
    "unknown preset": ({"preset": "huge"}, "preset: no preset named 'huge'; there are lisa-7b, lisa-tiny, own, sa2va-1b,"),
    "unknown key": ({"train__stepz": 3}, "train.stepz: unknown key"),
    "no group": ({"train__groups": []}, "train.groups: "),
    "numbers that blow up": ({"train__loss__mask": 1e38}, "lower train.lr"),
}
BY_CALL = {
    "no samples": (
        {"train__loop1__sources": {"sav": {"repeats": 0.0}}},
        "train.loop1.sources: repeats is 0 for each of them, so nothing would be learnt",
    ),
    "unknown source": (
        {"train__loop1__sources": {"nothing": {}}}, "train.loop1: no index named 'nothing'; there are describe, grefcoco,",
    ),
    "loop 2 alone": (
        {"train__loop1__enabled": False, "train__referring__enabled": False}, "train: loop2 only helps other tasks; turn on a primary task",
    ),
    "another world": ({"paths__root": "/nowhere"}, "/nowhere"),
}  # fmt: skip
"""The same way for less time: a process pays for its imports. That a message becomes one line is tested by the others."""


@pytest.mark.parametrize("case", BY_CALL)
def test_training_refuses(work: Path, tmp_path: Path, case: str) -> None:
    changes, expected = BY_CALL[case]
    config = pipeline.small_config(work.parent / "world", **({"launch__workers": 0} | changes))
    with pytest.raises((ValueError, OSError), match=re.escape(expected)):
        train(config, pipeline.beside(work, tmp_path))


@pytest.mark.parametrize("case", BY_COMMAND)
def test_training_says_what_is_wrong(work: Path, case: str) -> None:
    changes, expected = BY_COMMAND[case]
    values = pipeline.small_values(work.parent / "world", **({"launch__workers": 0} | changes))
    (work / "params.yaml").write_text(pipeline.yaml.safe_dump(values))
    assert expected in message(work, "train")
    shutil.rmtree(work / "runs", ignore_errors=True)


def test_an_image_that_is_gone(work: Path, tmp_path: Path) -> None:
    other = tmp_path / "world"
    shutil.copytree(work.parent / "world", other)
    for path in (other / "coco2014" / "train2014").iterdir():
        path.unlink()
    pipeline.write_params(work, pipeline.small_values(other))
    said = message(work, "train")
    assert str(other) in said and "COCO_train2014_" in said and "no such image" in said


def test_a_base_of_another_shape(work: Path, tmp_path: Path) -> None:
    pipeline.write_params(work, pipeline.small_values(work.parent / "world"))
    base = work / "models" / "base"
    kept = (base / "config.json").read_text()
    (base / "config.json").write_text(kept.replace('"hidden_size": 96', '"hidden_size": 128'))
    try:
        said = message(work, "train")
    finally:
        (base / "config.json").write_text(kept)
    assert "models/base: the tensors do not fit the model" in said and "config.json says" in said
