"""Masks over images: where training helped most, where it hurt most, the best and the worst; and what the tasks did."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from PIL import Image

from ans.data.images import open_image
from ans.report.plots import COLOURS, WIDTH, save
from ans.report.results import BASE, KEY, Results, decode, read_expression
from ans.report.training import Training

TRUTH, PREDICTION = COLOURS[2], COLOURS[5]
LONGEST_SIDE = 320
"""Pixels; larger images are shown smaller, to keep the file fit for git."""
TEXT_WIDTH = 1.5
"""Width of the column with the expression, in widths of an image."""
VARIANTS, OBJECTS = 3, 2
"""Variants in a gallery, and objects in a row of examples, that have room in a figure; the page has all."""


def draw_gallery(results: Results, chosen: pd.DataFrame, data: Path, root: Path, path: Path) -> None:
    """Draw one row per expression `chosen`: the image, the true mask, and the masks of the base and of the first variants with their IoU.

    `data` holds the per-expression tables, `root` the images. Raises what `open_image` raises for an image that cannot be read.
    """
    shown = [BASE, *(variant for variant in results.variants if variant != BASE)][:VARIANTS]
    columns = ["expression", "image", "truth", *shown]
    figure, axes = plt.subplots(
        len(chosen),
        len(columns),
        figsize=(WIDTH, 1.15 * len(chosen) + 0.3),
        width_ratios=[TEXT_WIDTH, *[1.0] * (len(columns) - 1)],
        layout="constrained",
        squeeze=False,
    )
    for axis, heading in zip(axes[0], columns, strict=True):
        axis.set_title(heading, fontsize=10, fontweight="bold", loc="left" if heading == "expression" else "center")
    for line, expression in zip(axes, chosen.itertuples(), strict=True):
        key = [getattr(expression, name) for name in KEY]
        found = {variant: read_expression(data, variant, expression.split, key) for variant in shown}
        base = found[BASE]
        image = np.asarray(small(open_image(root, expression.image_path), LONGEST_SIDE))
        words = textwrap.wrap(f"“{expression.sent}”", 23, max_lines=4, placeholder=" …”")
        note = f"{expression.kind},\n{compared(results)} - base: {expression.change:+.2f}\n{expression.split}"
        line[0].text(0, 1, "\n".join(words), fontsize=8, va="top", transform=line[0].transAxes, parse_math=False)
        line[0].text(0, 0, note, fontsize=7, va="bottom", color="#555555", transform=line[0].transAxes)
        line[0].set_frame_on(False)
        line[0].set_box_aspect(image.shape[0] / image.shape[1] / TEXT_WIDTH)  # as high as the images beside it
        line[1].imshow(image)
        draw_mask(line[2], image, decode(base["gt_counts"], base["height"], base["width"]), TRUTH)
        for axis, variant in zip(line[3:], shown, strict=True):
            answer = found[variant]
            draw_mask(axis, image, decode(answer["counts"], answer["height"], answer["width"]), PREDICTION)
            axis.set_xlabel(f"IoU {answer['iou']:.2f}" + ("" if answer["has_seg"] else ", no [SEG]"), fontsize=8, labelpad=2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    save(figure, path, colours=160)


def draw_examples(training: Training, root: Path, path: Path) -> None:
    """Draw what the tasks did at the steps that were kept, a row each: per object its true mask, two captions, and the predicted mask.

    Without any example no figure is left: one of an earlier run is removed. Raises what `open_image` raises.
    """
    if not training.examples:
        path.unlink(missing_ok=True)
        return
    kept = sorted({(example.task, example.step) for example in training.examples})
    rows = [[example for example in training.examples if (example.task, example.step) == key][:OBJECTS] for key in kept]
    most = max(map(len, rows))
    figure, axes = plt.subplots(len(rows), 2 * most, figsize=(WIDTH, 2.3 * len(rows)), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for line, row in zip(axes, rows, strict=True):
        title = training.manifest["tasks"][row[0].task]["title"]
        line[0].set_ylabel(f"{title}, step {row[0].step}", fontsize=10, fontweight="bold")
        for example, left, right in zip(row, line[::2], line[1::2], strict=False):
            image = np.asarray(small(open_image(root, example.image), LONGEST_SIDE))
            draw_mask(left, image, example.truth, TRUTH, tint=0)  # the captions are about colours
            draw_mask(right, image, example.mask, PREDICTION, tint=0)
            for axis, (who, words) in zip((left, right), example.texts.items(), strict=True):
                wrapped = textwrap.wrap(f"{who}: {words}", 24, max_lines=3, placeholder=" …")
                axis.set_title("\n".join(wrapped), fontsize=8, loc="left", parse_math=False)
            left.set_xlabel(example.source, fontsize=8, labelpad=2)
            right.set_xlabel(f"IoU {example.iou:.2f}", fontsize=8, labelpad=2)
    save(figure, path, colours=160)


def candidates(results: Results, seed: int) -> pd.DataFrame:
    """Return all expressions of all splits in a seeded random order, with columns `KEY`, sent, split, iou and change.

    `iou` is that of the first variant besides the base, `change` that minus the base's.
    """
    tables = []
    for split in results.splits:
        base, other = results.expressions[BASE, split], results.expressions[compared(results), split]
        tables.append(base.assign(split=split, iou=other["iou"], change=other["iou"] - base["iou"]))
    table = pd.concat(tables, ignore_index=True)[[*KEY, "sent", "split", "iou", "change"]]
    return table.iloc[np.random.default_rng(seed).permutation(len(table))]


def order(table: pd.DataFrame, kind: str) -> pd.Series:
    """Return what `candidates` are sorted by, lowest first, to come to the expressions of a kind."""
    change = table["change"]
    return {
        "most improved": -change,
        "most worsened": change,
        "median change": (change - change.median()).abs(),
        "best": -table["iou"],
        "worst": table["iou"],
    }[kind]


KINDS = ("most improved", "most worsened", "best", "worst", "median change")
"""By what expressions are chosen for the page."""

CHANGED = ("most improved", "most worsened", "median change")


def choose(table: pd.DataFrame, orders: Mapping[str, pd.Series], count: int) -> pd.DataFrame:
    """Return `count` rows of the table (or as many as there are images), each of another image, with the column `kind` added.

    The kinds take turns, each with its next lowest value in `orders`; rows that an order lacks are not of that kind. Ties, of
    which there are many, go by the table's order. The result is ordered by kind.
    """
    queues = {kind: iter(values.sort_values(kind="stable").index) for kind, values in orders.items()}
    picked: dict[str, list[int]] = {kind: [] for kind in queues}
    used: set[str] = set()
    while queues and len(used) < count:
        for kind in list(queues)[: count - len(used)]:
            index = next((index for index in queues[kind] if table.at[index, "image_path"] not in used), None)
            if index is None:
                del queues[kind]
                continue
            used.add(table.at[index, "image_path"])
            picked[kind].append(index)
    rows = [index for indexes in picked.values() for index in indexes]
    return table.loc[rows].assign(kind=[kind for kind, indexes in picked.items() for _ in indexes])


def compared(results: Results) -> str:
    """Return the variant that galleries and failures are about: the first besides the base."""
    return next((variant for variant in results.variants if variant != BASE), BASE)


def small(image: Image.Image, side: int) -> Image.Image:
    """Return the image with its longer side at most `side` pixels."""
    smaller = image.copy()
    smaller.thumbnail((side, side))  # never enlarges
    return smaller


def draw_mask(axis: Axes, image: np.ndarray, mask: np.ndarray, colour: str, tint: float = 0.45) -> None:
    """Draw the (h, w, 3) uint8 image with the mask, of any resolution, tinted and outlined; without a tint colours are as they were."""
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    tinted = np.where(mask[..., None], (1 - tint) * image + tint * 255 * np.array(to_rgb(colour)), image)
    axis.imshow(tinted.astype(np.uint8))
    if mask.any():
        # padded, so that the outline closes where the mask touches the border; white beneath, to be seen on any colour
        x, y, padded = np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1).astype(float)
        axis.contour(x, y, padded, levels=[0.5], colors="white", linewidths=2.6)
        axis.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=1.3)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
