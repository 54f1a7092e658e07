"""reports/report.html: the whole run on one page, in one file that asks the network for nothing.

Everything is there without the script, which only sorts and filters the gallery. All texts that come from data are escaped.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ans.data.images import open_image
from ans.files import replacing
from ans.report.charts import interval_chart, line_chart
from ans.report.failures import FAILED_BELOW, REASONS, find_reasons
from ans.report.gallery import PREDICTION, TRUTH, candidates, choose, compared, order
from ans.report.pictures import overlay, photo
from ans.report.results import BASE, KEY, Results, decode, expressions_path, read_expression
from ans.report.tables import CAPTIONS_SHOWN, MEAN, MEANS_SHOWN, SPECIAL_NOTE, Score, Scores, mean_over_splits, special_table
from ans.report.training import Chain, Training, conflict_panels, panels

HERE = Path(__file__).parent
KINDS = ("most improved", "most worsened", "best", "worst", "median change")
DESCRIBED = 6
"""Regions whose captions before and after training are shown."""
LONGEST_TEXT = 400
"""Characters of a caption that are shown."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a browser is told to refuse: every request."""


class Html(str):
    """Text that is HTML already; every other text is escaped where it goes in."""


@dataclass(frozen=True)
class Page:
    """All that the page is made from. `data` and `root`: where per-expression tables and images lie; `examples`: gallery size."""

    results: Results
    scores: Scores
    training: Training
    indexes: list[dict[str, Any]]
    protocols: dict[str, dict[str, Any]]
    data: Path
    root: Path
    examples: int
    seed: int


def write_page(page: Page, path: Path) -> None:
    """Write the page in place of `path`. Raises what `open_image` raises for an image that cannot be read."""
    with replacing(path) as temporary:
        temporary.write_text(html(page), encoding="utf-8")


