"""A variant as something to hand on: a folder ready for the hub, or a small adapter.

`python -m ans export VARIANT OUT` links the variant's shards, config and tokenizer to OUT and writes a model card
from the run. With `--adapter CHECKPOINT` (the `.pth` that was trained) OUT holds a plain PEFT adapter of the language model and
one safetensors file of the variant's other groups instead.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ans.formats import shards

ADAPTER, OTHERS = "adapter_model.safetensors", "other_groups.safetensors"


@dataclass(frozen=True)
class Measured:
    """How a variant's numbers came about: the fingerprint of the evaluation's protocol, and whether the data were ANS's synthetic world,
    whose splits bear published names."""

    protocol: str | None = None
    synthetic: bool = False


def export_hub(
    variant: Path,
    out: Path,
    reports: Path = Path("reports"),
    base_model: str | None = None,
    measured: Measured = Measured(),  # noqa: B008  (it is frozen)
) -> None:
    """Write a folder to upload: the variant's files (hard links, or copies) and a `README.md` with its numbers, for the hub's own
    tables too (`model-index`).

    `base_model`: the hub's name of the base, for the card. Raises `FileNotFoundError` when `variant` was not made by `filter`.
    """
    from ans.checkpoints.convert import config_for_remote
    from ans.model.config import ModelConfig

    record = _record(variant)
    model, sums = ModelConfig.from_folder(variant), shards.read_sums(variant)
    with shards.folder_at_once(out) as folder:
        for path in shards.files(variant):
            shards.link(path, folder / path.name)
        shards.copy_side_files(variant, folder)
        if "auto_map" not in model.values:  # a variant that is the untouched base
            (folder / "config.json").write_text(json.dumps(config_for_remote(model), indent=2) + "\n", encoding="utf-8")
        shards.write_index(folder, sums)
        (folder / "README.md").write_text(model_card(variant, record, reports, base_model, measured), encoding="utf-8")


def export_adapter(variant: Path, checkpoint: Path, out: Path) -> None:
    """Write the variant's difference to its base: `adapter_model.safetensors` with `adapter_config.json`, which PEFT loads on the
    base's language model, and `other_groups.safetensors` with the other trained groups under their HF names.

    Raises `ValueError` when `checkpoint` is not the one that the variant was made of, or holds LoRA without its alpha.
    """
    from safetensors.torch import save_file

    from ans.formats.pth import read_pth, tensors_checksum
    from ans.model.config import ModelConfig

    record = _record(variant)
    read, keys = read_pth(checkpoint), ModelConfig.from_folder(variant).keys
    if record["trained"] is None:
        raise ValueError(f"{variant}: is the base; there is no difference to export")
    if record["trained"]["checkpoint_sha256"] != (read.meta.get("sha256") or tensors_checksum(read.state)):
        raise ValueError(f"{checkpoint}: is not the checkpoint that {variant} was made of")
    lora, others = {}, {}
    for key, tensor in read.state.items():
        name = keys.checkpoint_to_hf_name(key)
        if ".lora_" in key:
            (inside,) = keys.from_hf_names(name, "model")
            inside = inside.removeprefix("vlm.language_model.").replace(".default.weight", ".weight")
            lora[f"base_model.model.{inside}"] = tensor.clone()
        elif {keys.trained_group(name), keys.shard_of(name)} & set(record["groups"]):
            others[name] = tensor.clone()
    with shards.folder_at_once(out) as folder:
        if "lora" in record["groups"]:
            size = (read.meta.get("train") or {}).get("lora")
            rank = next(tensor.shape[0] for key, tensor in lora.items() if ".lora_A." in key)
            config = {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": None,
                "r": rank,
                "lora_alpha": record["trained"]["lora_scale"] * rank,
                "lora_dropout": size["dropout"] if size else 0.0,
                "target_modules": sorted({key.split(".lora_")[0].rpartition(".")[2] for key in lora}),
                "bias": "none",
                "inference_mode": True,
            }
            save_file(lora, folder / ADAPTER, metadata={"format": "pt"})
            (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if others:
            save_file(others, folder / OTHERS, metadata={"format": "pt"})
        (folder / "variant.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


CARD = """\
---
library_name: transformers
pipeline_tag: image-segmentation
tags: [{tag}, referring-segmentation]
{base_model}{index}---

# {system}, variant `{name}`

A {system} model ({title} and {decoder} joined by `[SEG]`), fine-tuned with ANS.

Trained groups in it: {groups}.
{training}{results}
## Use

```python
from ans.model.segmenter import Segmenter

model = Segmenter.from_pretrained("this folder")
answers = model.segment([image], [["the left cup"]])
```
{remote}"""
TRAINING = """
| | |
| --- | --- |
| optimizer steps | {step} |
| precision of the trained tensors | {precision} |
| sha256 of the base's weights | `{parent_sha256}` |
| sha256 of the trained tensors | `{checkpoint_sha256}` |
"""
SETTINGS = """\
| images per step | {effective_batch} |
| learning rate | {lr}, {schedule} |
| LoRA | rank {rank}, alpha {alpha} |
| seed | {seed} |
"""
RESULTS = """
## Results

