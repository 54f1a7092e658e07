"""reports/report.html: the whole run on one page, in one file that asks the network for nothing.

Each section is a file of `sections`. Everything is there without the script, which sorts tables and the gallery, filters
that, and names the values of curves.
"""

from html import escape
from pathlib import Path

from ans.files import replacing
from ans.report.page.parts import Page
from ans.report.page.sections import (
    captions,
    conflict,
    curves,
    data,
    environment,
    examples,
    failures,
    gallery,
    grounded,
    results,
    trained,
    videos,
)

HERE = Path(__file__).parent
SECTIONS = {
    "results": results,
    "videos": videos,
    "failures": failures,
    "training": trained,
    "curves": curves,
    "conflict": conflict,
    "examples": examples,
    "captions": captions,
    "grounded": grounded,
    "gallery": gallery,
    "data": data,
    "environment": environment,
}
"""Anchor -> section, in their order on the page; one without content is left out."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a browser is told to refuse: every request."""

__all__ = ["Page", "html", "write_page"]


def write_page(page: Page, path: Path) -> None:
    """Write the page in place of `path`. Raises what `open_image` raises for an image that cannot be read."""
    with replacing(path) as temporary:
        temporary.write_text(html(page), encoding="utf-8")


def html(page: Page) -> str:
    """Return the page as text."""
    bodies = {name: module.section(page) for name, module in SECTIONS.items()}
    filled = {name: (SECTIONS[name].TITLE, body) for name, body in bodies.items() if body}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in filled.items())
    main = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>\n{body}\n</section>'
        for name, (title, body) in filled.items()
    )
    style, script = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<title>ANS: report of a run</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header><h1>Report of a run</h1>{lead(page)}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main">
{main}
</main>
<footer>Made by the <code>report</code> stage from <code>reports/</code> and <code>data/eval/</code>; the inputs’ checksums are
in <code>dvc.lock</code>. This file holds all that it shows and asks the network for nothing.</footer>
<script>
{script}</script>
</body>
</html>
"""


def lead(page: Page) -> str:
    """Return the first lines."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in page.first.items())
    return f'<dl class="lead">{lines}</dl>'
