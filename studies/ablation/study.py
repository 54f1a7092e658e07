"""What each part of the method brought: arms x seeds through DVC, into studies/ablation/runs.csv and, from it, studies/ablation/table.md.

python -m studies.ablation.study study             # how to read captions anew, on the tuning splits alone
python -m studies.ablation.study run [ARM ...]     # the protocol: the runs that are not in the table yet
python -m studies.ablation.study join CSV ...      # the rows of other clones into this one's studies/ablation/runs.csv
python -m studies.ablation.study table             # studies/ablation/table.md from studies/ablation/runs.csv
python -m studies.ablation.study upper_bound       # what labels for everything would bring -> studies/ablation/upper_bound.json

Cut off, study and run continue; `--seeds` gives each of several clones its share. The protocol is studies/ablation/README.md; the arms and
seeds below are its numbers.
"""

import argparse
import csv
import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from studies.runs import experiment, git, interval, pairs, parameters, refuse_changes

CSV, TABLE, BOUND = (
    Path("studies/ablation/runs.csv"),
    Path("studies/ablation/table.md"),
    Path("studies/ablation/upper_bound.json"),
)
COLUMNS = ("arm", "seed", "split", "ciou", "miou", "seconds", "params_sha")
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
    """Every run of `arms` that the table lacks, or those of the seeds `only`: seed by seed, so that what is there can be paired.
    Raises `RuntimeError` in a work tree with other changes, which runs would reset, and at the end when runs broke down."""
    refuse_changes(KEEP)
    if not set(arms) <= set(STUDY) and _shas(_rows()) - {parameters()}:
        raise RuntimeError(f"{CSV} has runs of another params.yaml, which cannot be paired with new ones; take them out first")
    done = {row[:2] for row in _rows()}
    todo = [(arm, seed) for arm in arms for seed in only or seeds(arm) if seed in seeds(arm) and (arm, str(seed)) not in done]
    todo.sort(key=lambda one: one[1])
    broken = []
    try:
        for number, (arm, seed) in enumerate(todo, 1):
            print(f"ablation {number}/{len(todo)}: {arm}, seed {seed}", flush=True)
            git("checkout", "--", ".", *KEEP)
            start = time.monotonic()
            try:
                experiment(f"{arm.replace('.', '_')}-{seed}", (*_changes(arm), f"train.seed={seed}"), "evaluate@full")
            except subprocess.CalledProcessError:
                broken.append(f"{arm} with seed {seed}")
                continue
            _append(arm, seed, time.monotonic() - start)
            table()
    finally:
        git("checkout", "--", ".", *KEEP)
    if broken:
        raise RuntimeError(f"these runs broke down and are not in the table: {', '.join(broken)}")


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


def join(files: Sequence[Path]) -> None:
    """Add the runs of other clones' tables. Raises `ValueError` where a run is here already with other numbers, or where runs
    that are compared started from different `params.yaml`."""
    rows = _rows()
    found = {row[:3]: row for row in rows}
    for path in files:
        for row in _rows(path):
            if found.setdefault(row[:3], row) != row:
                raise ValueError(f"{path}: {' '.join(row[:3])} is in {CSV} with other numbers; a run counts once")
    if len(shas := _shas(found.values())) > 1:
        raise ValueError(f"runs of different params.yaml ({', '.join(sorted(shas))}) cannot be paired; {CSV} is left as it was")
    with open(CSV, "a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(list(found.values())[len(rows) :])


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
    scores = _scores("test")
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
    scores = _scores(kind)
    header = f"| arm | seeds | cIoU | difference to {reference} | seconds a run |"
    lines = [_line(arm, other, scores) for arm, other in references.items() if arm in scores]
    return ["", f"## {title}", "", header, "| --- | ---: | ---: | ---: | ---: |", *lines]


def _line(arm: str, reference: str, scores: dict[str, dict[str, float]]) -> str:
    found = pairs(scores[arm], scores.get(reference, {}))
    seconds = mean(float(row[5]) for row in _rows() if row[0] == arm)
    score = 100 * mean(scores[arm].values())
    difference = "(reference)" if arm == reference else interval(found)
    return f"| {arm} | {len(scores[arm])} | {score:.2f} | {difference} | {seconds:.0f} |"


def _scores(kind: str) -> dict[str, dict[str, float]]:
    """Arm -> seed -> mean cIoU over the splits of that kind. Anything is chosen on val splits, so they are no test."""
    found: dict[str, dict[str, list[float]]] = {}
    for arm, seed, split, ciou, *_ in _rows():
        if split.endswith("_val") == (kind == "tuning"):
            found.setdefault(arm, {}).setdefault(seed, []).append(float(ciou))
    return {arm: {seed: mean(values) for seed, values in by_seed.items()} for arm, by_seed in found.items()}


def _rows(path: Path | None = None) -> list[tuple[str, ...]]:
    """The rows of a table, by default of this work tree's own, which may not be there yet."""
    if path is None and not CSV.is_file():
        return []
    with open(path or CSV, encoding="utf-8", newline="") as file:
        return [tuple(row[name] for name in COLUMNS) for row in csv.DictReader(file)]


def _shas(rows: Iterable[tuple[str, ...]]) -> set[str]:
    """What the runs that are compared with each other started from; the study's are compared among themselves."""
    return {row[6] for row in rows if row[0] not in STUDY}


def _append(arm: str, seed: int, seconds: float) -> None:
    sha, new = parameters(), not CSV.is_file()
    with open(CSV, "a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        for path in sorted(Path("reports/eval/full").glob("*.json")):
            values = json.loads(path.read_text(encoding="utf-8"))
            if "ciou_forced" in values:
                writer.writerow([arm, seed, path.stem, values["ciou"], values["miou"], f"{seconds:.0f}", sha])


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
        join(given.files)
    elif given.command == "upper_bound":
        return upper_bound()
    table()


if __name__ == "__main__":
    main()
