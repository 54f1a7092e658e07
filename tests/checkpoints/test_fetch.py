"""Every source of base weights, against a local server that misbehaves in the ways that servers do."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ans.checkpoints import fetch as module
from ans.checkpoints.fetch import FetchError, fetch, fetch_sam2, read_sums
from ans.config import ConfigError
from ans.config.schema import MaskEncoderWeights, Weights
from tests.hub import FileServer, Hub, Repository, cdn_path, pointer, resolve_path, sha256

MODEL = {
    "config.json": b"{}",
    "model-a.safetensors": bytes(range(256)) * 1200,
    "model-b.safetensors": b"b" * 70_001,
    "model.safetensors.index.json": json.dumps({"weight_map": {"x": "model-a.safetensors", "y": "model-b.safetensors"}}).encode(),
    "tokenizer.json": b'{"version": "1.0"}',
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: sha256(data) for name, data in files.items()}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def pinned(source: str, location: str, revision: str | None = None, sha256: dict[str, str] | None = None) -> Weights:
    return Weights(source=source, location=location, revision=revision, sha256=sha256 or {})  # type: ignore[arg-type]


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
        ("model-b.safetensors", True, "model-b.safetensors has a checksum but is missing"),
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


def test_git_s_pointer_in_the_place_of_weights_is_refused(tmp_path: Path) -> None:
    """As a clone without git-lfs leaves it."""
    source = write(tmp_path / "given", {**MODEL, "model-b.safetensors": pointer(MODEL["model-b.safetensors"])})
    with pytest.raises(FetchError, match="model-b.safetensors is a Git LFS pointer, not the file; run `git lfs pull`"):
        fetch(pinned("path", str(source)), tmp_path / "base")
    assert not (tmp_path / "base").exists()


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
        (pinned("hub", "owner/name"), r"weights\.revision: expected a commit"),
        (pinned("url", "http://127.0.0.1:9/m"), r"weights\.sha256: is empty"),
        (pinned("embedded", "../elsewhere"), r"weights\.location: .* outside the repository"),
        (pinned("path", "/no/such/folder"), r"weights\.location: no folder '/no/such/folder'"),
    ],
)
def test_bad_parameters_name_their_key_and_leave_nothing(tmp_path: Path, weights: Weights, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fetch(weights, tmp_path / "base")
    assert not list(tmp_path.iterdir())


# --- url


FILE = "/m/model-a.safetensors"
CONTENT = MODEL["model-a.safetensors"]
CONFIG = "/m/config.json"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """MODEL below /m/."""
    monkeypatch.setattr(module, "PAUSE", 0.001)
    with FileServer({f"/m/{name}": data for name, data in MODEL.items()}) as server:
        yield server


def weights_at(server: FileServer) -> Weights:
    return pinned("url", f"{server.url}/m/", sha256=sums(MODEL))


def stop_early(server: FileServer, tmp_path: Path) -> None:
    """Let a call give up on FILE after five attempts of 40,000 bytes each."""
    server.fail(FILE, "cut", 40_000)
    with pytest.raises(FetchError):
        fetch(weights_at(server), tmp_path / "base")
    server.heal()


def part_of(tmp_path: Path) -> Path:
    (part,) = tmp_path.glob(".base.*/model-a.safetensors.part")
    return part


def test_url_brings_what_is_pinned_and_asks_once(tmp_path: Path, server: FileServer) -> None:
    fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL
    assert sorted(request.path for request in server.requests) == sorted(server.files)
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_dropped_connection_is_resumed_where_it_ended(tmp_path: Path, server: FileServer, kind: str) -> None:
    server.fail(FILE, kind, len(CONTENT) // 2, times=1)
    fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL
    first, second = server.ranges(FILE)
    # A reset may overtake bytes that were sent before it.
    assert first is None and (second == f"bytes={len(CONTENT) // 2}-" or kind == "reset")


def test_a_silent_connection_is_given_up(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.fail(FILE, "stall", 50_000, times=1)
    fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL and len(server.asked(FILE)) == 2


def test_a_server_without_ranges_starts_the_file_again(tmp_path: Path, server: FileServer) -> None:
    server.fail(FILE, "cut", len(CONTENT) // 2, times=1)
    server.fail(FILE, "no ranges")
    fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL


def test_a_busy_server_is_asked_again(tmp_path: Path, server: FileServer) -> None:
    server.fail(FILE, "status", 503, times=1)
    fetch(weights_at(server), tmp_path / "base")
    assert len(server.asked(FILE)) == 2


def test_each_pause_is_twice_the_last(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none follows the last attempt."""
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    monkeypatch.setattr(module, "PAUSE", 1.0)
    server.fail(FILE, "status", 429)
    with pytest.raises(FetchError, match="gave up after 5 attempts: the server answers 429 Too Many Requests; 0 bytes are kept"):
        fetch(weights_at(server), tmp_path / "base")
    assert pauses == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(("status", "attempts"), [(408, 5), (499, 1), (500, 5)])
