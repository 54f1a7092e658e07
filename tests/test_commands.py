"""The experiments of README and docs/ablations.md, run as they are typed, one after the other, in a scratch repository.

It is this one with a small world, steps that count on one hand, and two variants; what the commands say and leave is looked at.
"""

import csv
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import pipeline
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.slow

SMALL = {
    "train_images": 12, "val_images": 4, "test_images": 3, "sa1b_images": 4, "sav_pairs": 4, "openimages_images": 4,
    "describe_images": 6, "reasonseg_images": 4,
}  # fmt: skip


class Repository:
    """A git and DVC repository with the code of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ans", "stages", "weights"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        values = pipeline.small_values(Path("data/world"), train__steps=2, report__bootstrap=20)
        values["world"] |= SMALL
        values["variants"] = {"base": [], "full": values["variants"]["full"]}
        values["presets"]["tiny"]["evaluate"] |= {"splits": ["refcoco_val", "refcoco_testA"], "captions": []}
        (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        self.run("git init -q && git config user.email a@example.org && git config user.name A")
        self.run("dvc init -q")
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
        self.run("dvc repro -q && git add -A && git commit -qm first")

    def run(self, script: str) -> str:
        """Its output; raises with it when a command fails. A question is answered with yes."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("ANS_", "DVC_", "GIT_"))}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=self.folder, env=environment, input="y\n" * 9, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def reset(self) -> None:
        self.run("git checkout -q . && dvc checkout -q")

    def experiments(self) -> list[dict[str, str]]:
        """`dvc exp show`, a row for each."""
        return [row for row in csv.DictReader(io.StringIO(self.run("dvc exp show --csv"))) if row["Experiment"]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("commands"))


def scripts(page: str, first: str) -> list[str]:
    """The page's blocks of shell that begin with `first`."""
    return [text for path, kind, text in blocks() if path.name == page and kind in ("", "sh") and text.lstrip().startswith(first)]


def test_what_readme_offers(repository: Repository) -> None:
    (script,) = scripts("README.md", "dvc exp run -S train.beta=0.25")
    repository.run(script)
    rows = repository.experiments()
    assert len(rows) == 4
    newest = yaml.safe_load((repository.folder / "params.yaml").read_text(encoding="utf-8"))
    assert newest["train"]["beta"] == 0.25 and newest["train"]["surgery"] == "pcgrad"
    assert newest["train"]["loop2"]["enabled"] is False and newest["evaluate"]["max_samples"] == 50
    losses = [float(row["reports/train/metrics.json:loss"]) for row in rows]
    assert len(set(losses)) > 1, "the loops' settings reach the training"
    repository.reset()


def test_what_ablations_offer(repository: Repository) -> None:
    """Every block of the page, in its order, the queue to its end."""
    for text in scripts("ablations.md", "dvc exp run -n") + scripts("ablations.md", "git checkout"):
        repository.run(text)
    names = {row["Experiment"] for row in repository.experiments()}
    assert {"beta25", "pcgrad", "loop1", "supervised", "hard", "seed43"} <= names
    for first in ("dvc exp show", "dvc exp apply", "for beta"):
        (script,) = scripts("ablations.md", first)
        repository.run(script)
    repository.reset()
    assert "beta-one-quarter" in repository.run("git branch")
    assert {"beta0.1", "beta0.25", "beta1"} <= {row["Experiment"] for row in repository.experiments()}
    (script,) = scripts("ablations.md", "dvc exp run --queue")
    repository.run(script)
    deadline = time.monotonic() + 600
    while any(word in (status := repository.run("dvc queue status")) for word in ("Running", "Queued")):
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert status.count("Success") == 2, status
