"""What the indexes hold."""

from html import escape

from ans.report.page.parts import Html, Page, html_table, paragraph

TITLE = "Data"


def section(page: Page) -> str:
    rows, skipped = [], []
    for index in page.indexes:
        count = sum(reason["count"] for reason in index["skipped"].values())
        numbers = [f"{index[name]:,}" if name in index else "" for name in ("images", "regions", "expressions")]
        splits = ", ".join(f"{split} {of['images']:,}" for split, of in index.get("splits", {}).items())
        splits = f"not there: {index['absent']}" if "absent" in index else splits
        rows.append([index["source"], *numbers, f"{count:,}", Html(f'<td class="text">{escape(splits)}</td>')])
        for reason, of in index["skipped"].items():
            examples = Html(f'<td class="text">{escape(", ".join(map(str, of["examples"])))}</td>')
            skipped.append([index["source"], reason, f"{of['count']:,}", examples])
    header = ["source", "images", "regions", "expressions", "skipped", "images per split"]
    parts = [paragraph("What the indexes hold. Of SA-1B only names are listed; the annotations of its subset are read.")]
    parts.append(html_table("indexes", header, rows))
    if skipped:
        parts.append(html_table("records that cannot be used", ["source", "reason", "records", "for example"], skipped))
    return "\n".join(parts)
