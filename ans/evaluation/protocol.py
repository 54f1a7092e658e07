"""The protocol of an evaluation: everything that its numbers depend on, printed once and stored beside every result."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ans.config import Config
from ans.evaluation.plan import Plan
from ans.evaluation.predict import GIVEN_ANSWER
from ans.formats.shards import files
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.provenance import digest

PACKAGES = ("torch", "transformers", "sam2")


def make_protocol(config: Config, variant: str, folder: Path, model: ModelConfig, device: str, plan: Plan) -> dict[str, Any]:
    """Return the protocol as stored in `protocol.json` and in each table's metadata."""
    settings = config.evaluate
    template = model.template
    return {
        "variant": variant,
        "prompt": template.segment,
        "sentence_prompt": template.sentence,
        "generation": "greedy, free; an answer without [SEG] is an empty mask; several masks are united",
        "forced_answer": GIVEN_ANSWER,
        "caption_prompt": prompts.DESCRIBE_PROMPT,
        "weights_sha256": weights_checksum(folder),
        "code_sha256": code_checksum(),
        "precision": settings.precision,
        "four_bit": list(settings.four_bit),
        "device": device,
        "packages": {name: version(name) for name in PACKAGES + (("bitsandbytes",) if settings.four_bit else ())},
        "tokens_per_batch": settings.tokens_per_batch,
        "max_new_tokens": settings.max_new_tokens,
        "max_samples": settings.max_samples,
        "max_texts_per_image": settings.max_texts_per_image,
        "capped": settings.scope.capped,
        "splits": plan.counts,
    }


def protocol_fingerprint(protocol: dict[str, Any]) -> str:
    """Return 16 hex digits that change with anything in the protocol."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def protocol_text(protocol: dict[str, Any]) -> str:
    """Return the protocol for a reader, in a few lines."""
    part = f"CAPPED: max_samples {protocol['max_samples']}, max_texts_per_image {protocol['max_texts_per_image']}"
    lines = [
        f"protocol   {protocol_fingerprint(protocol)}: {protocol['variant']}, {protocol['precision']} on {protocol['device']}",
        f"prompt     {protocol['prompt']!r}, at most {protocol['max_new_tokens']} new tokens; {protocol['generation']}",
        *([f"           {protocol['sentence_prompt']!r} where the text is a sentence"] if protocol["sentence_prompt"] else []),
        f"weights    {protocol['weights_sha256'][:16]}   code {protocol['code_sha256'][:16]}",
        f"questions  {part if protocol['capped'] else 'all of each split'}",
        *(
            f"  {name:<28}{of['n']:>8} of {of['images']:>6} images   {of['sha256'][:16]}"
            for name, of in protocol["splits"].items()
        ),
    ]
    return "\n".join(lines)


def weights_checksum(folder: Path) -> str:
    """Return sha256 over the names and contents of a model folder's shards, its config.json and its tokenizer."""
    digest = hashlib.sha256()
    for path in [*files(folder), folder / "config.json", *sorted(folder.glob("tokenizer*"))]:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def code_checksum() -> str:
    """Return sha256 over the code that decides about the results."""
    return digest("ans.evaluation.evaluate")
