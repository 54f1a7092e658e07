"""Stage `subset_sa1b`: the chosen images of SA-1B -> data/index/sa1b_subset.arrow and reports/data/sa1b_subset.json."""

from ans import config
from ans.data.subset_sa1b import subset_sa1b
from ans.stage import run_stage
from stages.index import write_report


def main() -> None:
    write_report(subset_sa1b(config.load()))


if __name__ == "__main__":
    run_stage(main)