Free generation, in percent{where}.{protocol}

| split | cIoU | mIoU | `[SEG]` said | expressions |
| --- | --- | --- | --- | --- |
"""
REMOTE = """
## Which version of transformers reads what

- Tokenizer and weights: 4.57.0 and later, without remote code.
- The official code, which `config.json` names (`auto_map`): 4.57.0, for which it was written; not every later version runs it.
  It is not in this folder, and `auto_map` cannot name a commit. Choose one that you have read, and pin it:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("this folder", trust_remote_code=True, code_revision="40 digits: a commit of {code}")
```

- That code builds SAM2 in the size of Sa2VA's releases, whatever `config.json` says; this model has {sizes}.
- It rounds the mean and the standard deviation of SAM2's pixels to bf16, in float32 too, and by default computes in bf16; ANS does
  neither, as in training. So masks differ in some pixels along their edges.
"""


SYNTHETIC = (
    ", on ANS's synthetic world: drawings of coloured shapes in the layouts of the published sets, whose numbers these are not"
)


def model_card(variant: Path, record: dict[str, Any], reports: Path, base_model: str | None, measured: Measured) -> str:
    """Return the card's text: front matter for the hub, what was trained, how, and every measured split of this variant."""
    from ans.model.config import ModelConfig

    model = ModelConfig.from_folder(variant)
    words = {"system": model.family.system, "title": model.family.title, "decoder": model.decoder.name}
    code = model.values.get("auto_map", {}).get("AutoModel", "").partition("--")[0] or model.family.code
    sizes = f"{model.decoder.name} in another" if model.values.get(model.decoder.section) else "that"
    training = TRAINING.format(**record["trained"]) if record["trained"] else ""
    manifest = reports.parent / "models" / "checkpoint" / "manifest.json"
    if training and manifest.is_file():
        values = json.loads(manifest.read_text(encoding="utf-8"))
        train = values["train"]
        training += SETTINGS.format(
            effective_batch=values["effective_batch"], lr=train["lr"], schedule=train["schedule"], seed=train["seed"],
            rank=train["lora"]["rank"], alpha=train["lora"]["alpha"],
        )  # fmt: skip
    results = _measured(reports / "eval" / variant.name)
    return CARD.format(
        name=variant.name,
        index=_index(f"{words['system']}, variant {variant.name}", results, measured),
        tag=words["system"].lower(),
        base_model=f"base_model: {base_model}\n" if base_model else "",
        groups=", ".join(f"`{group}`" for group in record["groups"]) or "none: this is the untouched base",
        training=training,
        results=_table(results, measured),
        remote=REMOTE.format(code=code, sizes=sizes) if model.family.remote else "",
        **words,
    )


def _measured(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the metrics of every split that was evaluated; those of captions are left out."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {split: values for split, values in found.items() if "ciou" in values}


def _table(results: dict[str, dict[str, Any]], measured: Measured) -> str:
    """Return the splits for readers, or nothing."""
    rows = [
        f"| {split} | {100 * m['ciou']:.1f} | {100 * m['miou']:.1f} | {100 * m['seg_rate']:.1f} | {m['n']} |\n"
        for split, m in results.items()
    ]
    protocol = f" Fingerprint of the protocol: `{measured.protocol}`." if measured.protocol else ""
    return RESULTS.format(where=SYNTHETIC if measured.synthetic else "", protocol=protocol) + "".join(rows) if rows else ""


def _index(name: str, results: dict[str, dict[str, Any]], measured: Measured) -> str:
    """Return the same for the hub, as the front matter's `model-index`."""
    if not results:
        return ""
    entries = []
    for split, values in results.items():
        data, _, part = split.rpartition("_")
        about = (
            {"name": f"ANS synthetic world, {data}", "type": "ans-world"} if measured.synthetic else {"name": data, "type": data}
        )
        metrics = [
            {"type": key, "name": title, "value": round(100 * values[key], 2)}
            for key, title in (("ciou", "cIoU"), ("miou", "mIoU"))
        ]
        arguments = {"args": {"protocol": measured.protocol}} if measured.protocol else {}
        entries.append(
            {
                "task": {"type": "image-segmentation", "name": "Referring segmentation"},
                "dataset": {**about, "split": part, **arguments},
                "metrics": metrics,
            }
        )
    return yaml.safe_dump({"model-index": [{"name": name, "results": entries}]}, sort_keys=False, allow_unicode=True)


def _record(variant: Path) -> dict[str, Any]:
    path = variant / "variant.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {variant} must be a folder that stage `filter` made")
    return json.loads(path.read_text(encoding="utf-8"))
