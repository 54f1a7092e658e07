"""Tables, figures and the page from the results of all variants: reports/summary.*, reports/figures/, reports/report.html."""

from ans.config import load
from ans.report.build import build
from ans.stage import run_stage


def main() -> None:
    build(load())


if __name__ == "__main__":
    run_stage(main)
