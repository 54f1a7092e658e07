"""Group `memory` is a part of a shard: what was trained of it comes through conversion, variants and export, and nothing else does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ans.checkpoints.base import shard
from ans.checkpoints.convert import convert
from ans.checkpoints.export import OTHERS, export_adapter
from ans.checkpoints.save import save_trained
from ans.checkpoints.variants import make_variant
from ans.config.schema import Convert
from ans.groups import TRAINABLE
from ans.model.adapters import select_trained
from ans.model.segmenter import Segmenter
from tests.pipeline import REPOSITORY


def test_a_trained_memory_arrives(tmp_path: Path) -> None:
    base, out, variant, checkpoint = (tmp_path / name for name in ("base", "hf", "full", "last.pth"))
    shard(REPOSITORY / "weights" / "tiny", base)
    model = Segmenter.from_pretrained(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = select_trained(model, ("memory",))
    assert any("memory_attention" in name for name in trained) and any("obj_ptr_proj" in name for name in trained)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.5)
    save_trained(checkpoint, model.config.keys, trained, {"trained": ["memory"]})
    convert(Convert(source=str(checkpoint), precision="float32"), base, out)
    record = json.loads((out / "trained.json").read_text())
    assert record["groups"] == ["memory"] and record["shards"] == [TRAINABLE["memory"].shard]
    assert make_variant(base, out, ("fcs", "memory"), variant, whole=True) == (["memory"], ["fcs"])
    found = Segmenter.from_pretrained(variant).state_dict()
    for name, tensor in before.items():
        assert torch.equal(found[name], tensor + 0.5 if name in trained else tensor), name
    with pytest.raises(ValueError, match="would drop what was trained in sam2_encoder"):
        make_variant(base, out, ("fcs",), tmp_path / "other", whole=True)
    export_adapter(variant, checkpoint, tmp_path / "export")
    assert len(load_file(tmp_path / "export" / OTHERS)) == len(trained)


def test_a_checkpoint_that_lacks_a_part_of_it_is_refused(tmp_path: Path) -> None:
    base, checkpoint = tmp_path / "base", tmp_path / "last.pth"
    shard(REPOSITORY / "weights" / "tiny", base)
    model = Segmenter.from_pretrained(base)
    trained = select_trained(model, ("memory",))
    del trained["sam.model.no_obj_ptr"]
    save_trained(checkpoint, model.config.keys, trained, {"trained": ["memory"]})
    with pytest.raises(ValueError, match="no_obj_ptr is missing, although group memory was trained"):
        convert(Convert(source=str(checkpoint), precision="float32"), base, tmp_path / "hf")