def test_which_answers_are_asked_for_again(tmp_path: Path, server: FileServer, status: int, attempts: int) -> None:
    server.fail(FILE, "status", status)
    with pytest.raises(FetchError, match=f"model-a.safetensors: .*the server answers {status}"):
        fetch(weights_at(server), tmp_path / "base")
    assert len(server.asked(FILE)) == attempts


def test_no_more_is_taken_than_is_stated(tmp_path: Path, server: FileServer) -> None:
    server.fail(FILE, "excess")
    fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL


@pytest.mark.parametrize(
    ("kind", "number", "attempts", "message"),
    [
        ("status", 503, 5, "gave up after 5 attempts: the server answers 503"),
        ("cut", 40_000, 5, r"gave up after 5 attempts: ended at 200000 of 307200 bytes; 200000 bytes are kept"),
        ("short", 100, 1, r"expected sha256 .* \(\d+ bytes\); not the file that was pinned"),
        ("other", 0, 1, "expected sha256 .* not the file that was pinned"),
        ("pointer", 0, 1, "expected sha256 .* not the file that was pinned"),
        ("status", 404, 1, "the server answers 404"),
        ("status", 401, 1, "the server answers 401"),
    ],
)
def test_failures_are_bounded_and_named(
    tmp_path: Path, server: FileServer, kind: str, number: int, attempts: int, message: str
) -> None:
    server.fail(FILE, kind, number)
    with pytest.raises(FetchError, match=f"model-a.safetensors: {message}"):
        fetch(weights_at(server), tmp_path / "base")
    assert len(server.asked(FILE)) == attempts
    assert not (tmp_path / "base").exists()


