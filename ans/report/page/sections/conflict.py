"""How the two gradients of each step stand to each other."""

from ans.report.charts import line_chart
from ans.report.page.parts import Page, paragraph
from ans.report.training import conflict_panels

TITLE = "Gradient conflict"


def section(page: Page) -> str:
    drawn = conflict_panels(page.training.curves)
    if not drawn:
        return ""
    train, tasks = page.training.manifest["train"], page.training.manifest["tasks"].values()
    primary, auxiliary = (
        " or ".join(task["title"] for task in tasks if task["role"] == role) for role in ("primary", "auxiliary")
    )
    text = (
        f"Each step has two gradients over the trained parameters: the primary one of {primary}, the auxiliary one of {auxiliary}. A "
        f"cosine below 0 means that they disagree. They were combined by “{train['surgery']}” with beta {train['beta']:g}. Groups "
        "that the auxiliary one never reaches are left out."
    )
    return paragraph(text) + f'<div class="charts">{"".join(line_chart(panel, lines) for panel, lines in drawn)}</div>'
