"""Stage `weights`: a base that is put together, one that was released whole, and a download that goes on in the next run."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ans.checkpoints.assemble import assemble
from ans.checkpoints.base import make_base, shard
from ans.checkpoints.fetch import FetchError, fetch, read_sums
from ans.config import load
from ans.config.schema import MaskEncoderWeights, Weights
from ans.formats import shards
from ans.model.segmenter import Segmenter
from tests import pipeline
from tests.checkpoints.test_assemble import released as released  # a fixture
from tests.checkpoints.test_fetch import CONFIG, FILE, weights_at
from tests.checkpoints.test_fetch import server as server  # a fixture
from tests.hub import FileServer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_base_put_together(released: tuple[Path, Path], tmp_path: Path) -> None:
    """A download that failed leaves what came before it, for the next try."""
    internvl, sam2 = released
    masks = MaskEncoderWeights(location=str(sam2), sha256=shards.sha256(sam2))
    weights = Weights(source="path", location=str(internvl), sha256={}, sam2=masks)
    wrong = weights.model_copy(update={"sha256": {"config.json": "0" * 64}})
    out = tmp_path / "models" / "base"
    with pytest.raises(FetchError, match="config.json: expected sha256"):
        make_base(wrong, out)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".fetched"]
    assert [path.name for path in (tmp_path / "models" / ".fetched").iterdir()] == [sam2.name]
    make_base(weights, out)
    assemble(internvl, sam2, tmp_path / "assembled")
    shard(tmp_path / "assembled", tmp_path / "expected")
    assert contents(out) == contents(tmp_path / "expected")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["base"]


def test_a_base_that_was_released_whole(tmp_path: Path) -> None:
    folder = pipeline.REPOSITORY / "weights" / "tiny"
    make_base(Weights(source="path", location=str(folder), sha256={}), tmp_path / "models" / "base")
    shard(folder, tmp_path / "expected")
    assert contents(tmp_path / "models" / "base") == contents(tmp_path / "expected")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["base"]
    shutil.copytree(folder, tmp_path / "odd")
    save_file({"of.nobody": torch.zeros(1)}, tmp_path / "odd" / "more.safetensors")
    with pytest.raises(ValueError, match=r"odd: unexpected tensor of\.nobody: it belongs to no part"):
        shard(tmp_path / "odd", tmp_path / "models" / "base")


def test_a_download_goes_on_in_the_next_run(server: FileServer, tmp_path: Path) -> None:
    """Not of a whole model: it fails on what it then finds, but each finished file was asked for once."""
    server.fail(FILE, "status", 404, times=1)
    for error, message in ((FetchError, "404"), (ValueError, "not a whole safetensors file")):
        with pytest.raises(error, match=message):
            make_base(weights_at(server), tmp_path / "models" / "base")
    assert len(server.asked(CONFIG)) == 1 and len(server.asked(FILE)) == 2


@pytest.mark.parametrize(("preset", "most"), [("tiny", 8e6), ("lisa-tiny", 4e6)])
def test_the_embedded_bases_are_small_and_load(preset: str, most: float, tmp_path: Path) -> None:
    weights = load().changed({"preset": preset}).weights
    folder = pipeline.REPOSITORY / weights.location
    assert sum(path.stat().st_size for path in folder.iterdir()) <= most
    own = {"source": "path", "location": str(folder), "sha256": read_sums(folder / "SHA256SUMS")}
    fetch(weights.model_copy(update=own), tmp_path / "m")
    assert Segmenter.from_pretrained(tmp_path / "m").seg_token > 0
