"""Stage `index@<source>`: `python -m stages.index refcoco` -> data/index/refcoco.arrow and reports/data/refcoco.json."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ans import config
from ans.data import index
from ans.stage import run_stage


def write_report(report: dict[str, Any]) -> None:
    path = Path("reports/data") / f"{report['source']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    skipped = sum(reason["count"] for reason in report["skipped"].values())
    found = f"not there ({report['absent']})" if "absent" in report else f"{report['images']} images, {skipped} records skipped"
    print(f"{report['source']}: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a key of `sources` or `own` in params.yaml")
    write_report(index.build(parser.parse_args().source, config.load()))


if __name__ == "__main__":
    run_stage(main)
