"""What sections of the page are made of. Texts are escaped here, so that nothing from the data becomes markup."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape, unescape
from pathlib import Path
from typing import Any

import pandas as pd

from ans.report.failures import REASONS
from ans.report.gallery import KINDS, candidates, choose, compared, order
from ans.report.grounded import Grounded
from ans.report.headline import Headline
from ans.report.pictures import photo
from ans.report.results import KEY, Results
from ans.report.tables import Scores, SplitScore, is_number
from ans.report.training import Training
from ans.report.videos import Videos

LONGEST_TEXT = 400
"""Characters of a caption that are shown."""


LEFT = ' class="left"'


class Html(str):
    """Text that is HTML already; every other text is escaped where it goes in."""


@dataclass(frozen=True)
class Page:
    """All that the page is made from. `first`: the lines to know first. `reasons`: variant -> why each of its expressions failed.
    `data` and `root`: where per-expression tables and images lie. `examples`: gallery size."""

    first: Headline
    results: Results
    scores: Scores
    reasons: dict[str, pd.Series]
    training: Training
    indexes: list[dict[str, Any]]
    protocols: dict[str, dict[str, Any]]
    data: Path
    root: Path
    examples: int
    seed: int
    videos: Videos | None = None
    grounded: Grounded | None = None

    @cached_property
    def gallery(self) -> pd.DataFrame:
        """The expressions that are shown, some of every kind and reason."""
        table = candidates(self.results, self.seed)
        of = self.reasons[compared(self.results)].loc[pd.MultiIndex.from_frame(table[["split", *KEY]])]
        table = table.assign(reason=of.to_numpy())
        orders = {kind: order(table, kind) for kind in KINDS}
        for reason in REASONS:
            if (table["reason"] == reason).any():
                orders[reason] = table.index.to_series()[table["reason"] == reason] * 0
        return choose(table, orders, self.examples)


def ciou_cell(score: SplitScore) -> Html:
    low, high = score.interval
    return Html(f"<td>{100 * score.ciou:.1f}<small>{100 * low:.1f} to {100 * high:.1f}</small></td>")


def difference_cell(score: SplitScore) -> Html:
    change, low, high = (100 * value for value in score.difference)
    kind = ("up" if change > 0 else "down") if score.differs else ""
    return Html(f'<td><span class="{kind}">{change:+.1f}</span><small>{low:+.1f} to {high:+.1f}</small></td>')


def share_cell(count: int, total: int) -> Html:
    return Html(f"<td>{100 * count / total:.1f} %<small>{count:,}</small></td>")


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Any]], total: bool = False) -> str:
    """Return a table that scrolls by itself where it is too wide. Cells are text, or `Html` of a whole `<td>` or of what is in one; the
    first of each row is its heading. Columns of text are left-aligned. `total`: the last row sums up the others."""
    shown = [[text(cell) for cell in row] for row in rows]
    words = [
        not all(is_number(unescape(re.sub("<.*?>", " ", cell)).strip()) for cell in column) for column in zip(*shown, strict=True)
    ]
    head = "".join(
        f'<th scope="col"{LEFT if left else ""}>{escape(name)}</th>'
        for name, left in zip(header, words or [False] * len(header), strict=True)
    )
    lines = []
    for number, row in enumerate(shown):
        cells = "".join(_cell(cell, left) for cell, left in zip(row[1:], words[1:], strict=True))
        kind = ' class="total"' if total and number == len(rows) - 1 else ""
        lines.append(f'<tr{kind}><th scope="row">{row[0]}</th>{cells}</tr>')
    return (
        f'<figure class="table"><figcaption>{escape(caption)}</figcaption><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(caption)}"><table aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></figure>"
    )


def _cell(cell: str, left: bool) -> str:
    whole = cell if cell.startswith("<td") else f"<td>{cell}</td>"
    return whole.replace("<td>", f"<td{LEFT}>", 1) if left and whole.startswith("<td>") else whole


def text(value: Any) -> Html:
    return value if isinstance(value, Html) else Html(escape(str(value)))


def photo_style(image: Any) -> str:
    return f"--photo:url({photo(image)});--shape:{image.width}/{image.height}"


def picture(mask: str | None, alt: str, caption: str, value: str) -> str:
    if mask is None:
        inside = f'<div class="picture" role="img" aria-label="{escape(alt)}"></div>'
    else:
        inside = f'<div class="picture"><img src="{mask}" alt="{escape(alt)}"></div>'
    shown = f" <b>{escape(value)}</b>" if value else ""
    return f"<figure>{inside}<figcaption>{escape(caption)}{shown}</figcaption></figure>"


def picture_row(pictures: Sequence[str]) -> str:
    return f'<div class="pictures">{"".join(pictures)}</div>'


def marked_words(said: str, heard: str) -> str:
    """Return the words of `heard`, marked where `said` has another at their place."""
    before, words = said.split(), heard.split()
    same = [place < len(before) and before[place] == word for place, word in enumerate(words)]
    return " ".join(escape(word) if equal else f"<mark>{escape(word)}</mark>" for word, equal in zip(words, same, strict=True))


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def flat(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
