"""Files that were made to harm, or are damaged: each is refused with its name and the reason, and nothing in it runs."""

import json
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ans.checkpoints.base import shard
from ans.checkpoints.fetch import FetchError, fetch
from ans.config.schema import Weights
from ans.formats import shards
from ans.formats.pth import read_pth

STATE = {"text_hidden_fcs.0.bias": torch.arange(4.0), "mlp1.0.bias": torch.ones(3)}


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def rewritten(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> None:
    """A copy of an archive with some members' contents replaced (`data_pkl` for `data.pkl`)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            key = Path(info.filename).name.replace(".", "_")
            new.writestr(info.filename, members.get(key, old.read(info)))


@pytest.mark.parametrize("wrap", [lambda x: {"state_dict": x}, lambda x: {"meta": {"log": x}, "state_dict": STATE}, lambda x: x])
def test_a_pickle_that_runs_something(tmp_path: Path, wrap) -> None:
    torch.save(wrap(Harm(tmp_path / "harm")), tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth: refused, .* run \S*mkdir"):
        read_pth(tmp_path / "bad.pth")
    assert not (tmp_path / "harm").exists()


def test_a_bare_pickle(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(ValueError, match=r"bad\.pth: not a checkpoint as torch"):
        read_pth(tmp_path / "bad.pth")
    assert not (tmp_path / "harm").exists()


def test_a_zip_bomb(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "good.pth")
    rewritten(tmp_path / "good.pth", tmp_path / "bad.pth", zipfile.ZIP_DEFLATED, data_pkl=b"\0" * 10_000_000)
    assert (tmp_path / "bad.pth").stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"bad\.pth: refused, .*is compressed to unpack to"):
        read_pth(tmp_path / "bad.pth")


def test_members_that_overlap(tmp_path: Path) -> None:
    """Many names for the same bytes: the directory's entries of one member repeated."""
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\0" * 100_000)
        archive.filelist *= 50
    with pytest.raises(ValueError, match=r"bad\.pth: refused, .*members claim more bytes than the file's"):
        read_pth(tmp_path / "bad.pth")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_file_cut_short(tmp_path: Path, kept: float) -> None:
    torch.save(STATE, tmp_path / "good.pth")
    data = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "bad.pth").write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"bad\.pth: "):
        read_pth(tmp_path / "bad.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data())
def test_damage_anywhere_is_an_error_or_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A flipped byte gives a ValueError or a dict of float tensors; never another exception."""
    folder = tmp_path_factory.getbasetemp()
    torch.save({"state_dict": STATE}, folder / "a.pth")
    content = bytearray((folder / "a.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.pth").write_bytes(content)
    try:
        state = read_pth(folder / "a.pth").state
    except ValueError as error:
        assert "a.pth" in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.arange(3), "only dense floating point tensors"),
        (torch.eye(3).to_sparse(), "only dense floating point tensors"),
        (torch.zeros(1).expand(10**9), r"claims \(1000000000,\) over 4 stored bytes"),
        ("text", "is str, not a tensor"),
        ({"deeper": torch.zeros(1)}, "is dict, not a tensor"),
    ],
)
def test_what_is_no_weight(tmp_path: Path, value: object, message: str) -> None:
    torch.save({"state_dict": {"mlp1.0.bias": value}}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=rf"bad\.pth: .*mlp1\.0\.bias.*{message}"):
        read_pth(tmp_path / "bad.pth")


def test_mmengine_log_beside_the_weights_is_left_asleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's `.pth` holds its message hub; the classes in it are neither imported nor run."""
    import numpy as np

    buffer = type("HistoryBuffer", (), {"__module__": "mmengine.logging.history_buffer"})
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = buffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    log = buffer()
    log.__dict__ |= {"_log_history": np.arange(3.0), "_max_length": 10, "_last": np.float64(3.0)}
    content = {"meta": {"cfg": "x"}, "state_dict": STATE, "message_hub": {"log_scalars": {"train/loss": log}}}
    torch.save(content, tmp_path / "iter_1.pth")
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    read = read_pth(tmp_path / "iter_1.pth")
    assert read.state.keys() == STATE.keys() and torch.equal(read.state["mlp1.0.bias"], STATE["mlp1.0.bias"])


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("name", ["/etc/passwd", "../out.bin", "a/b.bin", "..", "", 3, "x\0y"])
def test_an_index_that_points_elsewhere(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "user.pth"
    folder.mkdir()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"mlp1.0.bias": name}}))
    with pytest.raises(ValueError, match=r"index\.json: weight_map points to .*only plain names"):
        read_pth(folder)