def test_a_body_without_an_end_is_bounded(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSTATED", 1 << 20)
    server.fail(FILE, "endless")
    with pytest.raises(FetchError, match="model-a.safetensors: no length is stated, and more than 1048576 bytes"):
        fetch(weights_at(server), tmp_path / "base")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.part")) == 0
    server.heal()
    server.fail(FILE, "vast", 10**18)
    with pytest.raises(FetchError, match="model-a.safetensors: has 1000000000000000000 bytes, .* has room for"):
        fetch(weights_at(server), tmp_path / "base")


def test_what_just_fits_is_fetched_and_a_byte_more_is_not(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier call has brought takes no room again."""
    size = len(MODEL["model-a.safetensors"])

    def free(room: int) -> None:
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=room))

    free(size - 1)
    with pytest.raises(FetchError, match=f"model-a.safetensors: has {size} bytes, .* has room for {size - 1}"):
        fetch(weights_at(server), tmp_path / "base")
    free(size)
    fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL


@pytest.mark.parametrize(
    "to", ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://x", "/m/model-b.safetensors")
)
def test_redirects_lead_to_no_other_scheme(tmp_path: Path, server: FileServer, to: str) -> None:
    server.fail(FILE, "status", 302, headers={"Location": to})
    with pytest.raises(FetchError, match=r"model-a.safetensors: (leads to '|expected sha256|.*is not allowed)"):
        fetch(weights_at(server), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_redirects_to_another_host_are_followed_and_never_out_of_https(tmp_path: Path, server: FileServer) -> None:
    """As the hub leads to its CDN: what comes from there is pinned all the same."""
    with FileServer({"/other": CONTENT}) as other:
        server.fail(FILE, "status", 302, headers={"Location": f"{other.url}/other"})
        fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL
    follow = module._Redirects().redirect_request
    asked = urllib.request.Request("https://a.test/x")
    assert follow(asked, None, 302, "", {}, "https://b.test/y").full_url == "https://b.test/y"
    with pytest.raises(FetchError, match=r"https://a.test/x: leads to 'http://b.test/y'"):
        follow(asked, None, 302, "", {}, "http://b.test/y")


def test_the_next_call_goes_on_from_what_the_last_one_kept(tmp_path: Path, server: FileServer) -> None:
    stop_early(server, tmp_path)
    fetch(weights_at(server), tmp_path / "base")
    assert server.ranges(FILE)[-1] == "bytes=200000-"
    assert len(server.asked(CONFIG)) == 1
    assert files_of(tmp_path / "base") == MODEL


def test_a_part_of_another_file_is_thrown_away(tmp_path: Path, server: FileServer) -> None:
    stop_early(server, tmp_path)
    part = part_of(tmp_path)
    part.write_bytes(b"\0" * part.stat().st_size)
    fetch(weights_at(server), tmp_path / "base")
    assert server.ranges(FILE)[-2:] == ["bytes=200000-", None]
    assert files_of(tmp_path / "base") == MODEL


@pytest.mark.parametrize("content", [CONTENT, b"\0" * len(CONTENT)])
def test_a_part_as_long_as_the_file_is_taken_or_thrown_away(tmp_path: Path, server: FileServer, content: bytes) -> None:
    stop_early(server, tmp_path)
    part_of(tmp_path).write_bytes(content)
    before = len(server.asked(FILE))
    fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL
    assert server.ranges(FILE)[before:] == [f"bytes={len(CONTENT)}-", *([] if content == CONTENT else [None])]


def test_a_length_that_never_comes_true(tmp_path: Path, server: FileServer) -> None:
    """The bytes are all there in the end, and it is the checksum that says so."""
    stop_early(server, tmp_path)
    server.fail(FILE, "long", 100)
    fetch(weights_at(server), tmp_path / "base")
    assert files_of(tmp_path / "base") == MODEL


def test_another_range_than_was_asked_for_ends_in_an_error(tmp_path: Path, server: FileServer) -> None:
    stop_early(server, tmp_path)
    server.fail(FILE, "wrong range", 7)
    with pytest.raises(FetchError, match="asked for bytes from 200000, got 'bytes 200007-"):
        fetch(weights_at(server), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_damaged_file_of_an_earlier_call_is_not_trusted(tmp_path: Path, server: FileServer) -> None:
    stop_early(server, tmp_path)
    (part_of(tmp_path).parent / "config.json").write_bytes(b"{!")
    with pytest.raises(FetchError, match="config.json: expected sha256"):
        fetch(weights_at(server), tmp_path / "base")
    assert not list(tmp_path.iterdir())


def test_another_pin_does_not_reuse_the_leftovers(tmp_path: Path, server: FileServer) -> None:
    stop_early(server, tmp_path)
    weights = weights_at(server)
    others = {name: digest for name, digest in weights.sha256.items() if name != "tokenizer.json"}
    fetch(weights.model_copy(update={"sha256": others}), tmp_path / "base")
    assert server.ranges(FILE)[-1] is None
    assert "tokenizer.json" not in files_of(tmp_path / "base")


# --- SAM2's own file, beside a released InternVL


def sam2_at(server: FileServer) -> MaskEncoderWeights:
    return MaskEncoderWeights(location=server.url + FILE, sha256=sha256(CONTENT))


@pytest.mark.parametrize("faults", [[], [("cut", 1000)], [("cut", 1000), ("no ranges", 0)], [("status", 503)]])
def test_sam2_comes_by_address(tmp_path: Path, server: FileServer, faults: list[tuple[str, int]]) -> None:
    for kind, number in faults:
        server.fail(FILE, kind, number, times=1)
    fetch_sam2(sam2_at(server), tmp_path / "sam2.pt")
    assert (tmp_path / "sam2.pt").read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == ["sam2.pt"]


def test_sam2_comes_by_the_hub_s_address_of_a_file(tmp_path: Path, server: FileServer) -> None:
    """Which leads to the CDN, also when it is asked for the rest of a file."""
    path = resolve_path("owner/name", COMMIT, "sam2.bin")
    with Hub({"owner/name": Repository({"sam2.bin": CONTENT}, COMMIT)}) as hub:
        hub.cdn.fail(cdn_path(CONTENT), "cut", 1000, times=1)
        fetch_sam2(MaskEncoderWeights(location=hub.url + path, sha256=sha256(CONTENT)), tmp_path / "sam2.pt")
        assert hub.cdn.ranges(cdn_path(CONTENT)) == [None, "bytes=1000-"]
    assert (tmp_path / "sam2.pt").read_bytes() == CONTENT


def test_sam2_of_an_earlier_call_is_not_trusted(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "sam2.pt").write_bytes(b"another file")
    fetch_sam2(sam2_at(server), tmp_path / "sam2.pt")
    assert (tmp_path / "sam2.pt").read_bytes() == CONTENT


def test_sam2_comes_from_a_path_and_is_verified(tmp_path: Path, server: FileServer) -> None:
    given = tmp_path / "given.pt"
    given.write_bytes(b"weights")
    digest = sha256(b"weights")
    fetch_sam2(MaskEncoderWeights(location=str(given), sha256=digest), tmp_path / "sam2.pt")
    assert (tmp_path / "sam2.pt").read_bytes() == b"weights"
    with pytest.raises(FetchError, match=r"given\.pt: expected sha256 0{64}, got"):
        fetch_sam2(MaskEncoderWeights(location=str(given), sha256="0" * 64), tmp_path / "sam2.pt")
    with pytest.raises(ConfigError, match=r"weights\.sam2\.sha256: expected 64"):
        fetch_sam2(MaskEncoderWeights(location=str(given), sha256=""), tmp_path / "sam2.pt")
    with pytest.raises(ConfigError, match=r"weights\.sam2\.location: no file"):
        fetch_sam2(MaskEncoderWeights(location=str(tmp_path / "none.pt"), sha256=digest), tmp_path / "sam2.pt")
    server.fail(FILE, "other")
    with pytest.raises(FetchError, match=r"not the file that was pinned"):
        fetch_sam2(sam2_at(server), tmp_path / "sam2.pt")
