"""A new base from InternVL2.5 and SAM2 as they are released: the golden model cut in two and put together again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig

from ans.checkpoints.assemble import assemble
from ans.checkpoints.base import shard
from ans.formats import shards
from ans.model.families.sa2va_internvl import Family
from ans.model.segmenter import Segmenter
from tests import golden_case, lisa_case
from tests.checkpoints.test_convert import KEYS, read_all
from tests.golden_case import GoldenCase

SAM2 = "grounding_encoder.sam2_model."
EMBED, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def released(golden: GoldenCase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(InternVL2.5's folder, SAM2's .pt) in the layouts of their releases, with the vocabulary before Sa2VA's tokens."""
    root = tmp_path_factory.mktemp("released")
    state = golden.state("hf_state") | golden.state("base_internvl_changed")
    internvl = root / "internvl"
    internvl.mkdir()
    save_file(
        {k: t for k, t in state.items() if k.startswith(("vision_model.", "language_model.", "mlp1."))},
        internvl / "model.safetensors",
    )
    config = golden.config()
    config |= {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "template": "internvl2_5"}
    config["llm_config"] = config["llm_config"] | {"vocab_size": 412}
    (internvl / "config.json").write_text(json.dumps(config))
    (internvl / "preprocessor_config.json").write_text('{"crop_size": 112}')
    golden.write_tokenizer(internvl)
    (internvl / "tokenizer.json").write_bytes((golden_case.FOLDER / "tokenizer_base.json").read_bytes())
    torch.save(
        {"model": KEYS.from_hf({k: t for k, t in state.items() if k.startswith(SAM2)}, "sam2")}, root / "sam2_hiera_large.pt"
    )
    return internvl, root / "sam2_hiera_large.pt"


def test_it_holds_both_and_loads(golden: GoldenCase, released: tuple[Path, Path], tmp_path: Path) -> None:
    given = (released[0] / "model.safetensors").read_bytes()
    assemble(*released, tmp_path / "assembled")
    assert (released[0] / "model.safetensors").read_bytes() == given, "the released file is read, not written"
    shard(tmp_path / "assembled", tmp_path / "base")
    ours, expected = read_all(tmp_path / "base"), golden.state("hf_state") | golden.state("base_internvl_changed")
    assert ours.keys() == expected.keys()
    for key, tensor in ours.items():
        if key in (EMBED, HEAD):
            assert tensor.shape == (417, 64) and torch.equal(tensor[:412], expected[key])
        elif not key.startswith("text_hidden_fcs."):
            assert torch.equal(tensor, expected[key]), key
    drawn = ours["text_hidden_fcs.0.weight"] * 64**0.5  # as nn.Linear begins: uniform within 1 / sqrt(width)
    assert -1 <= drawn.min() < -0.99 and 0.99 < drawn.max() <= 1 and abs(drawn.mean()) < 0.05
    Segmenter.from_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["llm_config"]["vocab_size"] == 417 and config["template"] == "qwen_chat"
    assert config["model_type"] == "sa2va_chat" and config["architectures"] == ["Sa2VAChatModel"]
    assert config["tie_word_embeddings"] is config["llm_config"]["tie_word_embeddings"] is False
    assert (tmp_path / "base" / "preprocessor_config.json").read_text() == '{"crop_size": 112}'


def test_a_release_that_ties_its_head(released: tuple[Path, Path], tmp_path: Path) -> None:
    """It has no head of its own, and here its embedding lies in a file by itself; the config names no architecture."""
    internvl = tmp_path / "internvl"
    shutil.copytree(released[0], internvl)
    state = load_file(internvl / "model.safetensors")
    del state[HEAD]
    save_file({EMBED: state.pop(EMBED)}, internvl / "embed.safetensors")
    save_file(state, internvl / "model.safetensors")
    config = json.loads((internvl / "config.json").read_text())
    config["llm_config"] |= {"tie_word_embeddings": True}
    config["llm_config"].pop("architectures", None)
    (internvl / "config.json").write_text(json.dumps(config))
    assemble(internvl, released[1], tmp_path / "base")
    tied = read_all(tmp_path / "base")
    assemble(*released, tmp_path / "apart", seed=0)
    apart = read_all(tmp_path / "apart")
    assert torch.equal(tied[HEAD], tied[EMBED]) and torch.equal(tied[EMBED], apart[EMBED]), "0 is the seed where none is given"
    assert tied.keys() == apart.keys() and not (tmp_path / "base" / "embed.safetensors").exists()
    assert json.loads((tmp_path / "base" / "config.json").read_text())["tie_word_embeddings"] is False


