"""A LISA training, from checkpoint to variant: `[SEG]`'s row, LoRA on some layers and SAM's decoder arrive, nothing else."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ans.checkpoints.base import shard
from ans.checkpoints.convert import convert
from ans.checkpoints.export import export_adapter
from ans.checkpoints.save import save_trained
from ans.checkpoints.variants import make_variant
from ans.config.schema import Convert
from ans.formats import shards
from ans.model import prompts
from ans.model.adapters import add_lora, add_seg_row, group_of_parameter, select_trained
from ans.model.segmenter import Conversations, Segmenter
from tests import lisa_case

GROUPS = ("lora", "seg_row", "fcs", "sam2_decoder")
TARGETS = ("q_proj", "v_proj")
LANGUAGE = "mllm.model.language_model.base_model.model"


def answer(model: Segmenter) -> tuple[Tensor, Tensor]:
    """Logits of an answer with `[SEG]`, and its mask's."""
    image = Image.linear_gradient("L").resize((50, 40)).convert("RGB")
    features = model.encode_images([image])
    question = model.template.image_string(model.config.family.grid(1, 1).tokens) + model.template.segment_question(
        "the red circle"
    )
    ids, labels = prompts.encode_conversation(model.tokenizer, model.template, [prompts.Turn(question, "Sure, [SEG].")])
    with torch.no_grad():
        batch = Conversations(torch.tensor([ids]), torch.tensor([labels]), torch.ones(1, len(ids)).long(), [0], [None])
        out = model.eval()(features, batch)
        return out.logits, model.masks(features, out.seg_image, out.seg_embeds).low_res


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Segmenter]:
    """base/ in shards, last.pth, and the model that it was saved from: every trained tensor was moved."""
    folder = tmp_path_factory.mktemp("run")
    shard(lisa_case.write_model(folder), folder / "base")
    model = Segmenter.from_pretrained(folder / "base")
    add_lora(model, 4, 8.0, 0.0, 0, TARGETS)
    add_seg_row(model)
    trained = select_trained(model, GROUPS)
    for parameter in trained.values():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": list(TARGETS)}
    meta = {"trained": list(GROUPS), "seg_token": model.seg_token, "train": {"lora": lora}, "step": 3}
    save_trained(folder / "last.pth", model.config.keys, trained, meta)
    return folder, model


def source(run: tuple[Path, Segmenter], name: str = "last.pth") -> Convert:
    return Convert(source=str(run[0] / name), precision="float32", code="owner/name")


def test_what_is_trained(run) -> None:
    folder, model = run
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {group_of_parameter(model, name) for name in trained} == set(GROUPS)
    rows = [tuple(p.shape) for name, p in trained.items() if group_of_parameter(model, name) == "seg_row"]
    assert rows == [(1, 32), (1, 32)]
    assert {name.split(".")[-4] for name in trained if ".lora_" in name} == set(TARGETS)
    decoder = [name for name in trained if name.startswith("sam.")]
    assert not any("iou_prediction_head" in name or "mlps.1" in name for name in decoder) and any("mlps.0" in n for n in decoder)


def test_a_variant_is_the_trained_model(run, tmp_path: Path) -> None:
    folder, model = run
    convert(source(run), folder / "base", tmp_path / "hf")
    record = json.loads((tmp_path / "hf" / "trained.json").read_text())
    assert record["groups"] == sorted(GROUPS) and record["shards"] == ["embed_head", "fcs", "llm", "sam2_decoder"]
    make_variant(folder / "base", tmp_path / "hf", GROUPS, tmp_path / "full", whole=True)
    for ours, theirs in zip(answer(Segmenter.from_pretrained(tmp_path / "full")), answer(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert config["model_type"] == "lisa" and "auto_map" not in config, "LISA has no remote code of this name"
    base, full = (shards.entries(path) for path in (folder / "base", tmp_path / "full"))
    embedding = "language_model.model.embed_tokens.weight"
    before, after = (torch.frombuffer(e[embedding].read(), dtype=torch.float32).reshape(-1, 32) for e in (base, full))
    assert (before != after).any(1).nonzero().flatten().tolist() == [model.seg_token]
    make_variant(folder / "base", tmp_path / "hf", ("lora",), tmp_path / "lora")
    names = {path.name: path.stat().st_ino for path in shards.files(tmp_path / "lora")}
    changed = [path.name for path in shards.files(folder / "base") if names[path.name] != path.stat().st_ino]
    assert changed == ["model-llm-00001-of-00001.safetensors"]
    export_adapter(tmp_path / "full", folder / "last.pth", tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"] == sorted(TARGETS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda meta, state: meta.pop("seg_token"), "holds seg_row but not its number"),
        (lambda meta, state: meta.update(seg_token=10**6), "for row 1000000, the base needs"),
        (lambda meta, state: meta.update(trained=["lora", "fcs", "sam2_decoder"]), "holds seg_row, which the export would drop"),
        (
            lambda meta, state: state.pop(f"{LANGUAGE}.lm_head.seg_row"),
            "the row of .*lm_head.* is missing",
        ),
        (lambda meta, state: meta["train"]["lora"].update(targets=["q_proj", "o_proj"]), "LoRA of .*o_proj.weight is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit(run, tmp_path: Path, edit, message: str) -> None:
    content = torch.load(run[0] / "last.pth", weights_only=True)
    content["meta"].pop("sha256")
    edit(content["meta"], content["state_dict"])
    torch.save(content, tmp_path / "edited.pth")
    with pytest.raises(ValueError, match=message):
        convert(Convert(source=str(tmp_path / "edited.pth"), precision="float32", code="a/b"), run[0] / "base", tmp_path / "hf")


def test_only_the_row_has_a_gradient(run) -> None:
    """The row's gradient is the whole embedding's at `[SEG]`; the table around it is frozen."""
    model = Segmenter.from_pretrained(run[0] / "base")
    ids = torch.tensor([[7, model.seg_token, 3, model.seg_token]])
    embedding = model.vlm.language_model.get_input_embeddings()
    weights = torch.randn(4, 32)
    (whole,) = torch.autograd.grad((embedding(ids)[0] * weights).sum(), embedding.weight)
    plain = answer(model)
    add_seg_row(model)
    trained = select_trained(model, ("seg_row",))
    own = model.vlm.language_model.get_input_embeddings()
    (row,) = torch.autograd.grad((own(ids)[0] * weights).sum(), own.seg_row)
    torch.testing.assert_close(row[0], whole[model.seg_token])
    assert len(trained) == 2 and torch.equal(own.weight, own.base_layer.weight)
    for ours, theirs in zip(answer(model), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
