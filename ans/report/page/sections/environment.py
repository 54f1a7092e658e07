"""Versions, precision and checksums."""

from html import escape

from ans.report.page.parts import Html, Page, html_table
from ans.report.results import BASE

TITLE = "Environment"


def section(page: Page) -> str:
    manifest, base = page.training.manifest, page.protocols[BASE]
    used = [["training: " + name, version] for name, version in manifest["versions"].items()]
    used += [["evaluation: " + name, version] for name, version in base["packages"].items()]
    used += [["precision of training", manifest["train"]["precision"]]]
    used += [["precision of evaluation", f"{base['precision']} on {base['device']}"]]
    used += [["question", base["prompt"]], ["at most", f"{base['max_new_tokens']} new tokens"]]
    sums = [["base weights", manifest["base_sha256"]], ["evaluation’s code", base["code_sha256"]]]
    sums += [[f"weights of {variant}", protocol["weights_sha256"]] for variant, protocol in page.protocols.items()]
    sums += [[f"questions of {split}", of["sha256"]] for split, of in base["splits"].items()]
    code = [[name, Html(f"<td><code>{escape(value)}</code></td>")] for name, value in sums]
    return html_table("environment", ["what", "value"], used) + html_table("SHA-256", ["of", "value"], code)
