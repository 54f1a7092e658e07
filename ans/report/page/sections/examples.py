"""What the tasks did with objects, at a few steps."""

from html import escape
from pathlib import Path

from ans.data.images import open_image
from ans.report.gallery import PREDICTION, TRUTH
from ans.report.page.parts import Page, cut, marked_words, paragraph, photo_style, picture, picture_row
from ans.report.pictures import overlay
from ans.report.training import KeptExample

TITLE = "What the tasks did"


def section(page: Page) -> str:
    examples, tasks = page.training.examples, page.training.manifest["tasks"]
    parts = []
    for name in dict.fromkeys(example.task for example in examples):
        task = tasks[name]
        parts.append(f"<h3>{escape(task['title'].capitalize())}</h3>" + paragraph(task["examples"]))
        for step in sorted({example.step for example in examples if example.task == name}):
            cards = "".join(_card(page.root, example) for example in examples if (example.task, example.step) == (name, step))
            parts.append(f'<h4>Step {step}</h4><ul class="cards pairs">{cards}</ul>')
    return "\n".join(parts)


def _card(root: Path, example: KeptExample) -> str:
    image = open_image(root, example.image)
    iou = f"{example.iou:.2f}"
    pictures = [
        picture(None, "the image", "image", ""),
        picture(overlay(example.truth, *image.size, TRUTH), "true mask of the object", "truth", ""),
        picture(overlay(example.mask, *image.size, PREDICTION), f"predicted mask, IoU {iou}", "predicted", iou),
    ]
    (first, before), (second, after) = example.texts.items()
    words = f'<p class="words">{escape(first)}: {escape(cut(before))}<br>{escape(second)}: {marked_words(cut(before), cut(after))}</p>'
    return f'<li class="card" style="{photo_style(image)}"><p>{escape(example.source)}</p>{words}{picture_row(pictures)}</li>'
