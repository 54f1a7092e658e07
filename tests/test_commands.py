"""README's experiments, run as they are typed, one after the other, in a scratch repository.

What is tested is what DVC makes of the commands: which stages run, by which settings, and what is left of them. So the repository has
this one's dvc.yaml and params.yaml with two variants, and its stages are run by `STAGE`, which leaves what dvc.yaml says instead of
training. Other experiments of the pages differ from these in keys and values only, which tests/test_docs.py checks; the stages
themselves are run by tests/test_pipeline.py.
"""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests import pipeline
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.slow

SOURCES = ("refcoco", "sa1b", "sav", "describe")


STAGE = """
import hashlib, json, os
from pathlib import Path
import yaml

name, _, key = os.environ["DVC_STAGE"].partition("@")
stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][name]
stage = stage.get("do", stage)
params = yaml.safe_load(Path("params.yaml").read_text())
number = int(hashlib.sha256(json.dumps(params["train"]).encode()).hexdigest()[:6], 16)
values = json.dumps({"full": {"ciou": number}} if name == "report" else {"grad_norm": number})
for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
    path = Path((out if isinstance(out, str) else next(iter(out))).replace("${key}", key))
    if not path.suffix:
        path.mkdir(parents=True, exist_ok=True)
        for file in ("manifest.json", "examples.json"):  # which the report asks for by name
            (path / file).write_text(values)
        path /= "values.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("variant,ciou\\nfull,0.5\\n" if path.suffix == ".csv" else values)
with open(os.environ["RAN"], "a") as file:
    file.write(os.environ["DVC_STAGE"] + "\\n")
"""
"""A stage that leaves its outputs, of which the numbers depend on the settings of the training, and writes down that it ran."""


def pipeline_of_stand_ins() -> dict:
    """This repository's dvc.yaml with `STAGE` as every command and without code among the dependencies, which nothing here changes
    and DVC would hash and copy for each experiment."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    for entry in content["stages"].values():
        stage = entry.get("do", entry)
        stage["cmd"] = "python stage.py"
        stage["deps"] = [dep for dep in stage.get("deps", []) if not dep.startswith(("ans/", "stages/"))]
    return content


class Repository:
    """A git and DVC repository with this one's pipeline."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder / "repository", folder / "ran"
        folder = self.folder
        shutil.copytree(ROOT / "ans/presets", folder / "ans/presets")
        shutil.copytree(ROOT / "weights", folder / "weights")
        for name in (".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        (folder / "stage.py").write_text(STAGE, encoding="utf-8")
        (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline_of_stand_ins(), sort_keys=False), encoding="utf-8")
        values = pipeline.small_values(Path("data/world"))
        values["sources"] = {name: values["sources"][name] for name in SOURCES}
        values["variants"] = {"base": [], "full": values["variants"]["full"]}
        values["train"]["loop1"]["sources"] = {"sav": {"repeats": 1.0}}
        values["train"]["referring"]["sources"] = ["refcoco"]
        values["evaluate"] |= {"splits": ["refcoco_val"], "captions": []}
        (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        self.run("git init -q && git config user.email a@example.org && git config user.name A")
        self.run("dvc init -q")
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
        self.run("dvc repro && git add -A && git commit -qm first")

    def run(self, script: str) -> str:
        """Its output; raises with it when a command fails. A question is answered with yes."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("ANS_", "DVC_", "GIT_"))}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1", "RAN": str(self.ran),
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


@pytest.mark.timeout(1200)  # DVC alone, five times over all stages
def test_experiments_run_as_they_are_typed(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    lines = script("README.md", "dvc exp run -S train.beta=0.25").splitlines()
    repository.run("\n".join(line for line in lines if not line.startswith("python -m ans compare")))  # there are no predictions
    rows = repository.experiments()
    assert len(rows) == 4
    names = ("train.beta", "train.loop2.enabled", "evaluate.max_samples", "train.surgery")
    settings = {tuple(row[name] for name in names) for row in rows}
    assert settings == {
        ("0.25", "", "", ""), ("", "False", "", ""), ("", "", "50", ""),
        ("", "", "", "pcgrad"),
    }, "none has another's setting"  # fmt: skip
    assert len({row["grad_norm"] for row in rows}) == 4, "each has its own numbers"
    ran = Counter(repository.ran.read_text(encoding="utf-8").split())
    assert {name: ran[name] for name in ("world", "index@refcoco", "train", "evaluate@full", "report")} == {
        "world": 1, "index@refcoco": 1, "train": 4, "evaluate@full": 5, "report": 5,
    }, "of the four, one changes the evaluation alone"  # fmt: skip
    (back,) = set(re.findall(r"^git checkout .*", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
    repository.run(back)
    assert not repository.run("git status --porcelain") and not repository.run("dvc metrics diff").strip()