def html(page: Page) -> str:
    """The page as text."""
    reasons = {variant: find_reasons(page.results, page.data, variant) for variant in page.results.variants}
    examples = _examples(page, reasons[compared(page.results)])
    sections = {
        "results": ("Results", _results(page)),
        "training": ("What was trained on what", _trained(page)),
        "curves": ("Curves", _curves(page)),
        "conflict": ("Gradient conflict", _conflict(page)),
        "chains": ("What the loops did", _chains(page)),
        "captions": ("Captions", _captions(page)),
        "gallery": ("Gallery", _gallery(page, examples)),
        "failures": ("Failures", _failures(page, reasons, set(examples["reason"]))),
        "data": ("Data", _data(page)),
        "environment": ("Environment", _environment(page)),
    }
    there = {name: (title, body) for name, (title, body) in sections.items() if body}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in there.items())
    bodies = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>\n{body}\n</section>'
        for name, (title, body) in there.items()
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
<header><h1>Report of a run</h1>{_lead(page)}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main">
{bodies}
</main>
<footer>Made by the <code>report</code> stage from <code>reports/</code> and <code>data/eval/</code>; the inputs’ checksums are
in <code>dvc.lock</code>. This file holds all that it shows and asks the network for nothing.</footer>
<script>
{script}</script>
</body>
</html>
"""


# ---------------------------------------------------------------- sections


def _lead(page: Page) -> str:
    manifest, variant = page.training.manifest, compared(page.results)
    loops = [number for number in (1, 2) if manifest["preset"]["loops"] and manifest["train"][f"loop{number}"]["enabled"]]
    how = " + ".join(["supervised", *(f"loop {number}" for number in loops)])
    text = f"Preset {manifest['preset']['name']}, {manifest['train']['steps']} steps, {how}."
    if best := manifest.get("best"):
        text = f"Preset {manifest['preset']['name']}, {how}: epoch {best['epoch']} (step {best['step']}), the best by validation."
    if variant != BASE:
        score = page.scores[variant, MEAN]
        change, low, high = (100 * value for value in score.difference)
        text += (
            f" Mean cIoU over {len(page.results.splits)} splits: {BASE} {100 * page.scores[BASE, MEAN].ciou:.1f} %, "
            f"{variant} {100 * score.ciou:.1f} % ({change:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f})."
        )
    part = (
        "" if not any(protocol["capped"] for protocol in page.protocols.values()) else " Only a part of each split was evaluated."
    )
    return f'<p class="lead">{escape(text + part)}</p>'


def _results(page: Page) -> str:
    results, scores = page.results, page.scores
    others = [variant for variant in results.variants if variant != BASE]
    counts = {split: results.metrics[BASE, split]["n"] for split in results.splits}

    def rows(cell: Any, variants: Sequence[str]) -> list[list[Any]]:
        names = [*results.splits, MEAN]
        return [[name, counts.get(name, ""), *(cell(scores[variant, name]) for variant in variants)] for name in names]

    parts = [
        _paragraph(
            "cIoU in percent under free greedy generation: the sum of intersections over the sum of unions of a split’s "
            "expressions. An answer without [SEG] counts as an empty mask. Below each value its 95 % bootstrap interval over "
            "images; the mean over splits is unweighted."
        )
    ]
    if others:
        title = f"mean cIoU minus that of {BASE}, points, with 95 % intervals"
        parts.append(
            interval_chart(title, [(variant, *(100 * value for value in scores[variant, MEAN].difference)) for variant in others])
        )
    parts.append(_table("cIoU, %", ["split", "n", *results.variants], rows(_ciou, results.variants), total=True))
    if others:
        caption = f"difference to {BASE}, points; coloured where the interval excludes 0"
        parts.append(_table(caption, ["split", "n", *others], rows(_difference, others), total=True))
    means = [[variant, *(mean_over_splits(results, variant, key) for key in MEANS_SHOWN)] for variant in results.variants]
    caption = "other metrics, mean over splits, %; “[SEG] given” is no result but what saying it costs"
    parts.append(_table(caption, ["variant", *MEANS_SHOWN.values()], means))
    header, special = special_table(results)
    if special:
        parts += [_table("gRefCOCO and ReasonSeg, %", header, special), _paragraph(SPECIAL_NOTE)]
    return "\n".join(parts)


def _trained(page: Page) -> str:
    manifest = page.training.manifest
    groups = [
        [name, group["state"], f"{group['tensors']:,}", f"{group['parameters']:,}"] for name, group in manifest["groups"].items()
    ]
    batch = (
        f"Effective batch {manifest['effective_batch']} = {manifest['processes']} process(es) × {manifest['batch']} images × "
        f"{manifest['accumulation']} accumulated. {manifest['left_out_evaluated_images']:,} images were left out because "
        "they are in an evaluated split."
    )
    settings = [
        [name, _json(value)] for part in ("train", "preset") for name, value in _flat(manifest[part], part) if value is not None
    ]
    return "\n".join(
        [
            _paragraph(batch),
            _table("samples", ["source", "samples"], [[name, f"{count:,}"] for name, count in manifest["samples"].items()]),
            _table("groups of parameters", ["group", "state", "tensors", "parameters"], groups),
            f"<details><summary>All settings</summary>{_table('settings of the run', ['key', 'value'], settings)}</details>",
        ]
    )


def _curves(page: Page) -> str:
    charts = "".join(line_chart(panel, lines) for panel, lines in panels(page.training.curves))
    return (
        _paragraph("Pale: every step that had the curve; full: a moving average, its last value in the legend.")
        + f'<div class="charts">{charts}</div>'
    )


def _conflict(page: Page) -> str:
    drawn = conflict_panels(page.training.curves)
    if not drawn:
        return ""
    train = page.training.manifest["train"]
    text = (
        "Each step has two gradients over the trained parameters: the first of loop 1 or RefCOCO, the second of loop 2. A cosine "
        f"below 0 means that they disagree. They were combined by “{train['surgery']}” with beta {train['beta']:g}. Groups "
        "that loop 2 never reaches are left out."
    )
    return _paragraph(text) + f'<div class="charts">{"".join(line_chart(panel, lines) for panel, lines in drawn)}</div>'


def _chains(page: Page) -> str:
    chains = page.training.chains
    if not chains:
        return ""
    bridge = page.training.manifest["train"]["loop1"]["bridge"]
    about = {
        1: f"An object without text, what the teacher said of it, what the student fed on (bridge: {bridge}; words that differ "
        "are marked), and the mask that this led to on the second view.",
        2: "An object, the data’s caption that was given, the mask that it led to, and what the model freely told of that mask "
        "(words that differ are marked). The true mask is not used in this loop.",
    }
    parts = []
    for loop in sorted({chain.loop for chain in chains}):
        parts.append(f"<h3>Loop {loop}</h3>" + _paragraph(about[loop]))
        for step in sorted({chain.step for chain in chains if chain.loop == loop}):
            cards = "".join(_chain_card(page.root, chain) for chain in chains if (chain.loop, chain.step) == (loop, step))
            parts.append(f'<h4>Step {step}</h4><ul class="cards pairs">{cards}</ul>')
    return "\n".join(parts)


def _chain_card(root: Path, chain: Chain) -> str:
    image = open_image(root, chain.image)
    pictures = [
        _picture(overlay(chain.truth, *image.size, TRUTH), "true mask of the object", "truth", ""),
        _picture(overlay(chain.mask, *image.size, PREDICTION), f"mask found, IoU {chain.iou:.2f}", "found", f"{chain.iou:.2f}"),
    ]
    (first, before), (second, after) = chain.words
    marked = _marked(_cut(before), _cut(after))
    words = f'<p class="words">{first}: {escape(_cut(before))}<br>{second}: {marked}</p>'
    return f'<li class="card" style="{_photo_style(image)}"><p>{escape(chain.source)}</p>{words}{_pictures(pictures)}</li>'


def _captions(page: Page) -> str:
    results = page.results
    names = sorted({name for _, name in results.captions})
    if not names:
        return ""
    rows = [
        [
            name,
            variant,
            *(
                f"{scale * results.captions[variant, name][key]:.{2 if scale == 1 else 1}f}"
                for key, (_, scale) in CAPTIONS_SHOWN.items()
            ),
        ]
        for name in names
        for variant in results.variants
    ]
    text = (
        "Regions described by free greedy generation, and found again by that description alone: mask → caption → mask. CIDEr-D "
        "lies in 0 to 10, the rest in percent."
    )
    table = _table("captions", ["result", "variant", *(title for title, _ in CAPTIONS_SHOWN.values())], rows)
    cards = "".join(_described_cards(page, names[0]))
    return _paragraph(text) + table + f"<h3>Some of {escape(names[0])}</h3>" + f'<ul class="cards pairs">{cards}</ul>'


def _described_cards(page: Page, name: str) -> Iterable[str]:
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
            _picture(overlay(decode(row["gt_counts"], row["height"], row["width"]), *size, TRUTH), "true mask", "truth", "")
        ]
        words = [f"data: {escape(_cut(' / '.join(row['references'])))}"]
        for variant in variants:
            found = tables[variant].loc[index]
            mask = overlay(decode(found["counts"], found["height"], found["width"]), *size, PREDICTION)
            iou = f"{found['iou']:.2f}"
            pictures.append(_picture(mask, f"mask that {variant} found by its own caption, IoU {iou}", variant, iou))
            words.append(f"{escape(variant)}: {escape(_cut(found['caption']))}")
        lines = f'<p class="words">{"<br>".join(words)}</p>'
        yield f'<li class="card" style="{_photo_style(image)}">{lines}{_pictures(pictures)}</li>'


def _examples(page: Page, reasons: pd.Series) -> pd.DataFrame:
    """The expressions of the gallery, some of every kind and reason."""
    table = candidates(page.results, page.seed)
    table = table.assign(reason=reasons.loc[pd.MultiIndex.from_frame(table[["split", *KEY]])].to_numpy())
    orders = {kind: order(table, kind) for kind in KINDS}
    orders |= {
        reason: table.index.to_series()[table["reason"] == reason] * 0 for reason in REASONS if (table["reason"] == reason).any()
    }
    return choose(table, orders, page.examples)


def _gallery(page: Page, chosen: pd.DataFrame) -> str:
    variant, total = compared(page.results), sum(page.results.metrics[BASE, split]["n"] for split in page.results.splits)
    cards = "".join(_gallery_card(page, place, row) for place, row in enumerate(chosen.itertuples()))
    kinds = "".join(f"<option>{kind}</option>" for kind in dict.fromkeys(chosen["kind"]) if kind in KINDS)
    why = "".join(f"<option>{reason}</option>" for reason in REASONS if reason in set(chosen["reason"]))
    text = (
        f"{len(chosen)} of {total:,} expressions, each of another image: some of every kind, not a fair sample. “Change” is "
        f"the IoU of {variant} minus that of {BASE}; an expression has failed where the IoU of {variant} is below {FAILED_BELOW}."
    )
    return f"""{_paragraph(text)}
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