def test_new_tokens_have_the_official_ids_and_rows_of_their_own(
    golden: GoldenCase, released: tuple[Path, Path], tmp_path: Path
) -> None:
    assemble(*released, tmp_path / "base")
    model = Segmenter.from_pretrained(tmp_path / "base")
    assert {token: model.tokenizer.convert_tokens_to_ids(token) for token in Family.new_tokens} == {
        token: golden.meta["tokens"][token] for token in Family.new_tokens
    }
    text = "Please segment the left cup [SEG] <p>cup</p> <vp></vp>."
    official = Segmenter.from_pretrained(golden.write_model(tmp_path / "official")).tokenizer
    assert model.tokenizer(text)["input_ids"] == official(text)["input_ids"]
    rows = read_all(tmp_path / "base")[EMBED]
    new, old = rows[412:].float(), rows[:412].float()
    assert torch.cdist(new, new)[~torch.eye(5, dtype=torch.bool)].min() > 0
    assert ((new - old.mean(0)).abs() < 0.6 * old.std(0)).all()


def test_a_release_with_a_vocabulary_and_merges(released: tuple[Path, Path], tmp_path: Path) -> None:
    """As InternVL2.5's own folders are: the tokenizer in the files of a slow one, without tokenizer.json."""
    internvl = tmp_path / "internvl"
    shutil.copytree(released[0], internvl)
    fast = json.loads((internvl / "tokenizer.json").read_text())
    (internvl / "tokenizer.json").unlink()
    (internvl / "vocab.json").write_text(json.dumps(fast["model"]["vocab"]))
    (internvl / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in fast["model"]["merges"]), ""]))
    (internvl / "added_tokens.json").write_text(json.dumps({token["content"]: token["id"] for token in fast["added_tokens"]}))
    (internvl / "tokenizer_config.json").write_text("{}")
    tokens = {}
    for name, folder in (("slow", internvl), ("fast", released[0])):
        assemble(folder, released[1], tmp_path / name)
        tokenizer = Segmenter.from_pretrained(tmp_path / name).tokenizer
        tokens[name] = tokenizer("<img>Please segment the left cup [SEG] <p>cup</p> <vp></vp>.<|im_end|>")["input_ids"]
        new = tokenizer.convert_tokens_to_ids(list(Family.new_tokens))
        assert tokenizer.decode(new, skip_special_tokens=True) == "" and new == list(range(412, 417))
    assert tokens["slow"] == tokens["fast"]


def test_sam21_is_told_by_its_tensors(golden: GoldenCase, released: tuple[Path, Path], tmp_path: Path) -> None:
    """Its section says so, with the sizes that the section had; the masks of an image are SAM2's."""
    state = torch.load(released[1], weights_only=True)["model"]
    width, memory = golden.config()["sam2_config"]["d_model"], golden.config()["sam2_config"]["memory_dim"]
    generator = torch.Generator().manual_seed(4)
    added = {
        "obj_ptr_tpos_proj.weight": (memory, width),
        "obj_ptr_tpos_proj.bias": (memory,),
        "no_obj_embed_spatial": (1, memory),
    }
    new = {name: torch.randn(shape, generator=generator) for name, shape in added.items()}
    torch.save({"model": state | new}, tmp_path / "sam2.1.pt")
    masks = []
    for name, weights in (("old", released[1]), ("new", tmp_path / "sam2.1.pt")):
        assemble(released[0], weights, tmp_path / name)
        shard(tmp_path / name, tmp_path / f"{name} base")
        model = Segmenter.from_pretrained(tmp_path / f"{name} base")
        (found,) = model.segment_given([golden.image("single")], [["the left cup"]], "Sure, [SEG].")[0]
        masks.append(found.mask)
    config = json.loads((tmp_path / "new base" / "config.json").read_text())
    assert config["sam2_config"] == golden.config()["sam2_config"] | {"version": "2.1"}
    held = read_all(tmp_path / "new base")
    assert all(torch.equal(held[f"{SAM2}{name}"], tensor) for name, tensor in new.items())
    assert (masks[0] == masks[1]).all() and masks[0].any()


