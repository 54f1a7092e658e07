"""Training curves."""

from ans.report.charts import line_chart
from ans.report.page.parts import Page, paragraph
from ans.report.training import panels

TITLE = "Curves"


def section(page: Page) -> str:
    charts = "".join(line_chart(panel, lines) for panel, lines in panels(page.training))
    return (
        paragraph("Pale: every step that had the curve; full: a moving average, its last value in the legend.")
        + f'<div class="charts">{charts}</div>'
    )
