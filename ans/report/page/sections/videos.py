"""J&F of every variant on sets of videos, and strips of frames with true and predicted masks."""

from html import escape
from typing import Any

from ans.data.images import open_image
from ans.evaluation.metrics import FEWEST_IMAGES
from ans.report.failures import VIDEO_REASONS, classify_videos
from ans.report.gallery import PREDICTION, TRUTH, compared
from ans.report.page.parts import Html, Page, cut, html_table, paragraph, photo_style, picture, picture_row
from ans.report.pictures import overlay
from ans.report.results import BASE, decode
from ans.report.videos import Videos

TITLE = "Videos"
FRAMES = 5
"""Of a strip: the first, the last, and some between, at equal distances."""
RESAMPLES = 2000


def section(page: Page) -> str:
    videos = page.videos
    if videos is None or not videos.sets:
        return ""
    parts = [
        paragraph(
            "J&F in percent: the mean of region IoU (J) and boundary F, over all frames of an expression and then over expressions. An "
            "answer without [SEG] counts as empty masks. Below each value its 95 % bootstrap interval over clips."
        )
    ]
    scored = [name for name in videos.sets if videos.scored(name)]
    if scored:
        rows = [
            [name, *_counts(videos, name), *(_score(videos, variant, name) for variant in videos.variants)] for name in scored
        ]
        parts.append(html_table("J&F, %", ["set", "n", "clips", *videos.variants], rows))
        others = [variant for variant in videos.variants if variant != BASE]
        if others and BASE in videos.variants:
            caption = (
                f"J&F minus that of {BASE}, points; coloured where the interval excludes 0 (never below {FEWEST_IMAGES} clips)"
            )
            rows = [[name, *(_change(videos, variant, name, page.seed) for variant in others)] for name in scored]
            parts.append(html_table(caption, ["set", *others], rows))
        rows = [
            [f"{name}, {variant}", *_details(videos.metrics[variant, name])] for name in scored for variant in videos.variants
        ]
        parts.append(html_table("J, F and answers with [SEG], %", ["set, variant", "J", "F", "[SEG] given"], rows))
        rows = [[f"{name}, {variant}", *_failures(videos.rows[variant, name])] for name in scored for variant in videos.variants]
        parts.append(html_table("Expressions with J below 50 %, by reason", ["set, variant", "all", *VIDEO_REASONS], rows))
        parts.append(paragraph("; ".join(f"{reason}: {about}" for reason, about in VIDEO_REASONS.items()) + "."))
    if blind := [name for name in videos.sets if name not in scored]:
        parts.append(paragraph(f"Masks not published, archives for the servers in data/eval: {', '.join(blind)}."))
    variant = compared(page.results)
    for name in scored:
        parts.append(f"<h3>{escape(name)}: the best, the middle and the worst of {escape(variant)}</h3>")
        parts.append(f'<ul class="cards">{"".join(_strip(page, row) for row in _chosen(videos.rows[variant, name]))}</ul>')
    return "\n".join(parts)


def _counts(videos: Videos, name: str) -> tuple[int, int]:
    found = videos.metrics[videos.variants[0], name]
    return found["n"], found["clips"]


def _score(videos: Videos, variant: str, name: str) -> Html:
    found = videos.metrics[variant, name]
    return Html(f"<td>{found['jf']:.1f}<small>{found['jf_low']:.1f} to {found['jf_high']:.1f}</small></td>")


def _change(videos: Videos, variant: str, name: str, seed: int) -> Html:
    change, low, high = videos.difference(variant, name, RESAMPLES, seed)
    enough = videos.metrics[variant, name]["clips"] >= FEWEST_IMAGES
    kind = ("up" if change > 0 else "down") if enough and (low > 0 or high < 0) else ""
    return Html(f'<td><span class="{kind}">{change:+.1f}</span><small>{low:+.1f} to {high:+.1f}</small></td>')


def _details(found: dict[str, Any]) -> list[str]:
    return [f"{found['j']:.1f}", f"{found['f']:.1f}", f"{100 * found['seg_rate']:.1f}"]


def _failures(rows: list[dict[str, Any]]) -> list[int]:
    reasons = [reason for reason in classify_videos([row for row in rows if row["kind"] != "absent"]) if reason]
    return [len(reasons), *(reasons.count(reason) for reason in VIDEO_REASONS)]


def _chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the best, the middle and the worst expression by J&F; fewer where there are not three."""
    ordered = sorted((row for row in rows if row["kind"] != "absent"), key=lambda row: -(row["j"] + row["f"]))
    return [ordered[place] for place in sorted({0, len(ordered) // 2, len(ordered) - 1})]


def _strip(page: Page, row: dict[str, Any]) -> str:
    count = len(row["paths"])
    pictures = []
    for frame in sorted({round(i * (count - 1) / (FRAMES - 1)) for i in range(FRAMES)}):
        image = open_image(page.root, row["paths"][frame])
        both = [
            picture(
                overlay(decode(row[key][frame], row["height"], row["width"]), *image.size, colour),
                f"{words} in frame {row['names'][frame]}",
                f"{words}, {row['names'][frame]}",
                "",
            )
            for key, words, colour in (("true", "true mask", TRUTH), ("counts", "predicted mask", PREDICTION))
        ]
        pictures.append(f'<div style="{photo_style(image)}">{"".join(both)}</div>')
    about = f"{row['clip']}, {count} frames; J {100 * row['j']:.1f}, F {100 * row['f']:.1f}" + (
        "" if row["has_seg"] else "; no [SEG]"
    )
    title = f"<h3>“{escape(cut(row['text']))}”</h3><p>{escape(about)}</p>"
    return f'<li class="card">{title}{picture_row(pictures)}</li>'
