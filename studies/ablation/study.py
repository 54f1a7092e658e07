"""What each part of the method brought: arms x seeds through DVC, into studies/ablation/runs.csv and, from it, studies/ablation/table.md.

python -m studies.ablation.study study             # how to re-score captions, on the tuning splits alone
python -m studies.ablation.study run [ARM ...]     # the protocol: the runs that are not in the table yet
python -m studies.ablation.study join CSV ...      # the rows of other clones into this one's studies/ablation/runs.csv
python -m studies.ablation.study table             # studies/ablation/table.md from studies/ablation/runs.csv
python -m studies.ablation.study upper_bound       # what labels for everything would bring -> studies/ablation/upper_bound.json

Cut off, study and run continue; `--seeds` gives each of several clones its share. The protocol is studies/ablation/README.md; the arms and
seeds below are its numbers.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from studies.runs import Runs, experiment, git, interval, is_test, is_tuning, pairs, refuse_changes

RUNS = Runs(Path("studies/ablation/runs.csv"), ("ciou", "miou"), lambda values: "ciou_forced" in values)
TABLE, BOUND = Path("studies/ablation/table.md"), Path("studies/ablation/upper_bound.json")
KEEP = (":!studies/ablation/runs.csv", ":!studies/ablation/table.md", ":!studies/ablation/upper_bound.json")

_ORIGINAL = ("train.loop1.rescored=all", "train.loop1.mask_ratio=0.25", "train.loop1.denoising=0.0")
_COMMON = ("evaluate.captions=[]", "launch.feature_cache_gb=2")
"""What all runs share to take less time: descriptions are not judged here, and the frozen encoders' features are made once."""
_NO_LOOPS = ("train.loop1.enabled=false", "train.loop2.enabled=false")
ARMS: dict[str, tuple[str, ...]] = {
    "supervised_equal_steps": _NO_LOOPS,
    "supervised_equal_compute": (*_NO_LOOPS, "train.steps=300"),
    "both_orthogonal": (),
    "loop1_gumbel": ("train.loop2.enabled=false",),
    "loop1_hard": ("train.loop2.enabled=false", "train.loop1.bridge=hard"),
    "loop1_detached": ("train.loop2.enabled=false", "train.loop1.bridge=detached"),
    "both_pcgrad": ("train.surgery=pcgrad",),
    "both_none": ("train.surgery=none",),
    "both_beta_0.25": ("train.beta=0.25",),
    "both_beta_1": ("train.beta=1.0",),
    "both_without_ema": ("train.ema.decay=0.0",),
    "both_original": _ORIGINAL,
    "supervised_100_images": (*_NO_LOOPS, "world.train_images=100"),
    "both_100_images": ("world.train_images=100",),
}
"""Arm -> what it changes in `params.yaml`. In all with loop 1 the student's reading is taught by the denoising loss alike, but in
`both_original`, which has none: the bridges differ in what goes on to the second pass, and in its gradient, alone."""

AFTER: dict[str, tuple[str, ...]] = {
    f"supervised_{steps}_steps": (*_NO_LOOPS, f"train.steps={steps}") for steps in (10, 25, 50, 100)
}
"""Not of the protocol, but asked by its result: do the labels alone do better when they are learnt for a shorter time?"""

_TUNING = (
    *_ORIGINAL,
    "train.loop2.enabled=false",
    "evaluate.splits=[refcoco_val,refcoco_plus_val,refcocog_val]",
)
_CORRUPTED = ("train.loop1.bridge=gumbel", "train.loop1.rescored=corrupted")
STUDY: dict[str, tuple[str, ...]] = {
    "study_hard": ("train.loop1.bridge=hard",),
    "study_all": ("train.loop1.bridge=gumbel", "train.loop1.rescored=all"),
    "study_corrupted": _CORRUPTED,
    "study_corrupted_tenth": (*_CORRUPTED, "train.loop1.mask_ratio=0.1"),
    "study_corrupted_denoising": (*_CORRUPTED, "train.loop1.denoising=0.5"),
    "study_all_uncorrupted": ("train.loop1.bridge=gumbel", "train.loop1.rescored=all", "train.loop1.mask_ratio=0.0"),
    "study_denoising_tenth": (*_CORRUPTED, "train.loop1.mask_ratio=0.1", "train.loop1.denoising=0.5"),
    "study_denoising_strong": (*_CORRUPTED, "train.loop1.denoising=2.0"),
    "study_denoising_quiet": (*_CORRUPTED, "train.loop1.denoising=0.5", "train.loop1.noise=0.0"),
    "study_corrupted_confidence": (*_CORRUPTED, "train.loop1.confidence=true"),
    "study_hard_confidence": ("train.loop1.bridge=hard", "train.loop1.confidence=true"),
    "study_corrupted_without_ema": (*_CORRUPTED, "train.ema.decay=0.0"),
    "study_denoising_long": (*_CORRUPTED, "train.loop1.denoising=0.5", "train.steps=400"),
    "study_hard_long": ("train.loop1.bridge=hard", "train.steps=400"),
}
"""As `ARMS`, loop 1 alone and only on the tuning splits: what chose the default of `train.loop1`."""

LABELS_FOR_ALL = (*_NO_LOOPS, "world.train_images=3000", "train.steps=3000")
"""The upper bound: labels for 3,000 images, supervised."""

