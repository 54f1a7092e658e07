"""Grounded conversation: GLaMM's metrics of every variant, and images with the masks of the phrases that were said."""

from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from ans.data.images import open_image
from ans.evaluation.metrics import FEWEST_IMAGES
from ans.report.gallery import PREDICTION, TRUTH, compared
from ans.report.grounded import Grounded
from ans.report.page.parts import Html, Page, cut, html_table, paragraph, photo_style, picture, picture_row
from ans.report.pictures import overlay
from ans.report.results import BASE, decode

TITLE = "Grounded conversation"
RESAMPLES = 2000
SHOWN = 4
"""Images of a split whose answers are shown."""


def section(page: Page) -> str:
    grounded = page.grounded
    if grounded is None or not grounded.splits:
        return ""
    parts = [
        paragraph(
            "Each image is described with a mask for every phrase (GLaMM’s metrics). mIoU: predicted and true masks of an image are "
            "paired, best first, and the pairs’ IoU is averaged; 0 without a pair. AP50: COCO’s average precision at IoU 0.5. Below "
            "mIoU its 95 % bootstrap interval over images."
        )
    ]
    rows = [
        [split, variant, *_cells(page, grounded, variant, split)] for split in grounded.splits for variant in grounded.variants
    ]
    headings = ["split", "variant", "images", "mIoU, %", f"minus {BASE}", "AP50, %", "masks an image"]
    parts.append(html_table("Grounded conversation", headings, rows))
    variants = list(dict.fromkeys([BASE, compared(page.results)]))
    for split in grounded.splits:
        parts.append(f"<h3>Some of {escape(split)}</h3>")
        parts.append(f'<ul class="cards pairs">{"".join(_cards(page, grounded, variants, split))}</ul>')
    return "\n".join(parts)


def _cells(page: Page, grounded: Grounded, variant: str, split: str) -> list[Any]:
    found = grounded.metrics[variant, split]
    low, high = 100 * found["gcg_miou_low"], 100 * found["gcg_miou_high"]
    miou = Html(f"<td>{100 * found['gcg_miou']:.1f}<small>{low:.1f} to {high:.1f}</small></td>")
    change: Any = ""
    if variant != BASE and BASE in grounded.variants:
        more, low, high = grounded.difference(variant, split, RESAMPLES, page.seed)
        clear = found["n"] >= FEWEST_IMAGES and (low > 0 or high < 0)
        kind = ("up" if more > 0 else "down") if clear else ""
        change = Html(f'<td><span class="{kind}">{more:+.1f}</span><small>{low:+.1f} to {high:+.1f}</small></td>')
    return [found["n"], miou, change, f"{100 * found['gcg_ap50']:.1f}", f"{found['seg_per_image']:.1f}"]


def _cards(page: Page, grounded: Grounded, variants: list[str], split: str) -> Iterable[str]:
    rows = {variant: grounded.rows[variant, split] for variant in variants}
    for number in np.random.default_rng(page.seed).permutation(len(rows[BASE]))[:SHOWN]:
        row = rows[BASE][number]
        image = open_image(page.root, row["image"])
        pictures = [
            picture(None, "the image", "image", ""),
            picture(_all(row, row["true_counts"], image.size, TRUTH), "true masks of all phrases", "truth", ""),
        ]
        words = [f"data: {escape(cut(row['true_caption']))}"]
        for variant in variants:
            said = rows[variant][number]
            note = f"mIoU {said['miou']:.2f}"
            masks = _all(said, said["counts"], image.size, PREDICTION) if said["counts"] else None
            pictures.append(picture(masks, f"masks that {variant} gave to its phrases, {note}", variant, note))
            words.append(f"{escape(variant)}: {escape(cut(said['caption']))}")
        lines = f'<p class="words">{"<br>".join(words)}</p>'
        yield f'<li class="card" style="{photo_style(image)}">{lines}{picture_row(pictures)}</li>'


def _all(row: dict[str, Any], counts: list[str], size: tuple[int, int], colour: str) -> str:
    """Return an overlay of the union of some masks."""
    return overlay(np.any([decode(one, row["height"], row["width"]) for one in counts], axis=0), *size, colour)
