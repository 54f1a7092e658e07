"""cIoU of every variant on every split, with intervals and differences to the base."""

from collections.abc import Sequence
from typing import Any

from ans.evaluation.metrics import FEWEST_IMAGES
from ans.report.charts import interval_chart
from ans.report.page.parts import Page, ciou_cell, difference_cell, html_table, paragraph
from ans.report.results import BASE
from ans.report.tables import MEAN, MEANS_SHOWN, SPECIAL_NOTE, mean_over_splits, rows_shown, special_table

TITLE = "Results"


def section(page: Page) -> str:
    results, scores = page.results, page.scores
    others = [variant for variant in results.variants if variant != BASE]
    counts = {split: results.metrics[BASE, split]["n"] for split in results.splits}

    def rows(cell: Any, variants: Sequence[str]) -> list[list[Any]]:
        return [
            [name, counts.get(name, ""), *(cell(scores[variant, name]) for variant in variants)] for name in rows_shown(results)
        ]

    several = MEAN in rows_shown(results)

    parts = [
        paragraph(
            "cIoU in percent under free greedy generation: the sum of intersections over the sum of unions of a split’s "
            "expressions. An answer without [SEG] counts as an empty mask. Below each value its 95 % bootstrap interval over "
            "images" + ("; the mean over splits is unweighted." if several else ".")
        )
    ]
    if others:
        title = f"{'mean ' if several else ''}cIoU minus that of {BASE}, points, with 95 % intervals"
        differences = [(variant, *scores[variant, MEAN].difference) for variant in others]
        rows_ = [(variant, 100 * value, 100 * low, 100 * high) for variant, value, low, high in differences]
        parts.append(interval_chart(title, rows_))
    parts.append(html_table("cIoU, %", ["split", "n", *results.variants], rows(ciou_cell, results.variants), total=several))
    if others:
        caption = f"difference to {BASE}, points; coloured where the interval excludes 0 (never below {FEWEST_IMAGES} images)"
        parts.append(html_table(caption, ["split", "n", *others], rows(difference_cell, others), total=several))
    means = [[variant, *(mean_over_splits(results, variant, key) for key in MEANS_SHOWN)] for variant in results.variants]
    caption = (
        f"other metrics{', mean over splits' if several else ''}, %; cIoU with a given [SEG] is an upper bound, not a result"
    )
    parts.append(html_table(caption, ["variant", *MEANS_SHOWN.values()], means))
    header, special = special_table(results)
    if special:
        parts += [html_table("gRefCOCO and ReasonSeg, %", header, special), paragraph(SPECIAL_NOTE)]
    return "\n".join(parts)
