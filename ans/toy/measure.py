"""How good an embedded base is, on the held-out scenes of the world that it was trained on.

Not by `ans.evaluation`, which needs a workspace with indexes and variants and has no blind baselines: a recipe's world is never indexed,
and the baselines ask about other objects' expressions. Inference and IoU are the library's.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ans.data.matching import record_image, region_mask
from ans.data.mixing import keyed_rng
from ans.data.records import ImageRecord, Region
from ans.evaluation.metrics import intersection_union
from ans.model.segmenter import Segmenter
from ans.toy.recipe import SEED, records_of


def measure(root: Path, folder: Path) -> None:
    """Evaluate `folder` on the held-out scenes of its own world; leave `metrics.json` and SHA256SUMS beside the weights.

    Free generation on every expression; captions against the full description of each object; and three blind baselines.
    """
    model = Segmenter.from_pretrained(folder)
    rows, captions, right, total = [], [], 0, 0
    blind: dict[str, list[tuple[int, int]]] = {"everything": [], "random object": [], "shuffled expressions": []}
    rng = keyed_rng(SEED, 4)
    for records in tqdm(list(_held_out(root)), desc="held-out", disable=None):
        images = [record_image(root, record) for record, _ in records]
        read = model.read(images)
        texts = [[text for _, text, _ in entries] for _, entries in records]
        shuffled = [[row[i] for i in rng.permutation(len(row))] for row in texts]
        answers = model.segment(read, texts, max_new_tokens=16)
        wrong = model.segment(read, shuffled, max_new_tokens=16)
        for (record, entries), found, other in zip(records, answers, wrong, strict=True):
            objects = list({region.region_id: region_mask(record, region).astype(bool) for region, _, _ in entries}.values())
            for (region, _, _), one, two in zip(entries, found, other, strict=True):
                truth = region_mask(record, region).astype(bool)
                blind["random object"].append(intersection_union(objects[rng.integers(len(objects))], truth))
                rows.append((*intersection_union(one.mask, truth), len(one.masks) > 0))
                blind["everything"].append((int(truth.sum()), truth.size))
                blind["shuffled expressions"].append(intersection_union(two.mask, truth))
        if not model.config.family.regions:
            continue
        described = [{region.region_id: (region, caption) for region, _, caption in entries if caption} for _, entries in records]
        masks = [
            np.stack([region_mask(record, region) for region, _ in regions.values()])
            for (record, _), regions in zip(records, described, strict=True)
        ]
        for regions, said in zip(described, model.describe(read, masks, max_new_tokens=16), strict=True):
            for (_, caption), text in zip(regions.values(), said, strict=True):
                captions.append(text == caption)
                wanted, got = caption.split(), text.split()
                right += sum(a == b for a, b in zip(wanted, got, strict=False))
                total += max(len(wanted), len(got))
    intersection, union = (sum(row[i] for row in rows) for i in (0, 1))
    metrics = {
        "ciou": intersection / union,
        "miou": sum(i / u for i, u, _ in rows) / len(rows),
        "seg_rate": sum(seg for _, _, seg in rows) / len(rows),
        "expressions": len(rows),
        **({"caption_token_accuracy": right / total, "caption_exact": sum(captions) / len(captions)} if captions else {}),
        "blind": {name: sum(i for i, _ in pairs) / sum(u for _, u in pairs) for name, pairs in blind.items()},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    names = sorted(path.name for path in folder.iterdir() if path.name not in ("SHA256SUMS", "README.md", "metrics.json"))
    sums = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    print(json.dumps(metrics, indent=2))


def _held_out(root: Path, batch: int = 16) -> Iterator[list[tuple[ImageRecord, list[tuple[Region, str, str]]]]]:
    """Yield batches of images of the world's val split, each with (region, expression, caption or "")."""
    images: dict[str, tuple[ImageRecord, list[tuple[Region, str, str]]]] = {}
    for name, record in records_of(root):
        for region in record.regions:
            if region.split == "val":
                caption = region.expressions[0].sent if name == "refcoco_plus" else ""
                entries = images.setdefault(record.path, (record, []))[1]
                entries += [(region, expression.sent, caption) for expression in region.expressions]
    items = [item for item in images.values() if any(caption for _, _, caption in item[1])]
    for start in range(0, len(items), batch):
        yield items[start : start + batch]
