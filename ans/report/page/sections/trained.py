"""What was trained on what."""

from ans.report.page.parts import Page, as_text, flat, html_table, paragraph

TITLE = "What was trained on what"


def section(page: Page) -> str:
    manifest = page.training.manifest
    groups = [
        [name, group["state"], f"{group['tensors']:,}", f"{group['parameters']:,}"] for name, group in manifest["groups"].items()
    ]
    batch = (
        f"Effective batch {manifest['effective_batch']} = {manifest['processes']} process(es) × {manifest['batch']} images × "
        f"{manifest['accumulation']} accumulated. {manifest['left_out_evaluated_images']:,} images were left out because "
        "they are in an evaluated split."
    )
    parts = {"train": manifest["train"], **{f"train.{name}": task["settings"] for name, task in manifest["tasks"].items()}}
    settings = [[key, as_text(value)] for name, part in parts.items() for key, value in flat(part, name) if value is not None]
    return "\n".join(
        [
            paragraph(batch),
            html_table("samples", ["source", "samples"], [[name, f"{count:,}"] for name, count in manifest["samples"].items()]),
            html_table("groups of parameters", ["group", "state", "tensors", "parameters"], groups),
            f"<details><summary>All settings</summary>{html_table('settings of the run', ['key', 'value'], settings)}</details>",
        ]
    )
