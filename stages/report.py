"""Tables and figures from the results of all variants: reports/summary.{csv,md} and reports/figures/."""

from pathlib import Path

from ans.config import load
from ans.errors import run
from ans.report.build import build


def main() -> None:
    config = load()
    results = config.evaluate.split_results(), config.evaluate.caption_results()
    build(tuple(config.variants), *results, config.report, Path(config.paths.root), Path("reports"), Path("data"))


if __name__ == "__main__":
    run(main)
