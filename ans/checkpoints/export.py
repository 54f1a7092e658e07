"""A variant as something to hand on: a folder ready for the hub, or a small adapter.

`python -m ans.checkpoints.export VARIANT OUT` links the variant's shards, config and tokenizer to OUT and writes a model card
from the run. With `--adapter CHECKPOINT` (the `.pth` that was trained) OUT holds a plain PEFT adapter of the language model and
one safetensors file of the variant's other groups instead.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ans.checkpoints import shards

ADAPTER, OTHERS = "adapter_model.safetensors", "other_groups.safetensors"


def export_hub(variant: Path, out: Path, reports: Path = Path("reports"), base_model: str | None = None) -> None:
    """A folder to upload: the variant's files (hard links, or copies) and a `README.md` with its numbers.

    `base_model`: the hub's name of the base, for the card. Raises `FileNotFoundError` when `variant` was not made by `filter`.
    """
    record = _record(variant)
    sums = shards.read_sums(variant)
    with shards.folder_at_once(out) as folder:
        for path in shards.files(variant):
            shards.link(path, folder / path.name)
        shards.copy_side_files(variant, folder)
        shards.write_index(folder, sums)
        (folder / "README.md").write_text(model_card(variant.name, record, reports, base_model), encoding="utf-8")


def export_adapter(variant: Path, checkpoint: Path, out: Path) -> None:
    """The variant's difference to its base: `adapter_model.safetensors` with `adapter_config.json`, which PEFT loads on the
    base's language model, and `other_groups.safetensors` with the other trained groups under their HF names.

    Raises `ValueError` when `checkpoint` is not the one that the variant was made of, or holds LoRA without its alpha.
    """
    from safetensors.torch import save_file  # the hub folder needs no torch

    from ans.checkpoints.layout import checkpoint_to_hf_name, trained_group
    from ans.checkpoints.pth import digest, read_pth

    record = _record(variant)
    read = read_pth(checkpoint)
    if record["trained"] is None:
        raise ValueError(f"{variant}: is the base; there is no difference to export")
    if record["trained"]["checkpoint_sha256"] != (read.meta.get("sha256") or digest(read.state)):
        raise ValueError(f"{checkpoint}: is not the checkpoint that {variant} was made of")
    lora, others = {}, {}
    for key, tensor in read.state.items():
        name = checkpoint_to_hf_name(key)
        if ".lora_" in key:
            lora["base_model.model." + name.removeprefix("language_model.").replace(".default.weight", ".weight")] = (
                tensor.clone()
            )
        elif trained_group(name) in record["groups"]:
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


def model_card(name: str, record: dict[str, Any], reports: Path, base_model: str | None) -> str:
    """The card's text: front matter for the hub, what was trained, how, and every measured split of this variant."""
    front = ["---", "library_name: transformers", "pipeline_tag: image-segmentation", "tags: [sa2va, referring-segmentation]"]
    if base_model:
        front.append(f"base_model: {base_model}")
    lines = [*front, "---", "", f"# Sa2VA, variant `{name}`", ""]
    groups = ", ".join(f"`{group}`" for group in record["groups"]) or "none: this is the untouched base"
    lines += [
        "A Sa2VA model (InternVL2.5 and SAM2 joined by `[SEG]`), fine-tuned with ANS.",
        "",
        f"Trained groups in it: {groups}.",
    ]
    if record["trained"]:
        trained = record["trained"]
        lines += [
            "",
            "| | |",
            "| --- | --- |",
            f"| optimizer steps | {trained['step']} |",
            f"| precision of the trained tensors | {trained['precision']} |",
            f"| sha256 of the base's weights | `{trained['parent_sha256']}` |",
            f"| sha256 of the trained tensors | `{trained['checkpoint_sha256']}` |",
        ]
        manifest = reports.parent / "models" / "checkpoint" / "manifest.json"
        if manifest.is_file():
            values = json.loads(manifest.read_text(encoding="utf-8"))
            train = values["train"]
            lines += [
                f"| images per step | {values['effective_batch']} |",
                f"| learning rate | {train['lr']}, {train['schedule']} |",
                f"| LoRA | rank {train['lora']['rank']}, alpha {train['lora']['alpha']} |",
                f"| seed | {train['seed']} |",
            ]
    results = sorted((reports / "eval" / name).glob("*.json"))
    if results:
        lines += [
            "",
            "## Results",
            "",
            "Free generation, in percent.",
            "",
            "| split | cIoU | mIoU | `[SEG]` said | expressions |",
        ]
        lines.append("| --- | --- | --- | --- | --- |")
        for path in results:
            m = json.loads(path.read_text(encoding="utf-8"))
            if "ciou" not in m:  # a captioning's result
                continue
            lines.append(
                f"| {path.stem} | {100 * m['ciou']:.1f} | {100 * m['miou']:.1f} | {100 * m['seg_rate']:.1f} | {m['n']} |"
            )
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from ans.model.segmenter import Segmenter",
        "",
        'model = Segmenter.from_pretrained("this folder")',
        'answers = model.segment([image], [["the left cup"]])',
        "```",
        "",
        "`config.json` names the official remote code (`auto_map`) for transformers with `trust_remote_code=True`.",
        "That code knows only the released size of SAM2.",
    ]
    return "\n".join(lines) + "\n"


def _record(variant: Path) -> dict[str, Any]:
    path = variant / "variant.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {variant} must be a folder that stage `filter` made")
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", type=Path, help="models/variants/<name>")
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", type=Path, metavar="CHECKPOINT", help="export the difference to the base, from this .pth")
    parser.add_argument("--base-model", help="the hub's name of the base, for the card")
    args = parser.parse_args()
    if args.adapter:
        export_adapter(args.variant, args.adapter, args.out)
    else:
        export_hub(args.variant, args.out, base_model=args.base_model)


if __name__ == "__main__":
    main()
