"""What the indexes hold."""

from html import escape

from ans.report.page.parts import Html, Page, html_table, paragraph

TITLE = "Data"


def section(page: Page) -> str:
    rows, absent, skipped = [], [], []
    for index in page.indexes:
        if "absent" in index:
            absent.append([index["source"], index["absent"]])
            continue
        count = sum(reason["count"] for reason in index["skipped"].values())
        numbers = [f"{index[name]:,}" if name in index else "" for name in ("images", "regions", "expressions")]
        splits = ", ".join(f"{split} {of['images']:,}" for split, of in index.get("splits", {}).items())
        rows.append([index["source"], *numbers, f"{count:,}", _text(splits)])
        for reason, of in index["skipped"].items():
            skipped.append([index["source"], reason, f"{of['count']:,}", _text(", ".join(map(str, of["examples"])))])
    header = ["source", "images", "regions", "expressions", "skipped", "images per split"]
    parts = [paragraph("What the indexes hold. Of SA-1B only names are listed; the annotations of its subset are read.")]
    parts.append(html_table("indexes", header, rows))
    if skipped:
        parts.append(html_table("records that cannot be used", ["source", "reason", "records", "for example"], skipped))
    if absent:
        shown = html_table("missing sources", ["source", "why"], absent)
        parts.append(f"<details><summary>{len(absent)} missing sources</summary>{shown}</details>")
    return "\n".join(parts)


def _text(words: str) -> Html:
    return Html(f'<td class="text">{escape(words)}</td>')
