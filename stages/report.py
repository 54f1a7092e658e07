"""Tables and figures from the results of all variants: reports/summary.{csv,md} and reports/figures/."""

from pathlib import Path

from ans.config import load
from ans.report.build import build


def main() -> None:
    config = load()
    build(tuple(config.variants), config.evaluate.splits, config.report, Path(config.paths.root), Path("reports"), Path("data"))


if __name__ == "__main__":
    main()
