"""Every source of base weights, against a local server that misbehaves in the ways that servers do."""

import dataclasses
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ans.checkpoints import fetch as module
from ans.checkpoints.fetch import FetchError, fetch, fetch_sam2, read_sums
from ans.config import ConfigError
from ans.config import PresetWeights, Sam2Weights

MODEL = {
    "config.json": b"{}",
    "model-a.safetensors": bytes(range(256)) * 1200,
    "model-b.safetensors": b"b" * 70_001,
    "model.safetensors.index.json": json.dumps({"weight_map": {"x": "model-a.safetensors", "y": "model-b.safetensors"}}).encode(),
    "tokenizer.json": b'{"version": "1.0"}',
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def pinned(source: str, location: str, revision: str | None = None, sha256: dict[str, str] | None = None) -> PresetWeights:
    return PresetWeights(source, location, revision, sha256 or {}, None)  # type: ignore[arg-type]


# --- local folders


def test_path_takes_the_model_and_leaves_code_and_pickles(tmp_path: Path) -> None:
    source = write(tmp_path / "given", {**MODEL, "modeling_x.py": b"print()", "pytorch_model.bin": b"\x80", "README.md": b"#"})
    fetch(pinned("path", str(source)), tmp_path / "models" / "base")
    assert files_of(tmp_path / "models" / "base") == MODEL
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["base"]  # nothing temporary stays


def test_it_replaces_what_was_there(tmp_path: Path) -> None:
    source = write(tmp_path / "given", MODEL)
    out = write(tmp_path / "base", {"old.safetensors": b"old"})
    fetch(pinned("path", str(source), sha256=sums(MODEL)), out)
    assert files_of(out) == MODEL


def test_a_wrong_byte_is_named_and_the_old_result_stays(tmp_path: Path) -> None:
    expected = sums(MODEL)
    source = write(tmp_path / "given", {**MODEL, "model-b.safetensors": b"c" + MODEL["model-b.safetensors"][1:]})
    out = write(tmp_path / "base", {"old.safetensors": b"old"})
    with pytest.raises(FetchError, match=r"model-b\.safetensors: expected sha256 " + expected["model-b.safetensors"] + ", got "):
        fetch(pinned("path", str(source), sha256=expected), out)
    assert files_of(out) == {"old.safetensors": b"old"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "given"]


@pytest.mark.parametrize(
    ("gone", "pin", "message"),
    [
        ("model-b.safetensors", True, "model-b.safetensors has a checksum but is not there"),
        ("model-b.safetensors", False, "model-b.safetensors is missing"),  # by the index
        ("config.json", False, "config.json is missing"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, gone: str, pin: bool, message: str) -> None:
    source = write(tmp_path / "given", {name: data for name, data in MODEL.items() if name != gone})
    with pytest.raises(FetchError, match=message):
        fetch(pinned("path", str(source), sha256=sums(MODEL) if pin else None), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_shard_without_a_checksum_among_pinned_ones_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "given", {**MODEL, "extra.safetensors": b"?"})
    with pytest.raises(FetchError, match="extra.safetensors has no checksum"):
        fetch(pinned("path", str(source), sha256=sums(MODEL)), tmp_path / "base")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "given", {"config.json": b"{}"})
    with pytest.raises(FetchError, match="no \\*.safetensors"):
        fetch(pinned("path", str(source)), tmp_path / "base")


def test_embedded_is_checked_by_its_own_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listing = "".join(f"{digest}  {name}\n" for name, digest in sums(MODEL).items())
    folder = write(tmp_path / "weights" / "tiny", {**MODEL, "SHA256SUMS": listing.encode()})
    tiny = pinned("embedded", "weights/tiny")
    fetch(tiny, Path("models/base"))
    assert files_of(tmp_path / "models" / "base") == MODEL
    (folder / "config.json").write_bytes(b"{ }")
    with pytest.raises(FetchError, match="config.json: expected sha256"):
        fetch(tiny, Path("models/base"))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(FetchError, match="SHA256SUMS: no such file"):
        fetch(tiny, Path("models/base"))


def test_a_bad_line_of_sums_is_named(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  a.json\n{'0' * 63}  b.json\n")
    with pytest.raises(FetchError, match="SHA256SUMS: line 2"):
        read_sums(tmp_path / "SHA256SUMS")


def test_a_folder_is_not_copied_but_linked(tmp_path: Path) -> None:
    """16 GB that lie there already are not written a second time before they are sharded."""
    source = write(tmp_path / "given", MODEL)
    fetch(pinned("path", str(source)), tmp_path / "base")
    assert all(path.samefile(source / path.name) for path in (tmp_path / "base").iterdir())


def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"x": "/etc/passwd"}}).encode()
    source = write(tmp_path / "given", {**MODEL, "model.safetensors.index.json": index})
    with pytest.raises(FetchError, match="weight_map points to '/etc/passwd'; only plain names"):
        fetch(pinned("path", str(source)), tmp_path / "base")
    assert not (tmp_path / "base").exists()


