"""Folders that we write, read by the version of transformers that the official code pins, with its own classes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ans.checkpoints.assemble import assemble
from ans.checkpoints.base import shard
from ans.checkpoints.convert import convert
from ans.checkpoints.export import export_hub
from ans.checkpoints.save import save_trained
from ans.checkpoints.variants import make_variant
from ans.config.schema import Convert
from ans.model.adapters import add_lora, select_trained
from ans.model.config import ModelConfig
from ans.model.family import Inputs
from ans.model.segmenter import Segmenter
from ans.model.tokens import load_tokenizer, save_tokenizer
from tests import small_releases
from tests.golden_case import GoldenSet
from tests.official import official_python

TINY = Path(__file__).parents[2] / "weights" / "tiny"
GROUPS = ("lora", "embed_head", "fcs", "sam2_decoder")
TEXTS = ("Please segment the left cup in this image.", "It is [SEG].", "<img><IMG_CONTEXT></img> <p>a</p> Ünï <vp></vp>\n")
READ = """
import json, sys
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
KINDS = {
    "qwen3_vl_text": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    "qwen2_5_vl_text": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
}
torch.set_num_threads(1)
rows = {"version": transformers.__version__}
for folder in map(Path, sys.argv[2:]):
    tokenizers = [AutoTokenizer.from_pretrained(folder, use_fast=fast) for fast in (True, False)]
    rows[str(folder)] = [
        [[one.encode(text) for text in json.loads(sys.argv[1])], one.eos_token, len(one)] for one in tokenizers
    ]
    given = load_file(folder.parent / "given.safetensors")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = {name: tensor.float() for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    if "llm_config" in values:
        prefix, config, kind = "language_model.", Qwen2Config(**values["llm_config"]), Qwen2ForCausalLM
    else:
        family, kind = KINDS[values["text_config"]["model_type"]]
        prefix, config = "model.", family(**{key: value for key, value in values.items() if key != "model_type"})
    model = kind(config).eval()
    model.load_state_dict({name[len(prefix):]: tensor for name, tensor in state.items() if name.startswith(prefix)}, strict=True)
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
    save_file({"logits": out.logits, "seg": out.hidden_states[-1].contiguous()}, folder.parent / "official.safetensors")
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny base in shards; an export of what was trained on it; a saved model; bases that were put together of a release of each
    kind; a tokenizer to which tokens were added, over the files of what it was made of."""
    root = tmp_path_factory.mktemp("written")
    found = {name: root / name / "model" for name in ("base", "export", "saved", "tokens", "internvl", "qwen3vl", "qwen25vl")}
    for folder in found.values():
        folder.parent.mkdir()
    shard(TINY, found["base"])
    _export(found["base"], found["export"], root / "trained")
    Segmenter.from_pretrained(TINY).save_pretrained(found["saved"])

    golden = GoldenSet("sa2va_qwen3vl")
    made = golden.write_model(found["tokens"])
    (made / "tokenizer.json").write_bytes((golden.folder / "tokenizer_base.json").read_bytes())
    (made / "added_tokens.json").write_text('{"<p>": 401}')
    tokenizer = load_tokenizer(made, ModelConfig.from_folder(made).language)
    tokenizer.add_tokens(["[SEG]", "<p>", "</p>", "<vp>", "</vp>"], special_tokens=True)
    save_tokenizer(tokenizer, made)
    assert not (made / "added_tokens.json").exists()
    assert load_tokenizer(made, ModelConfig.from_folder(made).language).encode("[SEG]") == [golden.meta["tokens"]["[SEG]"]]

    torch.manual_seed(3)
    sam2 = small_releases.sam2(root / "sam2.pt")
    for name, make in {
        "internvl": small_releases.internvl,
        "qwen3vl": small_releases.qwen3vl,
        "qwen25vl": small_releases.qwen25vl,
    }.items():
        make(root / "released" / name)
        small_releases.add_sam2_section(root / "released" / name)
        assemble(root / "released" / name, sam2, root / name / "assembled")
        shard(root / name / "assembled", found[name])
    return found


def _export(base: Path, out: Path, work: Path) -> None:
    """Train nothing, but move every trained tensor, and go the way of the stages."""
    model = Segmenter.from_pretrained(base)
    add_lora(model, rank=4, alpha=8.0, dropout=0.0, generator_seed=0)
    trained, generator = select_trained(model, GROUPS), torch.Generator().manual_seed(1)
    for parameter in trained.values():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    size = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
    save_trained(work / "last.pth", model.config.keys, trained, {"trained": list(GROUPS), "train": {"lora": size}, "step": 1})
    convert(Convert(source=str(work), precision="float32"), base, work / "hf")
    make_variant(base, work / "hf", GROUPS, work / "variant")
    export_hub(work / "variant", out, work)


def ours(folder: Path) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What the model is given, (L, V) logits, and (L, D) states that `[SEG]` is read from."""
    model = Segmenter.from_pretrained(folder)
    generator = torch.Generator().manual_seed(7)
    text = torch.randint(0, 90, (1, 24), generator=generator)
    if "llm_config" in model.config.values:
        mask, none = torch.ones_like(text), torch.zeros_like(text, dtype=torch.bool)
        inputs = Inputs(model.vlm.language_model.get_input_embeddings()(text), mask, model.vlm.positions(text, mask, []), none)
        given = {"input_ids": text}
    else:
        image = GoldenSet("sa2va_qwen3vl").image("wide")
        pixels, merged = model.config.family.pixels(image), model.config.family.vision.spatial_merge_size
        grid, start = pixels.grid, text[:, :3]
        template = model.config.template
        begin, end = (
            torch.tensor([[model.tokenizer.convert_tokens_to_ids(token)]]) for token in (template.image_start, template.image_end)
        )
        ids = torch.cat([start, begin, torch.full((1, grid.tokens), model.image_token), end, text], 1)
        mask = torch.ones_like(ids)
        (seen,) = model.vlm.encode(pixels.values, [grid])
        inputs = model.inputs(ids, mask, model.vlm.positions(ids, mask, [grid]), [[level.flatten(0, 1) for level in seen.levels]])
        doubled = pixels.values.unflatten(1, (3, 1, -1)).expand(-1, -1, 2, -1).flatten(1)
        sizes = torch.tensor([[1, merged * grid.rows, merged * grid.columns]])
        given = {"input_ids": ids, "pixel_values": doubled.contiguous(), "image_grid_thw": sizes, "attention_mask": mask}
    with torch.no_grad():
        states = model.vlm.run(inputs)
        return given, model.vlm.language_model.lm_head(states.normed), states.seg


@pytest.mark.slow
def test_the_files_name_what_every_version_has(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert values["tokenizer_class"] == "PreTrainedTokenizerFast" and values["eos_token"] == "<|im_end|>"
        assert not isinstance(values.get("extra_special_tokens"), list) and "backend" not in values
    for name in ("export", "internvl"):
        values = json.loads((folders[name] / "config.json").read_text(encoding="utf-8"))
        assert values["vision_config"]["architectures"] == ["InternVisionModel"]
        assert values["llm_config"]["architectures"] == ["Qwen2ForCausalLM"]
    for name in ("qwen3vl", "qwen25vl"):
        text = json.loads((folders[name] / "config.json").read_text(encoding="utf-8"))["text_config"]
        assert "rope_parameters" not in text and text["rope_theta"] >= 1e6
        assert text["rope_scaling"]["mrope_section"] and "rope_theta" not in text["rope_scaling"]


@pytest.mark.slow
def test_the_pinned_version_reads_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    """Ids by both kinds of tokenizer; every tensor of the vision-language part, strictly, to the same logits and states."""
    expected: dict[str, Any] = {}
    for name, folder in folders.items():
        given, *expected[name] = ours(folder)
        save_file(given, folder.parent / "given.safetensors")
    done = subprocess.run(
        [official_python(tmp_path / "venv"), "-c", READ, json.dumps(TEXTS), *map(str, folders.values())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert rows["version"] == "4.57.0"
    for name, folder in folders.items():
        tokenizer = load_tokenizer(folder, ModelConfig.from_folder(folder).language)
        read = [[tokenizer.encode(text) for text in TEXTS], tokenizer.eos_token, len(tokenizer)]
        assert rows[str(folder)] == [read, read], name
        theirs, (logits, states) = load_file(folder.parent / "official.safetensors"), expected[name]
        torch.testing.assert_close(theirs["logits"], logits, rtol=0, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(theirs["seg"], states, rtol=0, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
        assert logits.std() > 0.05
