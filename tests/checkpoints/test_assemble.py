"""A new base from InternVL2.5 and SAM2 as they are released: the golden model cut in two and put together again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ans.checkpoints import shards
from ans.checkpoints.assemble import NEW_TOKENS, assemble
from ans.checkpoints.layout import from_hf
from ans.model.segmenter import Segmenter
from tests import golden_case
from tests.checkpoints.test_convert import read_all
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
    golden.write_tokenizer(internvl)
    (internvl / "tokenizer.json").write_bytes((golden_case.FOLDER / "tokenizer_base.json").read_bytes())
    torch.save({"model": from_hf({k: t for k, t in state.items() if k.startswith(SAM2)}, "sam2")}, root / "sam2_hiera_large.pt")
    return internvl, root / "sam2_hiera_large.pt"


def test_it_holds_both_and_loads(golden: GoldenCase, released: tuple[Path, Path], tmp_path: Path) -> None:
    assemble(*released, tmp_path / "assembled")
    shards.shard(tmp_path / "assembled", tmp_path / "base")
    ours, expected = read_all(tmp_path / "base"), golden.state("hf_state") | golden.state("base_internvl_changed")
    assert ours.keys() == expected.keys()
    for key, tensor in ours.items():
        if key in (EMBED, HEAD):
            assert tensor.shape == (417, 64) and torch.equal(tensor[:412], expected[key])
        elif not key.startswith("text_hidden_fcs."):
            assert torch.equal(tensor, expected[key]), key
    Segmenter.from_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["llm_config"]["vocab_size"] == 417 and config["template"] == "qwen_chat"


def test_new_tokens_have_the_official_ids_and_rows_of_their_own(
    golden: GoldenCase, released: tuple[Path, Path], tmp_path: Path
) -> None:
    assemble(*released, tmp_path / "base")
    model = Segmenter.from_pretrained(tmp_path / "base")
    assert {token: model.tokenizer.convert_tokens_to_ids(token) for token in NEW_TOKENS} == {
        token: golden.meta["tokens"][token] for token in NEW_TOKENS
    }
    text = "Please segment the left cup [SEG] <p>cup</p> <vp></vp>."
    official = Segmenter.from_pretrained(golden.write_model(tmp_path / "official")).tokenizer
    assert model.tokenizer(text)["input_ids"] == official(text)["input_ids"]
    rows = read_all(tmp_path / "base")[EMBED]
    new, old = rows[412:].float(), rows[:412].float()
    assert torch.cdist(new, new)[~torch.eye(5, dtype=torch.bool)].min() > 0
    assert ((new - old.mean(0)).abs() < 0.6 * old.std(0)).all()


def test_the_same_seed_gives_the_same(released: tuple[Path, Path], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assemble(*released, tmp_path / name, seed)
    one, two, three = (read_all(tmp_path / name) for name in ("one", "two", "three"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["text_hidden_fcs.0.weight"], three["text_hidden_fcs.0.weight"])


def test_what_cannot_be_put_together_is_named(released: tuple[Path, Path], tmp_path: Path) -> None:
    internvl, sam2 = released
    state = torch.load(sam2, weights_only=True)["model"]
    torch.save({"model": state | {"obj_ptr_tpos_proj.weight": torch.zeros(2)}}, tmp_path / "sam2.1.pt")
    with pytest.raises(ValueError, match=r"sam2\.1\.pt: is SAM2\.1"):
        assemble(internvl, tmp_path / "sam2.1.pt", tmp_path / "base")
    torch.save({"model": {k: t for k, t in state.items() if "sam_mask_decoder" not in k}}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"part\.pt: holds no tensor of sam_mask_decoder"):
        assemble(internvl, tmp_path / "part.pt", tmp_path / "base")
    other = tmp_path / "internvl"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"llm_config": {"architectures": ["InternLM2ForCausalLM"]}}))
    with pytest.raises(ValueError, match="InternLM2ForCausalLM is not supported yet"):
        assemble(other, sam2, tmp_path / "base")
    assert not (tmp_path / "base").exists()
