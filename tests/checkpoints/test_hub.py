"""Base weights from the hub: stage `weights` as DVC runs it, with the real `huggingface_hub`, against a hub on this machine. What each
refusal becomes: test_hub_answers.py, without the stage."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from safetensors.numpy import save

from ans.checkpoints.base import shard
from tests import pipeline
from tests.hub import Hub, Repository, cdn_path, git_id, resolve_path, sha256, small_path, tree_path, xorb_path

pytestmark = pytest.mark.slow

NAME, COMMIT = "owner/name", "0123456789abcdef0123456789abcdef01234567"
FOLDER = pipeline.REPOSITORY / "weights" / "tiny"
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TINY = {name: (FOLDER / name).read_bytes() for name in NAMES}
OTHERS = {  # what a repository holds beside its model
    "README.md": b"# A model",
    "modeling_x.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80",
    "onnx/config.json": b"{}",
    "onnx/model.safetensors": b"in another format",
}
LARGE, SMALL = TINY["model.safetensors"], TINY["config.json"]
AT_CDN = cdn_path(LARGE)
READER, STRANGER = "hf_reader", "hf_stranger"

STAGE = """
import shutil
from ans.checkpoints import base
base.shard = shutil.copytree
from stages import weights
weights.run_stage(weights.main)
"""
"""Stage `weights` with a copy in place of shards, whose imports would take most of this module's time. One test runs all of it."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Repository(TINY | OTHERS, COMMIT), tmp_path, monkeypatch) as hub:
        yield hub