REFERENCE = "supervised_equal_steps"
MANY = (REFERENCE, "supervised_equal_compute", "both_orthogonal")
COMPARED = {
    "both_orthogonal": ("supervised_equal_steps", "supervised_equal_compute"),
    "loop1_gumbel": ("loop1_hard", "loop1_detached", "both_orthogonal"),
    "both_pcgrad": ("both_orthogonal",),
    "both_none": ("both_orthogonal",),
    "both_beta_0.25": ("both_orthogonal",),
    "both_beta_1": ("both_orthogonal",),
    "both_without_ema": ("both_orthogonal",),
    "both_original": ("both_orthogonal",),
    "both_100_images": ("supervised_100_images",),
}
"""Arm -> the arms that it is compared with: the protocol's two questions first, then each part of the method."""


def seeds(arm: str) -> range:
    """Training seeds of an arm; those of two arms are paired. The study has others than the protocol."""
    if arm in STUDY:
        return range(2001, 2003)
    return range(1001, 1011 if arm in MANY or arm in AFTER else 1004)


def run(arms: Sequence[str], only: Sequence[int] = ()) -> None:
    """Every run of `arms` that the table lacks, or those of the seeds `only`. Raises `RuntimeError` as `Runs.run` does, and where
    the table has runs of another `params.yaml`."""
    if not set(arms) <= set(STUDY):
        RUNS.refuse_others(ARMS | AFTER)
    RUNS.run([(arm, seed) for arm in arms for seed in only or seeds(arm) if seed in seeds(arm)], _changes, KEEP, table)


def _changes(arm: str) -> list[str]:
    """What an arm sets: those of the study start from the original's setting."""
    changes = (*_COMMON, *((*_TUNING, *STUDY[arm]) if arm in STUDY else (ARMS | AFTER)[arm]))
    return [f"{key}={value}" for key, value in dict(change.split("=", 1) for change in changes).items()]


def upper_bound() -> None:
    """Run `LABELS_FOR_ALL` and write, by split, cIoU of the base and of that run's variant `full`, with the command."""
    refuse_changes(KEEP)
    command = experiment("upper-bound", LABELS_FOR_ALL, "evaluate@base", "evaluate@full")
    found = {name: _ciou(Path("reports/eval") / name) for name in ("base", "full")}
    means = {name: mean(of.values()) for name, of in found.items()}
    values = {
        "command": command,
        "base": means["base"],
        "upper_bound": means["full"],
        "difference": means["full"] - means["base"],
        "splits": {split: {"base": base, "upper_bound": found["full"][split]} for split, base in found["base"].items()},
    }
    git("checkout", "--", ".", *KEEP)
    BOUND.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _ciou(folder: Path) -> dict[str, float]:
    """Split -> cIoU, of the results in a folder that are about expressions."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {split: values["ciou"] for split, values in results.items() if "ciou_forced" in values}


def table() -> None:
    """Write the table: per arm the mean over splits and seeds, and its paired difference to the reference."""
    lines = [
        "# Ablation",
        "",
        "cIoU in percent, mean over the splits; intervals: 95 %, Student's t over paired seeds. See studies/ablation/README.md.",
    ]
    supervised = {arm: "supervised_100_images" if arm.endswith("_100_images") else REFERENCE for arm in ARMS}
    for kind in ("test", "tuning"):
        lines += _section(f"{kind.capitalize()} splits", kind, "supervised", supervised)
    scores = RUNS.scores("ciou", is_test)
    lines += [
        "",
        "## Comparisons (test splits)",
        "",
        "| arm | against | paired seeds | difference |",
        "| --- | --- | ---: | ---: |",
    ]
    for arm, others in COMPARED.items():
        for other in others:
            if found := pairs(scores.get(arm, {}), scores.get(other, {})):
                lines.append(f"| {arm} | {other} | {len(found)} | {interval(found)} |")
    for kind in ("test", "tuning"):
        lines += _section(f"After the protocol ({kind} splits)", kind, "both loops", dict.fromkeys(AFTER, "both_orthogonal"))
    hard = {arm: "study_hard_long" if arm.endswith("_long") else "study_hard" for arm in STUDY}
    lines += _section("How captions are re-scored (tuning splits, loop 1 alone)", "tuning", "hard captions", hard)
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(title: str, kind: str, reference: str, references: dict[str, str]) -> list[str]:
    """One table: the arms of `references`, as far as there are runs of them, each with its difference to its own reference."""
    scores = RUNS.scores("ciou", is_test if kind == "test" else is_tuning)
    header = f"| arm | seeds | cIoU | difference to {reference} | seconds a run |"
    lines = [_line(arm, other, scores) for arm, other in references.items() if arm in scores]
    return ["", f"## {title}", "", header, "| --- | ---: | ---: | ---: | ---: |", *lines]


def _line(arm: str, reference: str, scores: dict[str, dict[str, float]]) -> str:
    found = pairs(scores[arm], scores.get(reference, {}))
    score = 100 * mean(scores[arm].values())
    difference = "(reference)" if arm == reference else interval(found)
    return f"| {arm} | {len(scores[arm])} | {score:.2f} | {difference} | {RUNS.seconds(arm):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arms in (("study", STUDY), ("run", ARMS | AFTER)):
        command = commands.add_parser(name)
        command.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(arms))
        command.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="only these")
    commands.add_parser("join").add_argument("files", nargs="+", type=Path, metavar="CSV")
    commands.add_parser("table")
    commands.add_parser("upper_bound")
    given = parser.parse_args()
    if given.command in ("study", "run"):
        arms, known = (STUDY, STUDY) if given.command == "study" else (ARMS, ARMS | AFTER)
        if unknown := set(given.arms) - set(known):
            parser.error(f"no arm is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        run(given.arms or list(arms), given.seeds)
    elif given.command == "join":
        RUNS.join(given.files, lambda arm: arm not in STUDY)
    elif given.command == "upper_bound":
        return upper_bound()
    table()


if __name__ == "__main__":
    main()
