"""InternLM2's tokenizer from its own files, a SentencePiece model and the list of added tokens, for which transformers has no class.

The model file is a protocol buffer (github.com/google/sentencepiece, `sentencepiece_model.proto`), of which a few fields are read. It
merges pairs of pieces in the order of their scores, which is what the tokenizers library does with merges in that order.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND, _NORMAL = 1, 2, 3, 1
_MODEL, _BPE = 3, 2
_CHARACTERS, _PREFIX, _SPACES = 2, 3, 4


def internlm2_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder with `tokenizer.model` and `tokenizer_config.json`.

    Raises `ValueError` naming the file for a model that splits text by other rules than InternLM2's.
    """
    path = folder / "tokenizer.model"
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {int(number): entry for number, entry in settings["added_tokens_decoder"].items()}
    pieces, prefix = _read(path)
    names = [added[number]["content"] if number in added else text for number, (text, _, _) in enumerate(pieces)]
    vocabulary = {name: number for number, name in enumerate(names)}
    scores = {text: score for number, (text, score, kind) in enumerate(pieces) if kind == _NORMAL and number not in added}

    tokenizer = Tokenizer(BPE(vocabulary, _merges(vocabulary, scores), unk_token=names[0], fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    first = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *first])
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    for number, entry in sorted(added.items()):
        tokenizer.add_tokens([AddedToken(entry["content"], **{flag: entry[flag] for flag in flags if flag in entry})])
        if tokenizer.token_to_id(entry["content"]) != number:
            raise ValueError(f"{folder / 'tokenizer_config.json'}: {entry['content']} cannot have number {number}")
    begin = settings.get("bos_token", "<s>")
    if settings.get("add_bos_token", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    named = {name: settings[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if settings.get(name)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, the highest score first."""
    found = []
    for whole, score in scores.items():
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for _, _, _, left, right in sorted(found)]


def _read(path: Path) -> tuple[list[tuple[str, float, int]], bool]:
    """Return text, score and kind of each piece; whether a text is encoded as if a space stood before it."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == _PIECES:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece[_SCORE]) if _SCORE in piece else (0.0,)
                pieces.append((piece[_TEXT].decode(), score, piece.get(_KIND, _NORMAL)))
            elif number == _TRAINER:
                trainer = dict(_fields(value))
            elif number == _NORMALIZER:
                normalizer = dict(_fields(value))
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{path}: not a SentencePiece model ({error})") from error
    if trainer.get(_MODEL) != _BPE:
        raise ValueError(f"{path}: is not a BPE model, as InternLM2's is")
    if normalizer.get(_CHARACTERS) or normalizer.get(_SPACES, 1):
        raise ValueError(f"{path}: changes characters or spaces before it splits a text, which InternLM2's does not")
    return pieces, bool(normalizer.get(_PREFIX, 1))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message: integers as integers, everything else as bytes."""
    place = 0

    def whole() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = whole()
        if key & 7 == 0:
            yield key >> 3, whole()
            continue
        size = {1: 8, 2: None, 5: 4}[key & 7]
        size = whole() if size is None else size
        if place + size > len(data):
            raise IndexError("it ends too early")
        yield key >> 3, data[place : place + size]
        place += size
