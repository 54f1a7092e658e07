"""What is handed on: an adapter that PEFT itself loads to the merged weights, and a hub folder that says what it is."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from ans.checkpoints.base import shard
from ans.checkpoints.convert import convert
from ans.checkpoints.export import ADAPTER, OTHERS, Measured, export_adapter, export_hub
from ans.checkpoints.save import save_trained
from ans.checkpoints.variants import make_variant
from ans.cli import main
from ans.config.schema import Convert
from ans.formats import shards
from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Segmenter
from tests.checkpoints.test_convert import KEYS, read_all
from tests.golden_case import GoldenCase

GROUPS = ("lora", "proj", "fcs", "sam2_decoder")


@pytest.fixture(scope="module")
def run(golden: GoldenCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ and reports/ as the stages leave them, after a training that moved every trained tensor."""
    root = tmp_path_factory.mktemp("run")
    shard(golden.write_model(root / "plain"), root / "base")
    model = Segmenter.from_pretrained(root / "base")
    add_lora(model, rank=4, alpha=6.0, dropout=0.1, generator_seed=0)
    trained = select_trained(model, GROUPS)
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.values():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    size = {"rank": 4, "alpha": 6.0, "dropout": 0.1}
    train = {"seed": 42, "lora": size, "lr": 1e-4, "schedule": "cosine"}
    meta = {"trained": list(GROUPS), "train": train, "step": 9}
    save_trained(root / "checkpoint" / "last.pth", KEYS, trained, meta)
    settings = Convert(source=str(root / "checkpoint"), precision="float32", code="ByteDance/Sa2VA-4B")
    convert(settings, root / "base", root / "hf")
    for name, groups in {"full": GROUPS, "sam2_fcs": ("fcs", "sam2_decoder"), "base": ()}.items():
        make_variant(root / "base", root / "hf", groups, root / "variants" / name)
    (root / "reports" / "train").mkdir(parents=True)
    (root / "models" / "checkpoint").mkdir(parents=True)
    (root / "models" / "checkpoint" / "manifest.json").write_text(json.dumps(meta | {"effective_batch": 16}))
    (root / "reports" / "eval" / "full").mkdir(parents=True)
    metrics = {"ciou": 0.4321, "miou": 0.4, "seg_rate": 0.995, "n": 700}
    (root / "reports" / "eval" / "full" / "refcoco_val.json").write_text(json.dumps(metrics))
    return root


def test_peft_loads_the_adapter_to_the_merged_weights(run: Path, tmp_path: Path) -> None:
    export_adapter(run / "variants" / "full", run / "checkpoint", tmp_path / "adapter")
    model = Segmenter.from_pretrained(run / "base")
    merged = PeftModel.from_pretrained(model.vlm.language_model, str(tmp_path / "adapter")).merge_and_unload()
    lora = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
    }
    size = {"r": 4, "lora_alpha": 6.0, "lora_dropout": 0.1}
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) == lora | size | {"target_modules": layers}
    record = (run / "variants" / "full" / "variant.json").read_bytes()
    assert json.loads((tmp_path / "adapter" / "variant.json").read_bytes()) == json.loads(record)
    for name in (ADAPTER, OTHERS):
        with safe_open(tmp_path / "adapter" / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
    exported = read_all(run / "hf")
    theirs = {f"language_model.{key}": tensor for key, tensor in merged.state_dict().items()}
    wanted = {key: tensor for key, tensor in exported.items() if KEYS.shard_of(key) in ("llm", "embed_head")}
    assert theirs.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=1e-6, msg=key)
    base = read_all(run / "base")
    assert any(not torch.equal(base[key].float(), tensor) for key, tensor in wanted.items())


def test_the_other_groups_lie_beside_it(run: Path, tmp_path: Path) -> None:
    exported = read_all(run / "hf")
    export_adapter(run / "variants" / "full", run / "checkpoint", tmp_path / "full")
    others = load_file(tmp_path / "full" / OTHERS)
    assert {KEYS.shard_of(key) for key in others} == {"proj", "fcs", "sam2_decoder"}
    assert all(torch.equal(tensor, exported[key]) for key, tensor in others.items())
    export_adapter(run / "variants" / "sam2_fcs", run / "checkpoint", tmp_path / "sam2_fcs")
    assert not (tmp_path / "sam2_fcs" / ADAPTER).exists()
    assert {KEYS.shard_of(key) for key in load_file(tmp_path / "sam2_fcs" / OTHERS)} == {"fcs", "sam2_decoder"}


