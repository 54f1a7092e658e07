"""Why expressions failed."""

from html import escape

from ans.report.failures import FAILED_BELOW, REASONS
from ans.report.page.parts import Html, Page, html_table, paragraph, share_cell

TITLE = "Failures"


def section(page: Page) -> str:
    reasons, shown = page.reasons, set(page.gallery["reason"])  # a reason without an example in the gallery is not a link
    total = len(next(iter(reasons.values())))
    rows = []
    for reason, meaning in REASONS.items():
        counts = [int((of == reason).sum()) for of in reasons.values()]
        link = Html(f'<a href="#gallery" data-reason="{reason}">{reason}</a>') if reason in shown else reason
        rows.append([link, *(share_cell(count, total) for count in counts), Html(f'<td class="text">{escape(meaning)}</td>')])
    rows.append(["all failures", *(share_cell(int((of != "").sum()), total) for of in reasons.values()), ""])
    text = f"Expressions whose IoU is below {FAILED_BELOW}, by the first reason that fits; shares of all {total:,} expressions."
    header = ["reason", *page.results.variants, "meaning"]
    return paragraph(text) + html_table("failures by reason", header, rows, total=True)