def serve(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> Hub:
    """A hub with one model, to which the stages that the test starts will go."""
    hub = Hub({NAME: repository}, frozenset({READER, STRANGER}))
    for name, value in hub.environment(tmp_path / "home", token).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    return hub


def fetch(work: Path, name: str = NAME, commit: str = COMMIT, sha256: dict[str, str] | None = None) -> Path:
    """Run `STAGE` in `work`; returns the base. Raises `AssertionError` with its output if it fails."""
    write_params(work, name, commit, sha256)
    environment = os.environ | {"PYTHONPATH": str(pipeline.REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", STAGE], cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    assert [entry.name for entry in (work / "models").iterdir()] == ["base"]  # nothing temporary stays
    return work / "models" / "base"


def write_params(work: Path, name: str = NAME, commit: str = COMMIT, sha256: dict[str, str] | None = None) -> None:
    values = yaml.safe_load((pipeline.REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    values["weights"] |= {"source": "hub", "location": name, "revision": commit, "sha256": sha256 or {}}
    work.mkdir(exist_ok=True)
    (work / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def refusal(work: Path, name: str = NAME, commit: str = COMMIT, sha256: dict[str, str] | None = None) -> str:
    """The one line with which the stage ends instead."""
    with pytest.raises(AssertionError) as caught:
        fetch(work, name, commit, sha256)
    assert "Traceback" not in str(caught.value)
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith("error: ")]
    assert not (work / "models" / "base").exists()
    return line.removeprefix("error: ").replace(f"{name} at {commit}: ", "")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def same(base: Path) -> bool:
    """Whether `base` holds the model's files as they lie in this repository, and nothing else."""
    return contents(base) == TINY


def test_stored_in_shards(hub: Hub, tmp_path: Path) -> None:
    work, expected = tmp_path / "work", tmp_path / "expected"
    write_params(work)
    # a process of its own: huggingface_hub reads at its import which hub to ask
    environment = os.environ | {"PYTHONPATH": str(pipeline.REPOSITORY)}
    subprocess.run([sys.executable, "-m", "stages.weights"], cwd=work, env=environment, check=True, capture_output=True)
    shard(FOLDER, expected)
    assert contents(work / "models" / "base") == contents(expected)
    assert [entry.name for entry in (work / "models").iterdir()] == ["base"]  # nothing temporary stays


# ------------------------------------------------------------------------------------------------------------ what comes


def test_a_model_comes_whole_and_alone(hub: Hub, tmp_path: Path) -> None:
    assert same(fetch(tmp_path / "work"))
    got = {path for path in (request.path.partition("?")[0] for request in hub.requests if request.method == "GET")}
    small = [name for name in TINY if name != "model.safetensors"]
    assert got - {"/api/agent-harnesses"} == {tree_path(NAME, COMMIT), *(small_path(NAME, COMMIT, name) for name in small)}
    assert [request.path.partition("?")[0] for request in hub.cdn.requests] == [AT_CDN]


def test_in_chunks_where_it_is_kept_in_xet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Repository(TINY, COMMIT, xet=True), tmp_path, monkeypatch) as hub:
        monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
        for kind in ("cut", "reset"):
            hub.cdn.fail(xorb_path(LARGE), kind, len(LARGE) // 2, times=1)
        assert same(fetch(tmp_path / "work"))
        assert not hub.cdn.asked(AT_CDN) and len(hub.cdn.asked(xorb_path(LARGE))) == 3


def test_a_model_that_was_renamed(hub: Hub, tmp_path: Path) -> None:
    hub.moved["old/name"] = NAME
    assert same(fetch(tmp_path / "work", name="old/name"))


def test_the_token_is_for_the_hub_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CDN would answer 400."""
    repository = Repository(TINY, COMMIT, gated=True, private=True, readers=frozenset({READER}))
    with serve(repository, tmp_path, monkeypatch, READER) as hub:
        assert same(fetch(tmp_path / "work"))
        assert {request.headers.get("authorization") for request in hub.requests if NAME in request.path} == {f"Bearer {READER}"}
        assert "authorization" not in hub.cdn.requests[0].headers


# ------------------------------------------------------------------------------------------------------------ what is refused


def test_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_matches("HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or", refusal(tmp_path / "work"))
    assert not hub.requests


def test_a_page_that_is_not_the_hub_s(hub: Hub, tmp_path: Path) -> None:
    hub.fail(resolve_path(NAME, COMMIT, "config.json"), "portal")
    message = ".*missing the 'X-Repo-Commit' header, so .* If HF_ENDPOINT is set, check"
    assert_matches(message, refusal(tmp_path / "work"))


def test_a_sum_of_the_preset_that_does_not_fit(hub: Hub, tmp_path: Path) -> None:
    found = refusal(tmp_path / "work", sha256={"model.safetensors": "0" * 64})
    assert found == f"{NAME}: model.safetensors: expected sha256 {'0' * 64}, got {sha256(LARGE)}"


# ------------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    "faults",
    [
        [("hub", tree_path(NAME, COMMIT), "status", 503), ("hub", tree_path(NAME, COMMIT), "status", 429)],
        [("hub", resolve_path(NAME, COMMIT, "config.json"), "status", 502), ("cdn", AT_CDN, "status", 429)],
        [("cdn", AT_CDN, "cut", 1000), ("cdn", AT_CDN, "stall", 1000), ("cdn", AT_CDN, "excess", 0)],
    ],
    ids=["listing", "answers", "connection"],
)
def test_what_passes_is_tried_again(
    faults: list[tuple[str, str, str, int]], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")  # seconds
    for server, path, kind, number in faults:
        {"hub": hub, "cdn": hub.cdn}[server].fail(path, kind, number, times=1)
    assert same(fetch(tmp_path / "work"))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_large_file_goes_on_where_the_connection_was_cut(ranges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = constants.DOWNLOAD_CHUNK_SIZE
    large = safetensors({"text_hidden_fcs.0.weight": np.random.default_rng(0).random(3 * written // 8)})
    with serve(Repository({"config.json": SMALL, "model.safetensors": large}, COMMIT), tmp_path, monkeypatch) as hub:
        hub.cdn.fail(cdn_path(large), "cut", 2 * written + 999, times=1)
        if not ranges:
            hub.cdn.fail(cdn_path(large), "no ranges")
        base = fetch(tmp_path / "work")
        assert hub.cdn.ranges(cdn_path(large)) == [None, f"bytes={2 * written}-"]
    (file,) = base.glob("*.safetensors")
    assert file.read_bytes() == large


@pytest.mark.parametrize(
    ("kind", "number", "message"),
    [
        pytest.param("status", 503, "http.*/{} answers 503 Service Unavailable; run again: files", id="503"),
        pytest.param("reset", 1000, ".*onnection reset by peer; run again: files that are whole are kept", id="reset"),
        pytest.param("pointer", 0, r".*file should be of size \d+ but has size 1\d\d .*; run again: files", id="pointer"),
    ],
)
def test_what_does_not_is_named_and_the_next_run_goes_on(hub: Hub, tmp_path: Path, kind: str, number: int, message: str) -> None:
    hub.cdn.fail(AT_CDN, kind, number)
    found = refusal(tmp_path / "work")
    assert_matches(message.format(sha256(LARGE)), found)
    assert "Signature" not in found.partition(" ")[0]  # a signed address is good for all who read the log
    hub.heal()
    assert same(fetch(tmp_path / "work"))
    assert len(hub.cdn.asked(AT_CDN)) == 2 and len(hub.asked(small_path(NAME, COMMIT, "config.json"))) == 1


def test_a_small_file_with_other_bytes(hub: Hub, tmp_path: Path) -> None:
    hub.fail(small_path(NAME, COMMIT, "config.json"), "other")
    assert_matches(f"config.json: expected git-sha1 {git_id(SMALL)} by the hub's listing, got", refusal(tmp_path / "work"))
    hub.heal()
    assert same(fetch(tmp_path / "work"))


def test_chunks_with_other_bytes_or_without_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Repository(TINY, COMMIT, xet=True), tmp_path, monkeypatch) as hub:
        hub.cdn.fail(xorb_path(LARGE), "other")
        assert_matches(f"model.safetensors: expected sha256 {sha256(LARGE)} by the hub's", refusal(tmp_path / "work"))
        hub.heal()
        hub.cas.fail(f"/v1/reconstructions/{sha256(LARGE)}", "status", 401)
        assert_matches(".*401 Unauthorized.*; run again: files that are whole are kept", refusal(tmp_path / "work"))


def test_a_hub_that_does_not_answer(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute each, of waiting between attempts; so both at once."""
    hub.fail(tree_path(NAME, COMMIT), "status", 503)
    with ThreadPoolExecutor() as pool:
        down = pool.submit(refusal, tmp_path / "down")
        while not hub.requests:  # it has read its environment
            assert not down.done()
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        nobody = pool.submit(refusal, tmp_path / "nobody")
    assert_matches(".*/tree/.* answers 503 Service Unavailable; run again", down.result())
    assert_matches(r".*Connection refused; run again", nobody.result())
    assert len(hub.asked(tree_path(NAME, COMMIT))) == 6


def assert_matches(pattern: str, text: str) -> None:
    assert re.match(pattern, text), f"{text!r} is not {pattern!r}"


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    return save(tensors)