def test_the_same_seed_gives_the_same(released: tuple[Path, Path], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assemble(*released, tmp_path / name, seed)
    one, two, three = (read_all(tmp_path / name) for name in ("one", "two", "three"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["text_hidden_fcs.0.weight"], three["text_hidden_fcs.0.weight"])


def test_what_cannot_be_put_together_is_named(released: tuple[Path, Path], tmp_path: Path) -> None:
    internvl, sam2 = released
    state = torch.load(sam2, weights_only=True)["model"]
    torch.save({"model": {k: t for k, t in state.items() if "sam_mask_decoder" not in k}}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"part\.pt: holds no tensor of sam_mask_decoder"):
        assemble(internvl, tmp_path / "part.pt", tmp_path / "base")
    other = tmp_path / "internvl"
    other.mkdir()
    config = {"model_type": "internvl_chat", "llm_config": {"architectures": ["InternLM3ForCausalLM"]}}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: model_type: no family makes a base of it: 'internvl_chat' .*InternLM3"):
        assemble(other, sam2, tmp_path / "base")
    assert not (tmp_path / "base").exists()


# ------------------------------------------------------------------------------------------------------------------ LISA


@pytest.fixture(scope="module")
def llava_and_sam(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(LLaVA's folder, SAM's file) as transformers saves them, in the prefixes of the release, the tokenizer without `[SEG]`."""
    folder = tmp_path_factory.mktemp("released")
    lisa_case.write_model(folder)
    state = load_file(folder / "llava" / "model.safetensors")
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in state.items()}
    save_file(old, folder / "llava" / "model.safetensors", metadata={"format": "pt"})
    words = json.loads((folder / "lisa" / "tokenizer.json").read_text())
    words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] != "[SEG]"]
    vocabulary = words["model"]["vocab"]
    vocabulary["<pad>"] = vocabulary.pop("[SEG]")
    (folder / "llava" / "tokenizer.json").write_text(json.dumps(words))
    (folder / "llava" / "preprocessor_config.json").write_text('{"crop_size": 42}')
    (folder / "llava" / "tokenizer_config.json").write_text((folder / "lisa" / "tokenizer_config.json").read_text())
    config = json.loads((folder / "llava" / "config.json").read_text())  # which names another size of SAM than the released one
    (folder / "llava" / "config.json").write_text(json.dumps(config | {"sam_config": lisa_case.SAM}))
    return folder / "llava", folder / "sam" / "model.safetensors"


def test_lisa_holds_both_and_loads(llava_and_sam: tuple[Path, Path], tmp_path: Path) -> None:
    llava, sam = llava_and_sam
    assemble(llava, sam, tmp_path / "assembled")
    shard(tmp_path / "assembled", tmp_path / "base")
    ours, theirs = read_all(tmp_path / "base"), load_file(llava / "model.safetensors")
    model = Segmenter.from_pretrained(tmp_path / "base")
    assert model.seg_token == len(model.tokenizer) - 1
    assert (tmp_path / "base" / "preprocessor_config.json").read_text() == '{"crop_size": 42}'
    for name, tensor in theirs.items():
        found = ours[name.replace(".vision_model.", ".")]
        differing = (found != tensor).flatten(1).any(1).nonzero().flatten().tolist() if tensor.ndim > 1 else []
        assert found.shape == tensor.shape and differing == ([model.seg_token] if name in (EMBED, HEAD) else []), name
    assert all(torch.equal(ours[f"sam.{name}"], tensor) for name, tensor in load_file(sam).items())
    assert shards.read_sums(tmp_path / "base").keys() == {
        f"model-{group}-00001-of-00001.safetensors"
        for group in ("vision", "embed_head", "llm", "proj", "fcs", "sam2_decoder", "sam2_encoder")
    }


def test_lisas_sam_is_vit_b_unless_another_is_named(llava_and_sam: tuple[Path, Path], tmp_path: Path) -> None:
    """ViT-B is what transformers' own config describes where nothing is said."""
    llava = tmp_path / "llava"
    shutil.copytree(llava_and_sam[0], llava)
    config = json.loads((llava / "config.json").read_text())
    del config["sam_config"]
    (llava / "config.json").write_text(json.dumps(config))
    assemble(llava, llava_and_sam[1], tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert SamConfig(**config["sam_config"]).to_dict() == SamConfig().to_dict()
    said = config["sam_config"]["vision_config"]
    assert said == {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "global_attn_indexes": [2, 5, 8, 11],
    }, "by name: a default may change"


@pytest.mark.parametrize("rows", [0, 1])
def test_a_llava_without_a_row_for_seg_is_named(llava_and_sam: tuple[Path, Path], tmp_path: Path, rows: int) -> None:
    """Tables of as many rows as the tokenizer had before have none to spare; with one more it just fits."""
    llava = tmp_path / "llava"
    shutil.copytree(llava_and_sam[0], llava)
    before = json.loads((llava / "tokenizer.json").read_text())
    size = len(before["model"]["vocab"])
    config = json.loads((llava / "config.json").read_text())
    config["text_config"]["vocab_size"] = size + rows
    (llava / "config.json").write_text(json.dumps(config))
    state = load_file(llava / "model.safetensors")
    cut = {name: state[name][: size + rows].clone() for name in (EMBED, HEAD)}
    save_file(state | cut, llava / "model.safetensors", metadata={"format": "pt"})
    if rows:
        assemble(llava, llava_and_sam[1], tmp_path / "base")
        assert len(read_all(tmp_path / "base")[EMBED]) == size + 1
    else:
        with pytest.raises(
            ValueError, match=rf"model.safetensors: {EMBED} has {size} rows, too few for a tokenizer of {size + 1} tokens"
        ):
            assemble(llava, llava_and_sam[1], tmp_path / "base")
        assert not (tmp_path / "base").exists()


def test_lisa_of_other_files_is_named(llava_and_sam: tuple[Path, Path], tmp_path: Path) -> None:
    llava, sam = llava_and_sam
    with pytest.raises(ValueError, match="model.safetensors: holds no tensor of vision_encoder; it is not a SAM checkpoint"):
        assemble(llava, llava / "model.safetensors", tmp_path / "base")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="config.json: model_type: no family makes a base of it: 'qwen2'"):
        assemble(tmp_path, sam, tmp_path / "base")
