"""What the hub refuses and what comes from it, without stage and shards: one process asks for all. The whole: test_hub.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pipeline
from tests.hub import Hub, Repository, cdn_path, sha256, small_path, tree_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 300}
OTHERS = {
    "README.md": b"# A model",
    "code.py": b"raise SystemExit",
    "onnx/config.json": b"{}",
    "onnx/model.safetensors": b"other",
}

ASK = """
import json, os, sys
from pathlib import Path
from ans.checkpoints.fetch import FetchError, fetch
from ans.config.schema import Weights
for line in sys.stdin:
    name, commit, token, out = json.loads(line)
    os.environ["HF_TOKEN"] = token
    try:
        fetch(Weights(source="hub", location=name, revision=commit, sha256={}), Path(out))
        print(json.dumps("whole"), flush=True)
    except FetchError as error:
        print(json.dumps(str(error)), flush=True)
"""
"""A process of its own: huggingface_hub reads at its import which hub to ask."""


@pytest.mark.second
def test_each_answer_of_the_hub(tmp_path: Path, monkeypatch) -> None:
    repositories = {
        "owner/name": Repository(MODEL | OTHERS, COMMIT),
        "owner/gated": Repository(MODEL, COMMIT, gated=True, readers=frozenset({"hf_reader"})),
        "owner/private": Repository(MODEL, COMMIT, private=True, readers=frozenset({"hf_reader"})),
        "owner/empty": Repository({"README.md": b"#"}, COMMIT),
    }
    with Hub(repositories, frozenset({"hf_reader", "hf_stranger"})) as hub:
        for variable, value in hub.environment(tmp_path / "home").items():
            monkeypatch.delenv(variable, raising=False) if value is None else monkeypatch.setenv(variable, value)
        process = subprocess.Popen(
            [sys.executable, "-c", ASK], cwd=pipeline.REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None and process.stdout is not None

        def ask(name: str = "owner/name", commit: str = COMMIT, token: str = "") -> str:
            print(json.dumps([name, commit, token, str(tmp_path / "out" / "base")]), file=process.stdin, flush=True)
            said = json.loads(process.stdout.readline())
            assert said == "whole" or "\n" not in said and said.startswith(f"{name} at {commit}: ") or name == "owner/empty"
            return said.removeprefix(f"{name} at {commit}: ")

        def left() -> dict[str, bytes]:
            base = tmp_path / "out" / "base"
            return {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*")}

        page, tokens = f"{hub.url}/owner/gated", f"{hub.url}/settings/tokens"
        access = "its files are for accounts that were given access, and"
        advice = f"accept the terms at {page}, then set HF_TOKEN to a token of that account which may read gated repositories ({tokens})"
        assert ask("owner/gated") == f"{access} no token was sent; {advice}"
        assert ask("owner/gated", token="hf_stranger") == f"{access} the token's account is not one of them; {advice}"
        missing = "no such model, or a private one; check weights.location, or set HF_TOKEN to a token that may read it"
        for token in ("", "hf_stranger"):
            assert ask("owner/mistyped", token=token) == ask("owner/private", token=token) == f"{missing} ({tokens})"
        invalid = f"the hub refuses access (401); set HF_TOKEN to a valid token ({tokens}), or unset it and `hf auth logout`"
        assert ask(token="hf_expired") == invalid
        assert ask(commit="f" * 40) == f"no such commit; take weights.revision from {hub.url}/owner/name/commits/main"

        again = "; run again: files that are whole are kept"
        hub.fail(tree_path("owner/name", COMMIT), "portal")
        assert ask() == f"{hub.url} gives no listing: does this network want a login, or is HF_ENDPOINT no hub?{again}"
        hub.heal()
        at_cdn = cdn_path(MODEL["model.safetensors"])
        hub.cdn.fail(at_cdn, "status", 403)
        found = ask()
        assert found.endswith(f"{at_cdn} answers 403 Forbidden{again}") and "?" not in found, "a signed address is a secret"
        hub.cdn.heal()
        hub.cdn.fail(at_cdn, "short", 1000)
        assert "file should be of size 76800 but has size" in (found := ask()) and found.endswith(again)
        hub.cdn.heal()
        hub.cdn.fail(at_cdn, "other")
        expected = f"model.safetensors: expected sha256 {sha256(MODEL['model.safetensors'])} by the hub's listing, got "
        assert (found := ask()).startswith(expected) and found.endswith("; run it again to download the file once more")
        assert not (tmp_path / "out" / "base").exists()
        hub.cdn.heal()

        assert ask() == "whole" and left() == MODEL
        assert len(hub.asked(small_path("owner/name", COMMIT, "config.json"))) == 1, "what was whole is not fetched again"
        assert "config.json is missing" in ask("owner/empty")
        for name in ("owner/gated", "owner/private"):
            assert ask(name, token="hf_reader") == "whole" and left() == MODEL
        assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".base.")] == ["base"]
        process.stdin.close()
        process.wait(60)