def _gallery_card(page: Page, place: int, row: Any) -> str:
    key = [getattr(row, name) for name in KEY]
    image = open_image(page.root, row.image_path)
    found = {variant: read_expression(page.data, variant, row.split, key) for variant in page.results.variants}
    base = found[BASE]
    truth = decode(base["gt_counts"], base["height"], base["width"])
    pictures = [
        _picture(None, "the image", "image", ""),
        _picture(overlay(truth, *image.size, TRUTH), "true mask", "truth", ""),
    ]
    for variant, answer in found.items():
        mask = overlay(decode(answer["counts"], answer["height"], answer["width"]), *image.size, PREDICTION)
        note = f"{answer['iou']:.2f}" + ("" if answer["has_seg"] else ", no [SEG]")
        pictures.append(_picture(mask, f"mask of {variant}, IoU {note}", variant, note))
    failed = f"; failed: {row.reason}" if row.reason else ""
    about = f"{row.split}; {row.kind}; change {row.change:+.2f}{failed}"
    return (
        f'<li class="card" data-place="{place}" data-iou="{row.iou:.6f}" data-change="{row.change:.6f}" data-kind="{row.kind}" '
        f'data-reason="{row.reason}" style="{_photo_style(image)}"><h3>“{escape(_cut(row.sent))}”</h3><p>{escape(about)}</p>'
        f"{_pictures(pictures)}</li>"
    )


