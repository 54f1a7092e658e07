"""README's experiments, run as they are typed, one after the other, in a scratch repository.

The repository is this one with a small world, two steps, and two variants. Other experiments of the pages differ from these in
keys and values only, which tests/test_docs.py checks.
"""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
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

SOURCES = ("refcoco", "sa1b", "sav", "describe")


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
        values["sources"] = {name: values["sources"][name] for name in SOURCES}
        values["variants"] = {"base": [], "full": values["variants"]["full"]}
        values["train"]["loop1"]["sources"] = {"sav": {"repeats": 1.0}}
        values["train"]["referring"]["sources"] = ["refcoco"]
        values["evaluate"] |= {"splits": ["refcoco_val"], "captions": []}
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

    def experiments(self) -> list[dict[str, str]]:
        """`dvc exp show`, a row for each."""
        return [row for row in csv.DictReader(io.StringIO(self.run("dvc exp show --csv"))) if row["Experiment"]]


def script(page: str, first: str) -> str:
    """The page's block of shell that begins with `first`."""
    (found,) = [text for path, kind, text in blocks() if path.name == page and kind in ("", "sh") and text.startswith(first)]
    return found


@pytest.mark.timeout(1200)
def test_experiments_run_as_they_are_typed(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.run(script("README.md", "dvc exp run -S train.beta=0.25"))
    rows = repository.experiments()
    assert len(rows) == 4
    names = ("train.beta", "train.loop2.enabled", "evaluate.max_samples", "train.surgery")
    settings = {tuple(row[name] for name in names) for row in rows}
    assert settings == {
        ("0.25", "", "", "orthogonal"), ("0.5", "False", "", "orthogonal"), ("0.5", "", "50", "orthogonal"),
        ("0.5", "", "", "pcgrad"),
    }, "none has another's setting"  # fmt: skip
    assert len({row["grad_norm"] for row in rows}) >= 2, "with loop 2 and without"
    (back,) = set(re.findall(r"^git checkout .*", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
    repository.run(back)
    assert not repository.run("git status --porcelain") and not repository.run("dvc metrics diff").strip()
