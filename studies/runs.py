"""What studies have in common: runs through DVC in a work tree that is reset, a table of their results, and paired differences with
their intervals.
"""

import csv
import hashlib
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import yaml

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, two-sided 95 %, by degrees of freedom."""

_DVC = (sys.executable, "-m", "dvc")


def dvc(*arguments: str) -> str:
    """What DVC prints. Raises `CalledProcessError`."""
    return subprocess.run([*_DVC, *arguments], check=True, capture_output=True, text=True).stdout


def git(*arguments: str) -> str:
    """What git prints. Raises `CalledProcessError`."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def refuse_changes(keep: Sequence[str]) -> None:
    """Raise `RuntimeError` in a work tree with changes outside of the pathspecs `keep`: runs would reset them."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *keep)
    if changed:
        raise RuntimeError(
            "the work tree has changes, and every run resets it; commit them, or go back to your branch without them "
            f"(`git checkout -f main`) if a run that was killed left them:\n{changed}"
        )


def experiment(name: str, changes: Sequence[str], *targets: str) -> str:
    """`dvc exp run`, under a name; the command as one would type it."""
    if name in dvc("exp", "list", "--name-only").split():  # cut off between its end and the note of its result
        dvc("exp", "remove", name)
    words = ["exp", "run", "-n", name, *(word for change in changes for word in ("-S", change)), *targets]
    subprocess.run([*_DVC, *words, "-q"], check=True)
    return shlex.join(["dvc", *words])


def parameters() -> str:
    """12 hex digits of the committed `params.yaml`, its comments left out: what all arms have in common."""
    values = yaml.safe_load(git("show", "HEAD:params.yaml"))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Runs:
    """The runs of a study, in the CSV file at `path`: one row for each arm, seed and split, with `measures` of
    `reports/eval/full/<split>.json`, the seconds of the whole run, and `parameters()`.

    `reads`: whether a file of results, by its values, belongs into the table. `equal`: the `parameters()` of several `params.yaml` by
    which a run gave the same bits.
    """

    path: Path
    measures: tuple[str, ...]
    reads: Callable[[Mapping[str, float]], bool]
    equal: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        return ("arm", "seed", "split", *self.measures, "seconds", "params_sha")

    def rows(self, path: Path | None = None) -> list[dict[str, str]]:
        """The rows of a table, by default of this work tree's own, which may not be there yet."""
        if path is None and not self.path.is_file():
            return []
        with open(path or self.path, encoding="utf-8", newline="") as file:
            return [{name: row[name] for name in self.columns} for row in csv.DictReader(file)]

    def refuse_others(self, arms: Collection[str]) -> None:
        """Raise `RuntimeError` where the table has runs of these arms by another `params.yaml` than the committed one."""
        if self._different([parameters(), *(row["params_sha"] for row in self.rows() if row["arm"] in arms)]):
            raise RuntimeError(
                f"{self.path} has runs of another params.yaml, which cannot be paired with new ones; take them out first"
            )

    def done(self) -> set[tuple[str, int]]:
        """Arm and seed of every run in the table."""
        return {(row["arm"], int(row["seed"])) for row in self.rows()}

    def run(
        self,
        todo: Sequence[tuple[str, int]],
        changes: Callable[[str], Sequence[str]],
        keep: Sequence[str],
        after: Callable[[], None],
    ) -> None:
        """Run the arms and seeds that the table lacks, seed by seed, so that what is there can be paired, and call `after` each.

        `changes` says what an arm sets, the pathspecs `keep` leave the study's own files as they are. Raises `RuntimeError` in a work
        tree with other changes, which runs would reset, and at the end when runs broke down.
        """
        refuse_changes(keep)
        left = sorted((one for one in todo if one not in self.done()), key=lambda one: one[1])
        broken = []
        try:
            for number, (arm, seed) in enumerate(left, 1):
                print(f"{self.path.parent.name} {number}/{len(left)}: {arm}, seed {seed}", flush=True)
                git("checkout", "--", ".", *keep)
                start = time.monotonic()
                try:
                    experiment(f"{arm.replace('.', '_')}-{seed}", (*changes(arm), f"train.seed={seed}"), "evaluate@full")
                except subprocess.CalledProcessError:
                    broken.append(f"{arm} with seed {seed}")
                    continue
                self._append(arm, seed, time.monotonic() - start)
                after()
        finally:
            git("checkout", "--", ".", *keep)
        if broken:
            raise RuntimeError(f"these runs broke down and are not in the table: {', '.join(broken)}")

    def _append(self, arm: str, seed: int, seconds: float) -> None:
        results = {
            path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path("reports/eval/full").glob("*.json"))
        }
        of, new = parameters(), not self.path.is_file()
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(self.columns)
            for split, values in results.items():
                if self.reads(values):
                    measured = [values.get(name, "") for name in self.measures]
                    writer.writerow([arm, seed, split, *measured, f"{seconds:.0f}", of])

    def _different(self, shas: Iterable[str]) -> set[str]:
        """Return these, if they are not all equal."""
        several = set(shas)
        return several if len(several) > 1 and not several <= self.equal else set()

    def join(self, files: Sequence[Path], *compared: Callable[[str], bool]) -> None:
        """Add the runs of other clones' tables. Raises `ValueError` where a run is here already with other numbers, or where runs of
        arms that are `compared` with each other (without any such: all) started from different `params.yaml`."""
        rows = self.rows()
        found = {(row["arm"], row["seed"], row["split"]): row for row in rows}
        for path in files:
            for row in self.rows(path):
                key = (row["arm"], row["seed"], row["split"])
                if found.setdefault(key, row) != row:
                    raise ValueError(f"{path}: {' '.join(key)} is in {self.path} with other numbers; a run counts once")
        for together in compared or (lambda arm: True,):
            if shas := self._different(row["params_sha"] for row in found.values() if together(row["arm"])):
                raise ValueError(
                    f"runs of different params.yaml ({', '.join(sorted(shas))}) cannot be paired; {self.path} is left as it was"
                )
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(row.values() for row in list(found.values())[len(rows) :])

    def scores(self, measure: str, splits: Callable[[str], bool]) -> dict[str, dict[str, float]]:
        """Arm -> seed -> mean of a measure over the splits that are asked for and have it."""
        found: dict[str, dict[str, list[float]]] = {}
        for row in self.rows():
            if splits(row["split"]) and row[measure]:
                found.setdefault(row["arm"], {}).setdefault(row["seed"], []).append(float(row[measure]))
        return {arm: {seed: mean(values) for seed, values in by_seed.items()} for arm, by_seed in found.items()}

    def seconds(self, arm: str) -> float:
        """Mean wall time of an arm's runs."""
        return mean(float(row["seconds"]) for row in self.rows() if row["arm"] == arm)


def is_test(split: str) -> bool:
    """Whether a split judges; anything is chosen on val splits, so they are not a test."""
    return not is_tuning(split)


def is_tuning(split: str) -> bool:
    return split.removesuffix("_captions").endswith("_val")


def pairs(scores: Mapping[str, float], others: Mapping[str, float]) -> list[float]:
    """Differences in points, by seed."""
    return [100 * (value - others[seed]) for seed, value in scores.items() if seed in others]


def interval(differences: Sequence[float]) -> str:
    """Mean and Student's 95 % interval of paired differences, in words."""
    if len(differences) < 2:
        return "" if not differences else f"{differences[0]:+.2f}"
    half = T_95[min(len(differences) - 1, max(T_95))] * stdev(differences) / math.sqrt(len(differences))
    return f"{mean(differences):+.2f} ({mean(differences) - half:+.2f} to {mean(differences) + half:+.2f})"
