"""Shards as they are written, against the library's own reader; folders that appear whole; what a `.pth` may be wrapped in."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ans.formats import shards
from ans.formats.pth import read_pth, tensor_bytes, tensors_checksum

TYPES = {
    "F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "I32": torch.int32, "F16": torch.float16,
    "BF16": torch.bfloat16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
TENSORS = {name: torch.arange(3).to(dtype) for name, dtype in TYPES.items()}


def write(folder: Path, group: str, tensors: dict[str, tuple[str, torch.Tensor]]) -> dict[str, str]:
    described = {name: (dtype, tuple(tensor.shape)) for name, (dtype, tensor) in tensors.items()}
    return shards.write_group(folder, group, described, lambda name: tensor_bytes(tensors[name][1]))


def test_every_type_is_written_and_read(tmp_path: Path) -> None:
    sums = write(tmp_path, "fcs", {name: (name, tensor) for name, tensor in TENSORS.items()})
    (path,) = shards.files(tmp_path)
    assert path.name == "model-fcs-00001-of-00001.safetensors" and sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    }
    assert shards.group_in_name(path) == "fcs" and shards.group_in_name(Path("model-a-b-00001-of-00002.safetensors")) == "a-b"
    found = load_file(path)
    assert found.keys() == TENSORS.keys() and all(torch.equal(tensor, TENSORS[name]) for name, tensor in found.items())
    entries = shards.header(path)
    for name, entry in entries.items():
        assert (entry.path, entry.dtype, entry.shape) == (path, name, (3,))
        assert entry.read() == bytes(tensor_bytes(TENSORS[name]))
        assert entry.start % TENSORS[name].element_size() == 0, "aligned, as the library writes it"
    assert min(entry.start for entry in entries.values()) % 8 == 0 and path.read_bytes()[8:].startswith(
        b'{"__metadata__":{"format":"pt"}'
    )
    shards.write_index(tmp_path, sums)
    index = json.loads((tmp_path / shards.INDEX).read_text())
    assert index == {
        "metadata": {"total_size": sum(t.numel() * t.element_size() for t in TENSORS.values()), "sha256": sums},
        "weight_map": dict.fromkeys(sorted(TENSORS), path.name),
    }
    assert shards.shards_checksum(tmp_path) == hashlib.sha256(f"{sums[path.name]}  {path.name}\n".encode()).hexdigest()
    path.rename(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"index\.json: .*other\.safetensors"):
        shards.read_sums(tmp_path)


def test_a_group_is_split_where_a_shard_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is larger than a shard has one of its own."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 24)
    numbers = {"a": 2, "b": 4, "c": 1, "d": 10, "e": 1}
    sums = write(tmp_path, "proj", {name: ("F32", torch.ones(n)) for name, n in numbers.items()})
    found = {path.name: sorted(shards.header(path)) for path in shards.files(tmp_path)}
    parts = (["a", "b"], ["c"], ["d"], ["e"])
    assert found == {f"model-proj-0000{number}-of-00004.safetensors": names for number, names in enumerate(parts, 1)}
    assert sums.keys() == found.keys()


def test_a_tensor_of_another_size_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a: 12 bytes do not fill \('F32', \(2,\)\)"):
        shards.write_group(tmp_path, "fcs", {"a": ("F32", (2,))}, lambda _: b"\0" * 12)


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    write(tmp_path, "fcs", {"a": ("F32", torch.ones(4))})
    (path,) = shards.files(tmp_path)
    entry = shards.header(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model-fcs-.*: ends too early"):
        entry.read()


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors file here"):
        shards.files(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"weight_map": []}', "[" * 100_000])
def test_what_is_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json: not an index of shards \("):
        shards.read_shard_index(tmp_path / "index.json")


def test_side_files_are_copied_and_links_refused(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    for name in (*shards.SIDE_FILES, "README.md"):
        (tmp_path / "from" / name).write_text(name)
    shards.copy_side_files(tmp_path / "from", tmp_path / "to")
    assert {path.name: path.read_text() for path in (tmp_path / "to").iterdir()} == {name: name for name in shards.SIDE_FILES}
    assert not (tmp_path / "to/config.json").samefile(tmp_path / "from/config.json")
    (tmp_path / "from/vocab.json").unlink()
    (tmp_path / "from/vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"vocab\.json: a symbolic link \(to /etc/passwd\)"):
        shards.copy_side_files(tmp_path / "from", tmp_path / "to")


def test_a_folder_takes_its_place_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    for text in ("one", "two"):
        with shards.folder_at_once(out) as folder:
            (folder / f"{text}.txt").write_text(text)
            assert folder.parent == out.parent and folder != out
        assert [path.name for path in out.iterdir()] == [f"{text}.txt"] and os.listdir(out.parent) == ["out"]
    for number, match in (
        (errno.ENOSPC, r"deep/out could not be written: .*what was there is untouched"),
        (errno.EACCES, "^.Errno"),
    ):
        with pytest.raises(OSError, match=match) as caught, shards.folder_at_once(out):
            raise OSError(number, "reason")
        assert caught.value.errno == number and os.listdir(out.parent) == ["out"] and os.listdir(out) == ["two.txt"]


def test_a_working_folder_stays_when_something_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), shards.working_folder(tmp_path / "a" / "work") as folder:
        (folder / "half").touch()
        raise KeyError
    with shards.working_folder(tmp_path / "a" / "work") as folder:
        assert (folder / "half").exists()
    assert not folder.exists()


# ---------------------------------------------------------------- .pth

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_the_digest_by_hand() -> None:
    total = hashlib.sha256()
    for name, text in (("a.bias", "torch.bfloat16 (2,)"), ("b.weight", "torch.float32 (2, 3)")):
        total.update(f"{name} {text}\n".encode() + STATE[name].view(torch.uint8).numpy().tobytes())
    assert tensors_checksum(STATE) == total.hexdigest() == tensors_checksum(dict(reversed(STATE.items())))
    turned = STATE["b.weight"].T
    assert bytes(tensor_bytes(turned)) == turned.contiguous().numpy().tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": STATE, "model": STATE}, "holds both `state_dict` and `model`; save the one that you mean"),
        ({"state_dict": STATE, "meta": 3}, "`meta` is not a dict"),
        ({"state_dict": {}}, "holds no tensor"),
        ({}, "holds dict, not a dict of tensors"),
        ({"state_dict": {3: torch.ones(1)}}, "3 is Tensor, not a tensor under a name"),
        ({"state_dict": STATE, "meta": {"sha256": "0" * 64}}, "its tensors do not have the sha256 that it records"),
    ],
)
def test_wrappings_that_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.pth: {message}"):
        read_pth(saved(tmp_path / "a.pth", content))


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    def read(content: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        found = read_pth(saved(tmp_path / "a.pth", content))
        assert found.path == tmp_path / "a.pth" and all(
            torch.equal(a, b) for a, b in zip(found.state.values(), STATE.values(), strict=True)
        )
        return list(found.state), found.meta

    names = list(STATE)
    meta = {"step": 3, "sha256": tensors_checksum(STATE)}
    assert read({"state_dict": STATE, "meta": meta}) == (names, meta) and read({"model": STATE, "meta": {}}) == (names, {})
    assert read(STATE) == (names, {})
    wrapped = {f"module.{name}": tensor for name, tensor in STATE.items()}
    assert read(wrapped) == (names, {})
    half = dict(zip(("module.b.weight", "a.bias"), STATE.values(), strict=True))
    assert read(half) == (["module.b.weight", "a.bias"], {}), "a prefix is what all have"


def test_a_run_s_best_comes_before_its_last(tmp_path: Path) -> None:
    saved(tmp_path / "last.pth", {"state_dict": STATE, "meta": {"step": 9}})
    assert read_pth(tmp_path).meta["step"] == 9
    saved(tmp_path / "best.pth", {"state_dict": STATE, "meta": {"step": 5}})
    found = read_pth(tmp_path)
    assert found.meta["step"] == 5 and found.path == tmp_path / "best.pth"
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"other: holds neither last\.pth nor pytorch_model\.bin$"):
        read_pth(tmp_path / "other")
