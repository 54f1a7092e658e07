"""Stages `index@<source>` and `own@<name>`: `python -m stages.index refcoco` -> data/index/refcoco.arrow, reports/data/refcoco.json."""

import argparse

from ans.config import load
from ans.data import index
from ans.stage import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a key of `sources` or `own` in params.yaml")
    index.write_report(index.build(parser.parse_args().source, load()))


if __name__ == "__main__":
    run_stage(main)
