"""Expressions with the masks of every variant."""

from html import escape
from typing import Any

from ans.data.images import open_image
from ans.report.failures import FAILED_BELOW, REASONS
from ans.report.gallery import KINDS, PREDICTION, TRUTH, compared
from ans.report.page.parts import Page, cut, paragraph, photo_style, picture, picture_row
from ans.report.pictures import overlay
from ans.report.results import BASE, KEY, decode, read_expression

TITLE = "Gallery"


def section(page: Page) -> str:
    chosen = page.gallery
    variant, total = compared(page.results), sum(page.results.metrics[BASE, split]["n"] for split in page.results.splits)
    cards = "".join(_card(page, place, row) for place, row in enumerate(chosen.itertuples()))
    kinds = "".join(f"<option>{kind}</option>" for kind in dict.fromkeys(chosen["kind"]) if kind in KINDS)
    why = "".join(f"<option>{reason}</option>" for reason in REASONS if reason in set(chosen["reason"]))
    text = (
        f"{len(chosen)} of {total:,} expressions, each of another image: some of every kind, not a fair sample. “Change” is "
        f"the IoU of {variant} minus that of {BASE}; an expression has failed where the IoU of {variant} is below {FAILED_BELOW}."
    )
    return f"""{paragraph(text)}
<div class="controls" hidden>
<label>Order<select id="sort">
<option value="change down">by change, most improved first</option>
<option value="change up">by change, most worsened first</option>
<option value="iou down">by IoU of {escape(variant)}, best first</option>
<option value="iou up">by IoU of {escape(variant)}, worst first</option>
</select></label>
<label>Show<select id="filter">
<option value="">all</option>
<optgroup label="chosen as">{kinds}</optgroup>
<optgroup label="failed because">{why}</optgroup>
</select></label>
</div>
<p id="told" role="status" class="soft"></p>
<ul class="cards" id="gallery-cards">{cards}</ul>"""


def _card(page: Page, place: int, row: Any) -> str:
    key = [getattr(row, name) for name in KEY]
    image = open_image(page.root, row.image_path)
    found = {variant: read_expression(page.data, variant, row.split, key) for variant in page.results.variants}
    base = found[BASE]
    truth = decode(base["gt_counts"], base["height"], base["width"])
    pictures = [
        picture(None, "the image", "image", ""),
        picture(overlay(truth, *image.size, TRUTH), "true mask", "truth", ""),
    ]
    for variant, answer in found.items():
        mask = overlay(decode(answer["counts"], answer["height"], answer["width"]), *image.size, PREDICTION)
        note = f"{answer['iou']:.2f}" + ("" if answer["has_seg"] else ", no [SEG]")
        pictures.append(picture(mask, f"mask of {variant}, IoU {note}", variant, note))
    failed = f"; failed: {row.reason}" if row.reason else ""
    about = f"{row.split}; {row.kind}; change {row.change:+.2f}{failed}"
    return (
        f'<li class="card" data-place="{place}" data-iou="{row.iou:.6f}" data-change="{row.change:.6f}" data-kind="{row.kind}" '
        f'data-reason="{row.reason}" style="{photo_style(image)}"><h3>“{escape(cut(row.sent))}”</h3><p>{escape(about)}</p>'
        f"{picture_row(pictures)}</li>"
    )