# --- parameters


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (pinned("hub", "owner/name", "main"), r"weights\.revision: expected a commit .* found 'main'"),
        (pinned("hub", "owner/name"), r"weights\.revision: expected a commit"),
        (pinned("hub", "owner/name", COMMIT[:12]), r"weights\.revision: expected a commit"),
        (pinned("hub", "no-owner", COMMIT), r"weights\.location: expected owner/name"),
        (pinned("url", "http://127.0.0.1:9/m"), r"weights\.sha256: is empty"),
        (pinned("url", "file:///etc", sha256={"hosts": "0" * 64}), r"weights\.location: expected an http"),
        (pinned("url", "http://127.0.0.1:9/m", COMMIT, {"a": "0" * 64}), r"weights\.revision: only source `hub`"),
        (pinned("url", "http://127.0.0.1:9/m", sha256={"../a": "0" * 64}), r"weights\.sha256: '\.\./a' is not a plain file name"),
        (pinned("url", "http://127.0.0.1:9/m", sha256={"a": "00"}), r"weights\.sha256\.a: expected 64"),
        (pinned("path", "/no/such/folder"), r"weights\.location: no folder '/no/such/folder'"),
        (
            pinned("hub", "ByteDance/Sa2VA-8B", COMMIT),
            r"weights\.location: ByteDance/Sa2VA-8B is not supported yet: .* InternLM2",
        ),
        (pinned("embedded", "../elsewhere"), r"weights\.location: .* outside the repository"),
    ],
)
def test_bad_parameters_name_their_key_and_leave_nothing(tmp_path: Path, weights: PresetWeights, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fetch(weights, tmp_path / "base")
    assert not list(tmp_path.iterdir())


# --- url


class Server(ThreadingHTTPServer):
    """Serves MODEL under /m/. `fault` names what it does wrong; `asked` counts requests; `ranges` are the Range headers seen."""

    fault = ""
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.ranges: list[str | None] = []

    def weights(self) -> PresetWeights:
        return pinned("url", f"http://127.0.0.1:{self.server_port}/m/", sha256=sums(MODEL))


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.removeprefix("/m/")
        self.server.asked[name] += 1
        fault = self.server.fault if name == "model-a.safetensors" else ""
        first = self.server.asked[name] == 1
        if name not in MODEL or fault == "gone":
            return self.send_error(404)
        if fault == "busy" and first or fault == "down":
            return self.send_error(503)
        data, wanted, status, start = MODEL[name], self.headers.get("Range"), 200, 0
        if wanted is not None and fault != "no ranges":
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(data):
                return self.send_error(416)
        if name == "model-a.safetensors":
            self.server.ranges.append(wanted)
        if fault == "other file":
            data = data[::-1]
        body = data[start:]
        announced = len(body)
        if fault in ("drops", "no ranges") and first or fault == "drops always":
            body = body[: 40_000 if fault == "drops always" else len(body) // 2]
        elif fault == "announces too much":
            announced += 100
        elif fault == "announces too little":
            announced -= 100
        self.send_response(status)
        self.send_header("Content-Length", str(announced))
        if status == 206:
            shown = start + 7 if fault == "wrong range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def part_of(tmp_path: Path) -> Path:
    (part,) = tmp_path.glob(".base.*/model-a.safetensors.part")
    return part


def test_url_brings_what_is_pinned_and_asks_once(tmp_path: Path, server: Server) -> None:
    fetch(server.weights(), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL
    assert server.asked == Counter(list(MODEL))
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]


def test_a_dropped_connection_is_resumed_where_it_ended(tmp_path: Path, server: Server) -> None:
    server.fault = "drops"
    fetch(server.weights(), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL
    assert server.ranges == [None, f"bytes={len(MODEL['model-a.safetensors']) // 2}-"]


def test_a_server_without_ranges_starts_the_file_again(tmp_path: Path, server: Server) -> None:
    server.fault = "no ranges"
    fetch(server.weights(), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL


def test_a_busy_server_is_asked_again(tmp_path: Path, server: Server) -> None:
    server.fault = "busy"
    fetch(server.weights(), tmp_path / "base")
    assert server.asked["model-a.safetensors"] == 2


@pytest.mark.parametrize(
    ("fault", "attempts", "message"),
    [
        ("down", 5, "gave up after 5 attempts: the server answers 503"),
        ("drops always", 5, r"gave up after 5 attempts: ended at 200000 of 307200 bytes; 200000 bytes are kept"),
        ("announces too little", 1, "expected sha256 .* not the file that was pinned"),
        ("other file", 1, "expected sha256 .* not the file that was pinned"),
        ("gone", 1, "the server answers 404"),
    ],
)
def test_failures_are_bounded_and_named(tmp_path: Path, server: Server, fault: str, attempts: int, message: str) -> None:
    server.fault = fault
    with pytest.raises(FetchError, match=f"model-a.safetensors: {message}"):
        fetch(server.weights(), tmp_path / "base")
    assert server.asked["model-a.safetensors"] == attempts
    assert not (tmp_path / "base").exists()


def test_the_next_call_goes_on_from_what_the_last_one_kept(tmp_path: Path, server: Server) -> None:
    server.fault = "drops always"
    with pytest.raises(FetchError):
        fetch(server.weights(), tmp_path / "base")
    server.fault = ""
    fetch(server.weights(), tmp_path / "base")
    assert server.ranges[-1] == "bytes=200000-"
    assert server.asked["config.json"] == 1
    assert files_of(tmp_path / "base") == MODEL


def test_a_part_of_another_file_is_thrown_away(tmp_path: Path, server: Server) -> None:
    server.fault = "drops always"
    with pytest.raises(FetchError):
        fetch(server.weights(), tmp_path / "base")
    server.fault = ""
    part = part_of(tmp_path)
    part.write_bytes(b"\0" * part.stat().st_size)
    fetch(server.weights(), tmp_path / "base")
    assert server.ranges[-2:] == ["bytes=200000-", None]
    assert files_of(tmp_path / "base") == MODEL


@pytest.mark.parametrize("content", [MODEL["model-a.safetensors"], b"\0" * len(MODEL["model-a.safetensors"])])
def test_a_part_as_long_as_the_file_is_taken_or_thrown_away(tmp_path: Path, server: Server, content: bytes) -> None:
    server.fault = "drops always"
    with pytest.raises(FetchError):
        fetch(server.weights(), tmp_path / "base")
    server.fault = ""
    part_of(tmp_path).write_bytes(content)
    fetch(server.weights(), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL


@pytest.mark.parametrize("fault", ["wrong range", "announces too much"])
def test_a_length_that_never_comes_true_ends_in_an_error(tmp_path: Path, server: Server, fault: str) -> None:
    server.fault = "drops always"
    with pytest.raises(FetchError):
        fetch(server.weights(), tmp_path / "base")
    server.fault = fault
    if fault == "announces too much":  # the bytes are all there in the end, and it is the checksum that says so
        fetch(server.weights(), tmp_path / "base")
        assert files_of(tmp_path / "base") == MODEL
    else:
        with pytest.raises(FetchError, match="asked for bytes from 200000, got 'bytes 200007-"):
            fetch(server.weights(), tmp_path / "base")
        assert not (tmp_path / "base").exists()


def test_a_damaged_file_of_an_earlier_call_is_not_trusted(tmp_path: Path, server: Server) -> None:
    server.fault = "drops always"
    with pytest.raises(FetchError):
        fetch(server.weights(), tmp_path / "base")
    (part_of(tmp_path).parent / "config.json").write_bytes(b"{!")
    server.fault = ""
    with pytest.raises(FetchError, match="config.json: expected sha256"):
        fetch(server.weights(), tmp_path / "base")
    assert not list(tmp_path.iterdir())


def test_another_pin_does_not_reuse_the_leftovers(tmp_path: Path, server: Server) -> None:
    server.fault = "drops always"
    with pytest.raises(FetchError):
        fetch(server.weights(), tmp_path / "base")
    server.fault = ""
    weights = server.weights()
    others = {name: digest for name, digest in weights.sha256.items() if name != "tokenizer.json"}
    fetch(dataclasses.replace(weights, sha256=others), tmp_path / "base")
    assert server.ranges[-1] is None
    assert "tokenizer.json" not in files_of(tmp_path / "base")


# --- SAM2's own file, beside a released InternVL


def sam2_at(server: Server, name: str = "model-a.safetensors") -> Sam2Weights:
    return Sam2Weights(f"http://127.0.0.1:{server.server_port}/m/{name}", sums(MODEL)[name])


@pytest.mark.parametrize("fault", ["", "drops", "no ranges", "busy"])
def test_sam2_comes_by_address(tmp_path: Path, server: Server, fault: str) -> None:
    server.fault = fault
    fetch_sam2(sam2_at(server), tmp_path / "sam2.pt")
    assert (tmp_path / "sam2.pt").read_bytes() == MODEL["model-a.safetensors"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["sam2.pt"]


def test_sam2_of_an_earlier_call_is_not_trusted(tmp_path: Path, server: Server) -> None:
    (tmp_path / "sam2.pt").write_bytes(b"another file")
    fetch_sam2(sam2_at(server), tmp_path / "sam2.pt")
    assert (tmp_path / "sam2.pt").read_bytes() == MODEL["model-a.safetensors"]


def test_sam2_comes_from_a_path_and_is_verified(tmp_path: Path, server: Server) -> None:
    given = tmp_path / "given.pt"
    given.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    fetch_sam2(Sam2Weights(str(given), digest), tmp_path / "sam2.pt")
    assert (tmp_path / "sam2.pt").read_bytes() == b"weights"
    with pytest.raises(FetchError, match=r"given\.pt: expected sha256 0{64}, got"):
        fetch_sam2(Sam2Weights(str(given), "0" * 64), tmp_path / "sam2.pt")
    with pytest.raises(ConfigError, match=r"weights\.sam2\.sha256: expected 64"):
        fetch_sam2(Sam2Weights(str(given), ""), tmp_path / "sam2.pt")
    with pytest.raises(ConfigError, match=r"weights\.sam2\.location: no file"):
        fetch_sam2(Sam2Weights(str(tmp_path / "none.pt"), digest), tmp_path / "sam2.pt")
    server.fault = "other file"
    with pytest.raises(FetchError, match=r"not the file that was pinned"):
        fetch_sam2(sam2_at(server), tmp_path / "sam2.pt")
