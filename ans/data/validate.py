"""What is wrong with a folder of your own data, line by line: `python -m ans.data.validate PATH` (see docs/your-data.md)."""

import argparse
import sys
from pathlib import Path

from ans.data.records import Skipped
from ans.data.sources import own
from ans.data.sources.common import read


def validate(folder: Path) -> int:
    """Print every line that cannot be used and why, and what the others hold. Returns the number of lines that cannot be used.

    Raises `FileNotFoundError` or `ValueError` when there is nothing to go through.
    """
    problems, images, regions, texts = [], 0, 0, 0
    for item in read(own, folder.parent, folder.name, folder.name):
        if isinstance(item, Skipped):
            problems.append(item)
            continue
        images, regions = images + 1, regions + len(item.regions)
        texts += sum(len(region.expressions) for region in item.regions)
    for problem in sorted(problems, key=lambda problem: int(problem.key.rpartition(":")[2])):
        print(f"{folder / problem.key}: {problem.reason}")
    print(f"{images} images, {regions} objects, {texts} expressions; {len(problems)} lines cannot be used")
    return len(problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the folder with images/ and expressions.jsonl in it")
    try:
        return 1 if validate(parser.parse_args().path.resolve()) else 0
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
