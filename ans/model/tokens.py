"""What a model asks of its tokenizer beyond encoding and decoding."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ans.model import prompts
from ans.model.sentencepiece import internlm2_tokenizer


def load_tokenizer(folder: Path, language: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Return the folder's tokenizer, exactly as `tokenizer.json` has it; a folder without one is read by the class that it names.

    `AutoTokenizer` would rebuild a `tokenizer.json` by the rules of the language model's own class, and split words otherwise.
    """
    named = _class_named(folder)
    try:
        tokenizer = _read(folder, named, language)
        tokenizer.encode("\ue000", add_special_tokens=False)  # a private character: an unknown token that is missing shows now
        return tokenizer
    except Exception as error:  # the files drive other libraries here, which raise whatever they like
        raise ValueError(f"{folder}: its tokenizer.json, tokenizer_config.json or vocabulary cannot be used: {error}") from error


def _read(folder: Path, named: str, language: PretrainedConfig) -> PreTrainedTokenizerBase:
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    if named.startswith("InternLM2"):
        return internlm2_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, config=language)
    assert tokenizer is not None
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save it in a form that transformers reads from 4.57.0 on. What lay there of a tokenizer that it was made of goes."""
    for name in ("added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    for_older_versions(folder)


def for_older_versions(folder: Path) -> None:
    """Write `tokenizer_config.json` without what transformers reads from 5 on alone: the class that every `tokenizer.json` has there,
    and the list of special tokens that have no name, which had another key."""
    path = folder / "tokenizer_config.json"
    if _class_named(folder) != "TokenizersBackend":
        return
    values = json.loads(path.read_text(encoding="utf-8"))
    values = {key: value for key, value in values.items() if key not in ("backend", "is_local", "local_files_only")}
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _class_named(folder: Path) -> str:
    """Return the class that a folder says its tokenizer has."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return ""
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class") or ""
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a tokenizer's settings: {error}") from error
    if not isinstance(named, str):
        raise ValueError(f"{path}: tokenizer_class is {named!r:.80}, expected a text")
    return named


def token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the id of a text that must be one token. Raises `ValueError`."""
    token = tokenizer.convert_tokens_to_ids(text)
    if not isinstance(token, int) or token == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no token {text}; this model's tokenizer must know it as one token")
    return token


def text_tokens(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return ids (n,) of the tokens that stand for text: none that is special or was added to the vocabulary."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return torch.tensor([number for number in range(len(tokenizer)) if number not in special])


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the words of `text` that the tokenizer has no token for; tokenizers made of bytes have one for everything."""
    unknown = tokenizer.unk_token_id
    words = {word: tokenizer.encode(word, add_special_tokens=False) for word in text.split()}
    return [word for word, ids in words.items() if unknown is not None and unknown in ids]


def ended(tokenizer: PreTrainedTokenizerBase, stop_words: tuple[str, ...], ids: list[int]) -> bool:
    """Return whether an answer ends here: with the tokenizer's end token, or with a text that is one of the stop words."""
    if ids[-1] == tokenizer.eos_token_id:
        return True
    longest = max((len(word) for word in stop_words), default=0)
    tail = _text(tokenizer, ids[-longest:] if longest else []).replace("\r", "").replace("\n", "")
    return tail.endswith(stop_words) if longest else False


def text_ids(tokenizer: PreTrainedTokenizerBase, stop_words: tuple[str, ...], ids: Sequence[int], text: set[int]) -> list[int]:
    """Return the tokens of an answer that stand for text (`text`), without the stop word, which may be text to the tokenizer as well
    (Sa2VA-4B's `<|end|>`), and then share a token with the words before it."""
    kept = [i for i in ids if i in text]
    decoded = _text(tokenizer, kept).rstrip()
    for word in stop_words:
        if decoded.endswith(word):
            return prompts.encode(tokenizer, prompts.quoted(decoded.removesuffix(word).rstrip()), start=False)
    return kept


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], without: tuple[str, ...] = ()) -> str:
    """Return an answer's text, special tokens included, less a final one of `without`."""
    text = _text(tokenizer, ids)
    for word in without:
        text = text.removesuffix(word)
    return text.strip()


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of one row of ids, special tokens included."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert isinstance(text, str)  # several rows would give a list
    return text