def _failures(page: Page, reasons: Mapping[str, pd.Series], shown: Collection[str]) -> str:
    """`shown`: the reasons of which the gallery has an example."""
    total = len(next(iter(reasons.values())))
    rows = []
    for reason, meaning in REASONS.items():
        counts = [int((of == reason).sum()) for of in reasons.values()]
        link = Html(f'<a href="#gallery" data-reason="{reason}">{reason}</a>') if reason in shown else reason
        rows.append([link, *(_share(count, total) for count in counts), Html(f'<td class="text">{escape(meaning)}</td>')])
    rows.append(["all failures", *(_share(int((of != "").sum()), total) for of in reasons.values()), ""])
    text = f"Expressions whose IoU is below {FAILED_BELOW}, by the first reason that fits; shares of all {total:,} expressions."
    header = ["reason", *page.results.variants, "meaning"]
    return _paragraph(text) + _table("failures by reason", header, rows, total=True)


def _data(page: Page) -> str:
    rows, skipped = [], []
    for index in page.indexes:
        count = sum(reason["count"] for reason in index["skipped"].values())
        numbers = [f"{index[name]:,}" if name in index else "" for name in ("images", "regions", "expressions")]
        splits = ", ".join(f"{split} {of['images']:,}" for split, of in index.get("splits", {}).items())
        splits = f"not there: {index['absent']}" if "absent" in index else splits
        rows.append([index["source"], *numbers, f"{count:,}", Html(f'<td class="text">{escape(splits)}</td>')])
        for reason, of in index["skipped"].items():
            examples = Html(f'<td class="text">{escape(", ".join(map(str, of["examples"])))}</td>')
            skipped.append([index["source"], reason, f"{of['count']:,}", examples])
    header = ["source", "images", "regions", "expressions", "skipped", "images per split"]
    parts = [_paragraph("What the indexes hold. Of SA-1B only names are listed; the annotations of its subset are read.")]
    parts.append(_table("indexes", header, rows))
    if skipped:
        parts.append(_table("records that cannot be used", ["source", "reason", "records", "for example"], skipped))
    return "\n".join(parts)