def test_an_adapter_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    save_trained(tmp_path / "other.pth", KEYS, {"text_hidden_fcs.0.bias": torch.zeros(64)}, {})
    with pytest.raises(ValueError, match=r"other\.pth: is not the checkpoint that .*full was made of"):
        export_adapter(run / "variants" / "full", tmp_path / "other.pth", tmp_path / "out")
    with pytest.raises(ValueError, match="is the base; there is no difference"):
        export_adapter(run / "variants" / "base", run / "checkpoint", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hub_folder_loads_and_says_what_it_is(run: Path, tmp_path: Path) -> None:
    export_hub(run / "variants" / "full", tmp_path / "hub", run / "reports", "ByteDance/Sa2VA-4B")
    model = Segmenter.from_pretrained(tmp_path / "hub")
    state = KEYS.to_hf(model.state_dict(), "model")
    assert all(torch.equal(state[key], tensor.float()) for key, tensor in read_all(run / "variants" / "full").items())
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\n") and "base_model: ByteDance/Sa2VA-4B\n" in card
    for text in (
        "# Sa2VA, variant `full`",
        "A Sa2VA model (InternVL and SAM2 joined by `[SEG]`)",
        'code_revision="40 digits: a commit of ByteDance/Sa2VA-4B"',
        "this model has SAM2 in another",
        "Tokenizer and weights: 4.57.0 and later",
        "`lora`",
        "| refcoco_val | 43.2 | 40.0 | 99.5 | 700 |",
        "rank 4, alpha 6.0",
        shards.shards_checksum(run / "base"),
    ):
        assert text in card, text
    for path in shards.files(tmp_path / "hub"):
        assert path.samefile(run / "variants" / "full" / path.name)


@pytest.mark.parametrize("measured", [Measured(), Measured("abc123", synthetic=True)])
def test_the_card_s_numbers_are_the_run_s(run: Path, tmp_path: Path, measured: Measured) -> None:
    reports = tmp_path / "reports"
    shutil.copytree(run / "reports", reports)
    shutil.copytree(run / "models", tmp_path / "models")
    (reports / "eval" / "full" / "describe_captions.json").write_text(json.dumps({"cider": 0.5}))
    export_hub(run / "variants" / "full", tmp_path / "hub", reports, measured=measured)
    _, front, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    about = {"name": "refcoco", "type": "refcoco", "split": "val"}
    if measured.synthetic:
        about |= {"name": "ANS synthetic world, refcoco", "type": "ans-world", "args": {"protocol": "abc123"}}
    result = {
        "task": {"type": "image-segmentation", "name": "Referring segmentation"},
        "dataset": about,
        "metrics": [{"type": "ciou", "name": "cIoU", "value": 43.21}, {"type": "miou", "name": "mIoU", "value": 40.0}],
    }
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["sa2va", "referring-segmentation"],
        "model-index": [{"name": "Sa2VA, variant full", "results": [result]}],
    }
    trained = json.loads((run / "variants" / "full" / "variant.json").read_text())["trained"]
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if re.match(r"\| \w", line))
    assert rows == {
        "optimizer steps": "9",
        "precision of the trained tensors": "float32",
        "sha256 of the base's weights": f"`{shards.shards_checksum(run / 'base')}`",
        "sha256 of the trained tensors": f"`{trained['checkpoint_sha256']}`",
        "images per step": "16",
        "learning rate": "0.0001, cosine",
        "LoRA": "rank 4, alpha 6.0",
        "seed": "42",
        "split": "cIoU | mIoU | `[SEG]` said | expressions",
        "refcoco_val": "43.2 | 40.0 | 99.5 | 700",
    }
    assert "Trained groups in it: `fcs`, `lora`, `proj`, `sam2_decoder`." in text
    where = ", on ANS's synthetic world: drawings of coloured shapes in the layouts of the published sets, whose numbers these are not"
    said = f"{where}. Fingerprint of the protocol: `abc123`." if measured.synthetic else "."
    assert f"\nFree generation, in percent{said}\n\n| split" in text


def test_the_card_of_a_base_that_was_not_measured(run: Path, tmp_path: Path) -> None:
    export_hub(run / "variants" / "base", tmp_path / "hub", run / "reports")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "Trained groups in it: none: this is the untouched base." in card
    assert not any(text in card for text in ("model-index", "## Results", "optimizer steps", "images per step", "base_model"))


def test_the_base_says_too_what_code_reads_it(run: Path, tmp_path: Path) -> None:
    export_hub(run / "variants" / "base", tmp_path / "hub", run / "reports")
    values, before = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "hub", run / "base"))
    assert (
        values["auto_map"]["AutoModel"] == "ByteDance/Sa2VA-4B--modeling_sa2va_chat.Sa2VAChatModel" and "auto_map" not in before
    )
    assert values["vision_config"]["architectures"] == ["InternVisionModel"]


def test_a_folder_that_filter_did_not_make(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"variant\.json: no such file; .* stage `filter`"):
        export_hub(run / "hf", tmp_path / "hub")


def test_command_line(run: Path, tmp_path: Path) -> None:
    main(["export", str(run / "variants" / "full"), str(tmp_path / "hub")])
    main(["export", str(run / "variants" / "full"), str(tmp_path / "adapter"), "--adapter", str(run / "checkpoint")])
    assert (tmp_path / "hub" / "README.md").is_file() and (tmp_path / "adapter" / ADAPTER).is_file()
