"""`python -m ans push` to a hub on this machine: what is there afterwards is what was here, and what goes wrong is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from ans.cli import main
from ans.formats import shards
from tests.checkpoints.test_export import run  # noqa: F401  (a fixture)
from tests.hub import Receiving

NAME = "somebody/segmenter"


def push(
    hub: Receiving, home: Path, *arguments: str | Path, token: str | None = "write", cwd: Path
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "HF_HUB_DISABLE_XET": "1"}
    for name, value in hub.environment(home, token).items():
        environment.pop(name, None)
        environment |= {} if value is None else {name: value}
    command = [sys.executable, "-m", "ans", "push", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_what_is_on_the_hub_is_what_was_here(run: Path, tmp_path: Path) -> None:  # noqa: F811
    full, base = run / "variants" / "full", run / "variants" / "base"
    with Receiving(frozenset({"write"})) as hub:
        done = push(
            hub, tmp_path, full, NAME, "--with", base, "--adapter", run / "checkpoint", "--private", "--message", "first", cwd=run
        )
        assert done.returncode == 0, done.stderr
        found = hub.repositories[NAME]
        assert found.commit in done.stdout and hub.messages == ["first"] * 3 and hub.privates == {NAME}
        for path in shards.files(full):
            assert found.files[path.name] == path.read_bytes()
        for path in shards.files(base):
            assert found.files[f"base/{path.name}"] == path.read_bytes()
        assert {"config.json", "tokenizer.json", "README.md", "base/README.md", "adapter/adapter_config.json"} <= set(found.files)
        same = {path.name for path in shards.files(full)} & {path.name for path in shards.files(base)}
        assert same and len(hub.uploads) == len(set(hub.uploads)), "a shard that both have is uploaded once"
        done = push(hub, tmp_path, full, NAME, cwd=run)
        assert done.returncode == 0 and "base/README.md" in hub.repositories[NAME].files, "what is there stays"
        assert not list((run / "variants").glob(".push*"))
        done = push(hub, tmp_path, full, NAME, token="wrong", cwd=run)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {NAME}: the hub refused it: ") and "401" in done.stderr
        done = push(hub, tmp_path, full, NAME, token=None, cwd=run)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
        done = push(hub, tmp_path, full, "no/such/name", cwd=run)
        assert done.returncode == 1 and "no/such/name: the hub refused it: " in done.stderr


def test_names_that_are_there_twice(run: Path) -> None:  # noqa: F811
    full = str(run / "variants" / "full")
    with pytest.raises(ValueError, match="--with: full would be written twice"):
        main(["push", full, NAME, "--with", full])


def test_the_card_is_read_as_the_hub_reads_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Once on published data, and once on the synthetic world, whose numbers must not pass for those of RefCOCO."""
    full = run / "variants" / "full"
    (tmp_path / "data" / "eval" / "full").mkdir(parents=True)
    (tmp_path / "data" / "eval" / "full" / "protocol.json").write_text(json.dumps({"prompt": "?"}))
    (tmp_path / "reports").symlink_to(run / "reports")
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    from ans.evaluation.protocol import protocol_fingerprint

    digits = protocol_fingerprint({"prompt": "?"})
    for root, data, words in (
        ("data/world", "ans-world", "synthetic world: drawings"),
        ("data", "refcoco", f"protocol: `{digits}`"),
    ):
        values["paths"]["root"] = root
        Path("params.yaml").write_text(yaml.safe_dump(values))
        main(["export", str(full), str(tmp_path / data)])
        card = ModelCard.load(tmp_path / data / "README.md")
        (result, _) = card.data.eval_results
        assert (result.dataset_type, result.dataset_split, result.metric_type, result.metric_value) == (
            data,
            "val",
            "ciou",
            43.21,
        )
        assert result.dataset_args == {"protocol": digits} and card.data.model_name == "Sa2VA, variant full"
        assert words in card.content and ("synthetic" in card.content) == (root == "data/world")
