"""Regions described, and found again by their description."""

from collections.abc import Iterable
from html import escape

import numpy as np
import pandas as pd

from ans.data.images import open_image
from ans.report.gallery import PREDICTION, TRUTH, compared
from ans.report.page.parts import Page, cut, html_table, paragraph, photo_style, picture, picture_row
from ans.report.pictures import overlay
from ans.report.results import BASE, KEY, decode, expressions_path
from ans.report.tables import CAPTIONS_NOTE, captions_table

TITLE = "Captions"
DESCRIBED = 6
"""Regions whose captions before and after training are shown."""


def section(page: Page) -> str:
    results = page.results
    names = sorted({name for _, name in results.captions})
    if not names:
        return ""
    shown = html_table("captions", *captions_table(results))
    cards = "".join(_cards(page, names[0]))
    return paragraph(CAPTIONS_NOTE) + shown + f"<h3>Some of {escape(names[0])}</h3>" + f'<ul class="cards pairs">{cards}</ul>'


def _cards(page: Page, name: str) -> Iterable[str]:
    variants = list(dict.fromkeys([BASE, compared(page.results)]))
    tables = {}
    for variant in variants:
        tables[variant] = pd.read_parquet(expressions_path(page.data, variant, name)).set_index(KEY[:2]).sort_index()
    base = tables[BASE]
    mixed = base.iloc[np.random.default_rng(page.seed).permutation(len(base))]
    for index in mixed[~mixed.index.get_level_values(0).duplicated()].index[:DESCRIBED]:
        row = base.loc[index]
        image = open_image(page.root, index[0])
        size = image.size
        pictures = [
            picture(None, "the image", "image", ""),
            picture(overlay(decode(row["gt_counts"], row["height"], row["width"]), *size, TRUTH), "true mask", "truth", ""),
        ]
        words = [f"data: {escape(cut(' / '.join(row['references'])))}"]
        for variant in variants:
            found = tables[variant].loc[index]
            mask = overlay(decode(found["counts"], found["height"], found["width"]), *size, PREDICTION)
            iou = f"{found['iou']:.2f}"
            pictures.append(picture(mask, f"mask that {variant} found by its own caption, IoU {iou}", variant, iou))
            words.append(f"{escape(variant)}: {escape(cut(found['caption']))}")
        lines = f'<p class="words">{"<br>".join(words)}</p>'
        yield f'<li class="card" style="{photo_style(image)}">{lines}{picture_row(pictures)}</li>'
