"""Grounded conversation, measured as GLaMM does: `python -m ans ground grand_f_val --model models/variants/full`.

The model is asked for a description with masks of every image of the split, whose index is of reader grand_f. Printed: mIoU of paired
masks, AP50, masks per image; with --scorers METEOR and CIDEr of the captions (pip install 'ans[captions]'); with --bert the recall of
phrases, whose words are compared by bert-base-uncased, a folder of it or its name on the hub.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from ans.workspace import Workspace

HELP = "grounded conversation on a split: masks and captions by GLaMM's metrics"


def arguments(parser: argparse.ArgumentParser) -> None:
    from ans.cli import model

    model.loading(parser)
    parser.add_argument("split", metavar="SPLIT", help="<index>_<part>, e.g. grand_f_val")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--scorers", action="store_true", help="METEOR and CIDEr by the published scorers")
    parser.add_argument("--bert", metavar="FOLDER", help="bert-base-uncased, for the recall of phrases")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="captions, phrases and masks' IoU of every image, as JSON lines"
    )


def run(chosen: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ans.cli.model import load_model
    from ans.config import load
    from ans.data.arrow import read_index
    from ans.data.readers import check_listing
    from ans.evaluation import grounded, published_captions

    source, _, part = chosen.split.rpartition("_")
    root, index = Path(load().paths.root), read_index(Workspace().indexes / f"{source}.arrow")
    check_listing(index, root)
    with contextlib.redirect_stdout(sys.stderr):
        similar = grounded.bert(chosen.bert) if chosen.bert else None
        records = [record for _, record in grounded.rows_of_part(index, part, chosen.limit)]
        model, said = load_model(chosen), []
        for record in tqdm(records):
            said += grounded.converse(model, root, [record], part, chosen.max_new_tokens)
        found = grounded.metrics(said, similar)
        if chosen.scorers:
            found |= published_captions.scores([one.caption for one in said], [[one.true_caption] for one in said])
    if chosen.save:
        rows = [
            {
                "image": one.image,
                "caption": one.caption,
                "phrases": one.phrases,
                "miou": grounded.paired_iou(one.masks, one.truth),
            }
            for one in said
        ]
        chosen.save.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(json.dumps(found, indent=2))
