"""Whether captions can matter, and what the loops bring beside their data: arms x seeds through DVC, into studies/captions/runs.csv.

python -m studies.captions.study run [ARM ...]     # the runs that are not in the table yet
python -m studies.captions.study join CSV ...      # the rows of other clones into this one's table
python -m studies.captions.study table             # studies/captions/table.md from studies/captions/runs.csv

Cut off, run continues; `--seeds` gives each of several clones its share. The protocol is studies/captions/README.md; the arms and
seeds below are its numbers.
"""

import argparse
from collections.abc import Collection
from pathlib import Path
from statistics import mean

from studies.runs import Runs, interval, is_test, is_tuning, pairs

RUNS = Runs(
    Path("studies/captions/runs.csv"),
    ("ciou", "facts_right", "all_right", "wrong_object"),
    lambda values: "ciou_forced" in values or "facts_right" in values,
    frozenset({"e4a702db3690", "e9e30e880e5a"}),
)
TABLE = Path("studies/captions/table.md")
KEEP = (":!studies/captions/runs.csv", ":!studies/captions/table.md")

_COMMON = ("launch.feature_cache_gb=2",)
"""What all runs share to take less time: the frozen encoders' features are made once."""
_LOOP_1 = (
    "world.new_colours=true", "world.captioned_images=250", "train.referring.enabled=false", "train.loop2.enabled=false",
    "train.loop1.denoising=0.0",
)  # fmt: skip
_TRUE = ("+own.captioned.folder=captioned/true", "train.loop1.sources={captioned: {}}")
_WRONG = ("+own.captioned.folder=captioned/wrong", "train.loop1.sources={captioned: {}}")
_NO_LOOPS = ("train.loop1.enabled=false", "train.loop2.enabled=false")
ARMS: dict[str, tuple[str, ...]] = {
    "teacher": (*_LOOP_1, *_TRUE, "train.loop1.bridge=hard"),
    "true": (*_LOOP_1, *_TRUE, "train.loop1.bridge=given"),
    "wrong": (*_LOOP_1, *_WRONG, "train.loop1.bridge=given"),
    "rloo": (*_LOOP_1, *_TRUE, "train.loop1.bridge=hard", "train.loop1.reward=1.0"),
    "both": (),
    "labels": (*_NO_LOOPS, "train.steps=50"),
    "labels_described": (
        *_NO_LOOPS,
        "train.steps=100",
        "train.referring.sources=[refcoco,refcoco_plus,refcocog,describe]",
    ),
}
"""Arm -> what it changes in `params.yaml`."""
SEEDS = {arm: tuple(range(3001, 3001 + {"wrong": 2, "teacher": 10, "rloo": 10}.get(arm, 5))) for arm in ARMS}
QUESTIONS = (("true", "teacher", "wrong"), ("labels_described", "both", "labels"), ("rloo", "teacher", "true"))
"""The arms that are compared, in the order in which they are run; the first of each with the others."""


def changes(arm: str) -> tuple[str, ...]:
    return (*_COMMON, *ARMS[arm])


def run(arms: list[str], seeds: Collection[int] = ()) -> None:
    """Every run of `arms` that the table lacks, with these seeds or with all, question after question. Raises `RuntimeError` as `Runs.run`
    and `refuse_others` do."""
    for question in QUESTIONS:
        if set(question) & set(arms):
            RUNS.refuse_others(question)
        todo = [(arm, seed) for arm in question if arm in arms for seed in SEEDS[arm] if seed in seeds or not seeds]
        RUNS.run(todo, changes, KEEP, table)


def table() -> None:
    """Write the table: by question the arms' means, and the paired differences to its first arm."""
    test, tuning = RUNS.scores("ciou", is_test), RUNS.scores("ciou", is_tuning)
    facts, others = (RUNS.scores(measure, is_tuning) for measure in ("facts_right", "wrong_object"))
    lines = [
        "# Captions",
        "",
        "cIoU in percent, mean over the splits; facts right and wrong object: shares of the captions of the described val split.",
        "Intervals: 95 %, Student's t over paired seeds. See studies/captions/README.md.",
    ]
    for question in QUESTIONS:
        first, *rest = question
        lines += [
            "",
            f"## {first} against {', '.join(rest)}",
            "",
            f"| arm | seeds | cIoU, test | {first} minus it | cIoU, val | {first} minus it | facts right | wrong object | seconds a run |",
            "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
        ]
        for arm in question:
            if arm not in test:
                continue
            cells = [arm, str(len(test[arm]))]
            for scores in (test, tuning):
                difference = "" if arm == first else interval(pairs(scores.get(first, {}), scores[arm]))
                cells += [f"{100 * mean(scores[arm].values()):.2f}", difference]
            cells += [f"{mean(of[arm].values()):.3f}" if arm in of else "" for of in (facts, others)]
            lines.append(f"| {' | '.join([*cells, f'{RUNS.seconds(arm):.0f}'])} |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    command.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="only these")
    commands.add_parser("join").add_argument("files", nargs="+", type=Path, metavar="CSV")
    commands.add_parser("table")
    given = parser.parse_args()
    if given.command == "run":
        if unknown := set(given.arms) - set(ARMS):
            parser.error(f"no arm is called {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
        run(given.arms or list(ARMS), given.seeds)
    elif given.command == "join":
        RUNS.join(given.files, *(set(question).__contains__ for question in QUESTIONS))
    table()


if __name__ == "__main__":
    main()