def _environment(page: Page) -> str:
    manifest, base = page.training.manifest, page.protocols[BASE]
    used = [["training: " + name, version] for name, version in manifest["versions"].items()]
    used += [["evaluation: " + name, version] for name, version in base["packages"].items()]
    used += [["precision of training", manifest["preset"]["precision"]]]
    used += [["precision of evaluation", f"{base['precision']} on {base['device']}"]]
    used += [["question", base["prompt"]], ["at most", f"{base['max_new_tokens']} new tokens"]]
    sums = [["base weights", manifest["base_sha256"]], ["evaluation’s code", base["code_sha256"]]]
    sums += [[f"weights of {variant}", protocol["weights_sha256"]] for variant, protocol in page.protocols.items()]
    sums += [[f"questions of {split}", of["sha256"]] for split, of in base["splits"].items()]
    code = [[name, Html(f"<td><code>{escape(value)}</code></td>")] for name, value in sums]
    return _table("environment", ["what", "value"], used) + _table("SHA-256", ["of", "value"], code)


# ---------------------------------------------------------------- parts


def _ciou(score: Score) -> Html:
    low, high = score.interval
    return Html(f"<td>{100 * score.ciou:.1f}<small>{100 * low:.1f} to {100 * high:.1f}</small></td>")


def _difference(score: Score) -> Html:
    change, low, high = (100 * value for value in score.difference)
    kind = ("up" if change > 0 else "down") if score.differs else ""
    return Html(f'<td><span class="{kind}">{change:+.1f}</span><small>{low:+.1f} to {high:+.1f}</small></td>')


def _share(count: int, total: int) -> Html:
    return Html(f"<td>{100 * count / total:.1f} %<small>{count:,}</small></td>")


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Any]], total: bool = False) -> str:
    """A table that scrolls by itself where it is too wide. Cells are text, or `Html` of a whole `<td>` or of what is in one; the
    first of each row is its heading. `total`: the last row sums up the others."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in map(_text, row[1:]))
        kind = ' class="total"' if total and number == len(rows) - 1 else ""
        lines.append(f'<tr{kind}><th scope="row">{_text(row[0])}</th>{cells}</tr>')
    return (
        f'<figure class="table"><figcaption>{escape(caption)}</figcaption><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(caption)}"><table aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></figure>"
    )


def _text(value: Any) -> Html:
    return value if isinstance(value, Html) else Html(escape(str(value)))


def _photo_style(image: Any) -> str:
    return f"--photo:url({photo(image)});--shape:{image.width}/{image.height}"


def _picture(mask: str | None, alt: str, caption: str, value: str) -> str:
    if mask is None:
        inside = f'<div class="picture" role="img" aria-label="{escape(alt)}"></div>'
    else:
        inside = f'<div class="picture"><img src="{mask}" alt="{escape(alt)}"></div>'
    shown = f" <b>{escape(value)}</b>" if value else ""
    return f"<figure>{inside}<figcaption>{escape(caption)}{shown}</figcaption></figure>"


def _pictures(pictures: Sequence[str]) -> str:
    return f'<div class="pictures">{"".join(pictures)}</div>'


def _marked(said: str, heard: str) -> str:
    """The words of `heard`, marked where `said` has another at their place."""
    before, words = said.split(), heard.split()
    same = [place < len(before) and before[place] == word for place, word in enumerate(words)]
    return " ".join(escape(word) if equal else f"<mark>{escape(word)}</mark>" for word, equal in zip(words, same, strict=True))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def _flat(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
