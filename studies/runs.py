"""What studies have in common: runs through DVC in a work tree that is reset, and paired differences with their intervals."""

import hashlib
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
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


def pairs(scores: Mapping[str, float], others: Mapping[str, float]) -> list[float]:
    """Differences in points, by seed."""
    return [100 * (value - others[seed]) for seed, value in scores.items() if seed in others]


def interval(differences: Sequence[float]) -> str:
    """Mean and Student's 95 % interval of paired differences, in words."""
    if len(differences) < 2:
        return "" if not differences else f"{differences[0]:+.2f}"
    half = T_95[min(len(differences) - 1, max(T_95))] * stdev(differences) / math.sqrt(len(differences))
    return f"{mean(differences):+.2f} ({mean(differences) - half:+.2f} to {mean(differences) + half:+.2f})"
