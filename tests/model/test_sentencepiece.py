"""InternLM2's tokenizer, read without its own code, against the sentencepiece library, whose ids were kept."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ans.model.tokens import load_tokenizer

FOLDER = Path(__file__).parents[1] / "golden" / "internlm2_tokenizer"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
MODELS = ("plain", "prefix")


def write(folder: Path, name: str, **changes: object) -> Path:
    """As a release has it: model, added tokens, and a class that comes with the release."""
    (folder / "tokenizer.model").write_bytes((FOLDER / f"{name}.model").read_bytes())
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    added = {number: {"content": text, **flags} for number, text in EXPECTED[name]["added"].items()}
    values = {"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": added, "add_bos_token": True}
    values |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_sentencepieces(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path, name), LlamaConfig())
    ids = [tokenizer.encode(text) for text in EXPECTED["texts"]]
    assert ids == EXPECTED[name]["ids"]
    assert len(tokenizer) == EXPECTED[name]["size"] + 8 and tokenizer.eos_token_id == 2
    for text, row in zip(EXPECTED["texts"], ids, strict=True):
        assert tokenizer.decode(row[1:], skip_special_tokens=False).replace(" ", "") == text.replace(" ", "").replace("▁", "")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert [again.encode(text) for text in EXPECTED["texts"]] == ids


def test_without_a_start_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, "plain", add_bos_token=False), LlamaConfig())
    assert tokenizer.encode(EXPECTED["texts"][0]) == EXPECTED["plain"]["ids"][0][1:]


def test_other_files_are_refused(tmp_path: Path) -> None:
    whole = (FOLDER / "plain.model").read_bytes()
    for content, message in (
        (b"{}", "not a SentencePiece model"),
        (whole[:-3], "not a SentencePiece model"),
        (whole[:5000], "tokenizer.model"),
    ):
        folder = write(tmp_path, "plain")
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(folder, LlamaConfig())
