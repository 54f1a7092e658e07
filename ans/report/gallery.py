"""Masks over images: where training helped most, where it hurt most, and what is typical."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from PIL import Image

from ans.data.images import open_image
from ans.report.plots import COLOURS, save
from ans.report.results import BASE, KEY, Results, decode, read_expression

TRUTH, PREDICTION = COLOURS[2], COLOURS[5]
LONGEST_SIDE = 480
"""Pixels; larger images are shown smaller, to keep the file fit for git."""
TEXT_WIDTH = 1.25
"""Width of the column with the expression, in widths of an image."""


def draw_gallery(results: Results, data: Path, root: Path, rows: int, seed: int, path: Path) -> None:
    """One row per expression chosen by `choose`: the image, the true mask, and the mask of each variant with its IoU.

    `data` holds the per-expression tables, `root` the images. Raises what `open_image` raises for an image that cannot be read.
    """
    chosen = choose(results, rows, seed)
    variants = [BASE, *(variant for variant in results.variants if variant != BASE)]
    compared = _compared(results)
    columns = ["expression", "image", "truth", *variants]
    figure, axes = plt.subplots(
        len(chosen),
        len(columns),
        figsize=(1.5 * len(columns), 1.62 * len(chosen) + 0.3),
        width_ratios=[TEXT_WIDTH, *[1.0] * (len(columns) - 1)],
        layout="constrained",
        squeeze=False,
    )
    for axis, heading in zip(axes[0], columns, strict=True):
        axis.set_title(heading, fontsize=10, fontweight="bold", loc="left" if heading == "expression" else "center")
    for line, expression in zip(axes, chosen.itertuples(), strict=True):
        key = [getattr(expression, name) for name in KEY]
        found = {variant: read_expression(data, variant, expression.split, key) for variant in variants}
        base = found[BASE]
        image = np.asarray(_small(open_image(root, expression.image_path)))
        words = textwrap.wrap(f"“{expression.sent}”", 24, max_lines=6, placeholder=" …”")
        note = f"{expression.kind},\n{compared} - base: {expression.change:+.2f}\n{expression.split}"
        line[0].text(0, 1, "\n".join(words), fontsize=9, va="top", transform=line[0].transAxes)
        line[0].text(0, 0, note, fontsize=8, va="bottom", color="#555555", transform=line[0].transAxes)
        line[0].set_frame_on(False)
        line[0].set_box_aspect(image.shape[0] / image.shape[1] / TEXT_WIDTH)  # as high as the images beside it
        line[1].imshow(image)
        _draw_mask(line[2], image, decode(base["gt_counts"], base["height"], base["width"]), TRUTH)
        for axis, variant in zip(line[3:], variants, strict=True):
            answer = found[variant]
            _draw_mask(axis, image, decode(answer["counts"], answer["height"], answer["width"]), PREDICTION)
            axis.set_xlabel(f"IoU {answer['iou']:.2f}" + ("" if answer["has_seg"] else ", no [SEG]"), fontsize=9, labelpad=2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    save(figure, path, colours=256)


def choose(results: Results, rows: int, seed: int) -> pd.DataFrame:
    """`rows` expressions (or as many as there are images), each of another image, with columns `KEY`, sent, split, change, kind.

    `change` is the IoU of the first variant besides the base minus that of the base. The kinds take turns: most improved, most
    worsened, median change; ties, of which there are many, are broken by the seed. The result is ordered by kind.
    """
    compared = _compared(results)
    tables = []
    for split in results.splits:
        base, other = results.expressions[BASE, split], results.expressions[compared, split]
        tables.append(base.assign(split=split, change=other["iou"] - base["iou"]))
    table = pd.concat(tables, ignore_index=True)
    table = table.iloc[np.random.default_rng(seed).permutation(len(table))]
    order = {
        "most improved": -table["change"],
        "most worsened": table["change"],
        "median change": (table["change"] - table["change"].median()).abs(),
    }
    queues = {kind: iter(values.sort_values(kind="stable").index) for kind, values in order.items()}
    kinds = list(queues)
    picked, used = [], set()
    for turn in range(min(rows, table["image_path"].nunique())):
        kind = kinds[turn % len(kinds)]
        index = next(index for index in queues[kind] if table.at[index, "image_path"] not in used)
        used.add(table.at[index, "image_path"])
        picked.append((kinds.index(kind), turn, index))
    ordered = sorted(picked)
    result = table.loc[[index for _, _, index in ordered], [*KEY, "sent", "split", "change"]]
    return result.assign(kind=[kinds[kind] for kind, _, _ in ordered])


def _compared(results: Results) -> str:
    return next((variant for variant in results.variants if variant != BASE), BASE)


def _small(image: Image.Image) -> Image.Image:
    smaller = image.copy()
    smaller.thumbnail((LONGEST_SIDE, LONGEST_SIDE))  # never enlarges
    return smaller


def _draw_mask(axis: Axes, image: np.ndarray, mask: np.ndarray, colour: str) -> None:
    """The (h, w, 3) uint8 image with the mask, of any resolution, tinted and outlined."""
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    tinted = np.where(mask[..., None], 0.55 * image + 0.45 * 255 * np.array(to_rgb(colour)), image)
    axis.imshow(tinted.astype(np.uint8))
    if mask.any():
        # padded, so that the outline closes where the mask touches the border; white beneath, to be seen on any colour
        x, y, padded = np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1).astype(float)
        axis.contour(x, y, padded, levels=[0.5], colors="white", linewidths=2.6)
        axis.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=1.3)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
