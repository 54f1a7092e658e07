"""METEOR and CIDEr of described regions, as the published tables have them.

    python -m ans score data/eval/full/refcocog_val_captions.parquet

TABLE is what stage `evaluate` leaves of `evaluate.captions`. The scorers are pycocoevalcap's; pip install 'ans[captions]' brings them.
"""

import argparse
import json
from pathlib import Path

HELP = "METEOR and CIDEr of a table of captions, by the published scorers"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE", help="a parquet of captions")


def run(chosen: argparse.Namespace) -> None:
    import pyarrow.parquet as pq

    from ans.evaluation.published_captions import scores

    for path in chosen.tables:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such table")
        table = pq.read_table(path)
        if not {"caption", "references"} <= set(table.column_names):
            raise ValueError(f"{path}: no table of captions; evaluate.captions makes <split>_captions.parquet")
        found = scores(table["caption"].to_pylist(), table["references"].to_pylist())
        print(json.dumps({"table": str(path), "n": table.num_rows, **found}))
