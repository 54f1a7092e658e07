"""The tokenizer of a folder that we write, read by the version of transformers that the official code pins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ans.checkpoints.base import shard
from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from ans.model.tokens import load_tokenizer, save_tokenizer
from tests.golden_case import GoldenSet

PINNED = "transformers==4.57.0"
TINY = Path(__file__).parents[2] / "weights" / "tiny"
TEXTS = ("Please segment the left cup in this image.", "It is [SEG].", "<img><IMG_CONTEXT></img> <p>a</p> Ünï <vp></vp>\n")
READ = """
import json, sys
from transformers import AutoTokenizer
texts = json.loads(sys.argv[1])
rows = []
for folder in sys.argv[2:]:
    for fast in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=fast)
        rows.append([[tokenizer.encode(text) for text in texts], tokenizer.eos_token, len(tokenizer)])
print(json.dumps(rows))
"""


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """The tiny base in shards, a saved model, and a tokenizer to which tokens were added, over the files of what it was made of."""
    shard(TINY, tmp_path / "base")
    Segmenter.from_pretrained(TINY).save_pretrained(tmp_path / "saved")
    golden = GoldenSet("sa2va_qwen3vl")
    made = golden.write_model(tmp_path / "made")
    (made / "tokenizer.json").write_bytes((golden.folder / "tokenizer_base.json").read_bytes())
    (made / "added_tokens.json").write_text('{"<p>": 401}')
    tokenizer = load_tokenizer(made, ModelConfig.from_folder(made).language)
    tokenizer.add_tokens(["[SEG]", "<p>", "</p>", "<vp>", "</vp>"], special_tokens=True)
    save_tokenizer(tokenizer, made)
    assert not (made / "added_tokens.json").exists()
    assert load_tokenizer(made, ModelConfig.from_folder(made).language).encode("[SEG]") == [golden.meta["tokens"]["[SEG]"]]
    return [tmp_path / "base", tmp_path / "saved", made]


def test_the_files_name_what_every_version_has(folders: list[Path]) -> None:
    for folder in folders:
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert values["tokenizer_class"] == "PreTrainedTokenizerFast" and values["eos_token"] == "<|im_end|>"
        assert not isinstance(values.get("extra_special_tokens"), list) and "backend" not in values


@pytest.mark.slow
def test_the_pinned_version_reads_the_same_ids(folders: list[Path], tmp_path: Path) -> None:
    """`ANS_OFFICIAL_PYTHON` names an interpreter that has the version; else one is made, which needs a package index."""
    python = os.environ.get("ANS_OFFICIAL_PYTHON")
    if python is None:
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
        python = str(tmp_path / "venv" / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", PINNED], check=True)
    done = subprocess.run(
        [python, "-c", READ, json.dumps(TEXTS), *map(str, folders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    expected = []
    for folder in folders:
        tokenizer = load_tokenizer(folder, ModelConfig.from_folder(folder).language)
        expected += 2 * [[[tokenizer.encode(text) for text in TEXTS], tokenizer.eos_token, len(tokenizer)]]
    assert rows == expected
