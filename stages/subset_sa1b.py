"""Stage `subset_sa1b`: the images of SA-1B that are used -> data/index/sa1b_subset.arrow and reports/data/sa1b_subset.json."""

from ans.config import load
from ans.data.index import write_report
from ans.data.subset_sa1b import subset_sa1b
from ans.stage import run_stage


def main() -> None:
    write_report(subset_sa1b(load()))


if __name__ == "__main__":
    run_stage(main)
