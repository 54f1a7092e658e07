"""Tables, figures and the page from the results of all variants: reports/summary.*, reports/figures/, reports/report.html."""

from pathlib import Path

from ans.config import load
from ans.report.build import build
from ans.stage import run_stage


def main() -> None:
    build(load(), Path("reports"), Path("data"), Path("models/checkpoint"))


if __name__ == "__main__":
    run_stage(main)