def test_an_index_that_lies(tmp_path: Path) -> None:
    folder = tmp_path / "user.pth"
    folder.mkdir()
    torch.save(STATE, folder / "one.bin")
    for weight_map, message in [
        ({"mlp1.0.bias": "one.bin"}, r"text_hidden_fcs\.0\.bias lies in one\.bin, the index says nowhere"),
        (dict.fromkeys([*STATE, "mlp1.9.bias"], "one.bin"), r"one\.bin: tensor mlp1\.9\.bias is missing"),
        (dict.fromkeys(STATE, "two.bin"), r"two\.bin: no such checkpoint"),
    ]:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_pth(folder)


def test_links_in_a_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    torch.save(STATE, outside)
    folder = tmp_path / "user.pth"
    folder.mkdir()
    (folder / "pytorch_model.bin").symlink_to(outside)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: a symbolic link .*cp -rL"):
        read_pth(folder)
    save_file(STATE, tmp_path / "outside.safetensors")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: a symbolic link"):
        shard(model, tmp_path / "out")
    with pytest.raises(FetchError, match=r"model\.safetensors: a symbolic link"):
        fetch(Weights(source="path", location=str(model)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- safetensors


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(offsets=(0, 16))}, b"\0" * 16, "does not take the 16 bytes"),
        ({"a": entry(shape=(10**12,))}, b"\0" * 8, "does not take the 8 bytes"),
        ({"a": entry(shape=(-2,))}, b"\0" * 8, "has dtype F32, shape"),
        ({"a": entry(shape=(True, 2))}, b"\0" * 8, "has dtype F32, shape"),
        ({"a": entry(dtype="F99")}, b"\0" * 8, "has dtype F99"),
        ({"a": entry(offsets=(0, 8)), "b": entry(offsets=(0, 8))}, b"\0" * 8, "overlaps another"),
        ({"a": entry(offsets=(4, 12))}, b"\0" * 12, "overlaps another, or bytes before it belong to none"),
        ({"a": entry()}, b"\0" * 7, "end at byte"),
        ({"a": entry()}, b"\0" * 9, "end at byte"),
        (b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', b"\0" * 8, "occurs twice"),
        ([1], b"", "not a JSON object"),
        ({"a": 3}, b"", "not subscriptable"),
        (b"[" * 100_000, b"", "recursion"),
        (b"\xff\xfe", b"", "Expecting value"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(ValueError, match=rf"bad\.safetensors: not a whole safetensors file.*{message}"):
        shards.header(path)


@pytest.mark.parametrize("length", [2**63, 10**9, 200])
def test_a_header_longer_than_its_file(tmp_path: Path, length: int) -> None:
    path = raw(tmp_path / "bad.safetensors", {"a": entry()}, b"\0" * 8, length)
    with pytest.raises(ValueError, match="its header claims"):
        shards.header(path)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda text: text != "__metadata__" and "\0" not in text and text.isprintable()),
        st.tuples(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_honest_headers_are_read(tmp_path_factory: pytest.TempPathFactory, tensors: dict) -> None:
    """Against the library's own writer."""
    path = tmp_path_factory.getbasetemp() / "a.safetensors"
    state = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}
    save_file(state, path)
    found = shards.header(path)
    assert {name: e.shape for name, e in found.items()} == {name: tuple(t.shape) for name, t in state.items()}


def test_one_tensor_in_two_files_and_an_index_that_disagrees(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    save_file({"mlp1.0.bias": torch.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors: tensor mlp1\.0\.bias is also in a\.safetensors"):
        shards.entries(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    (tmp_path / shards.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "b.safetensors")}))
    with pytest.raises(ValueError, match=r"should lie in b\.safetensors, it lies in a\.safetensors"):
        shards.entries(tmp_path)
