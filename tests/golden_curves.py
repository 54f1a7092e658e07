"""Golden curves: what a few dozen steps of training give on the small world, kept in `tests/golden/curves/<preset>.tsv`.

    python -m tests.golden_curves --renew     # after a change that is meant to alter results; its commit says so
    python -m tests.golden_curves --measure   # how far honest noise goes: where TOLERANCE comes from (minutes)

A row of the table is a curve, a column is a step. Beside the run's own curves there are digests of each trained group: how far it
has moved from the base (`moved_<group>`), and two projections of that movement, on random signs of a fixed seed, as shares of it
(`projection1_<group>` and `projection2_<group>`). Dropout is off: what it draws depends on the machine's libraries, and
`tests/training/test_independent_step.py` holds it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ans.checkpoints.base import shard
from tests import pipeline
from tests.training import plain
from tests.training.reference_case import Changes, World

FOLDER = pipeline.REPOSITORY / "tests" / "golden" / "curves"
CASES: dict[str, Changes] = {
    "tiny": {"steps": 24, "dropout": 0.0},
    "lisa-tiny": {"epochs": 12, "batch": 4, "dropout": 0.0, "validation": None},  # of two steps each
}
"""Preset -> what differs from `params.yaml` (and `tests.pipeline.small_values`)."""

TOLERANCE: dict[str, dict[int, tuple[float, float]]] = {
    "tiny": {6: (1e-4, 5e-3), 12: (2e-2, 5e-2), 24: (1e-1, 5e-1)},
    "lisa-tiny": {24: (1e-4, 5e-3)},
}
"""Up to a step: by which share of itself a value may differ, for losses and the way moved, and for what is in `OF_GRADIENTS`.

Measured (`--measure`, ten sources of noise, torch 2.13 on an x86 CPU) were at most 1.3e-5 and 8e-4 up to step 6 of `tiny`. At its
step 7 rounding decides a yes or no (most of the runs with other weights take the other way), which is seen ever after: 3e-3 and
1.4e-2 up to step 12, 1.7e-2 and 9e-2 up to the last. `lisa-tiny` decides nothing: 1.7e-5 and 7e-4 up to its last step.
"""

OF_GRADIENTS = ("grad_norm", "norm1_", "norm2_", "cosine_", "loop1_caption_gradient", "projection")

NOISE = {
    "another machine's kernels": {"ATEN_CPU_CAPABILITY": "default"},
    "another machine's matrix products": {"MKL_CBWR": "COMPATIBLE"},
    "two threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
}
"""What must not matter, as environments of a run; and weights that are off by their last bit, in `NUDGES` ways."""

NUDGES = 4

Table = dict[str, dict[int, float]]


def record(preset: str, world: World, folder: Path) -> Table:
    """Train, and sum up what came of it: curve -> step -> value."""
    states = world.run(preset, CASES[preset], folder)
    start = plain.copies(plain.select(world.model(preset, CASES[preset]), world.settings(preset, CASES[preset])))
    table: Table = {}
    for step, state in enumerate(states, 1):
        for name, value in {**state.values, **digest(start, state.trained)}.items():
            if not name.startswith("along_"):  # a cosine and two norms, which are there
                table.setdefault(name, {})[step] = value
    return table


def digest(start: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each group the norm of its change, and two projections of the change as shares of that norm."""
    changes: dict[str, list[Tensor]] = {}
    for name in sorted(trained):
        if not re.match(plain.NO_GRADIENT, name):
            change = trained[name].double() - start[name].double()
            changes.setdefault(plain.trained_group(name), []).append(change.flatten())
    found = {}
    for group, parts in changes.items():
        change = torch.cat(parts)
        found[f"moved_{group}"] = float(change.norm())
        generator = torch.Generator().manual_seed(len(change))
        for number in (1, 2):
            signs = 2.0 * torch.randint(0, 2, change.shape, generator=generator) - 1
            found[f"projection{number}_{group}"] = float(change @ signs.double() / change.norm())
    return found


def read(preset: str, folder: Path = FOLDER) -> Table:
    header, *rows = (line.split("\t") for line in (folder / f"{preset}.tsv").read_text(encoding="utf-8").splitlines())
    steps = [int(step) for step in header[1:]]
    return {name: {s: float(v) for s, v in zip(steps, values, strict=True) if v} for name, *values in rows}


def write(preset: str, table: Table, folder: Path = FOLDER) -> None:
    steps = sorted({step for values in table.values() for step in values})
    lines = ["\t".join(["curve", *map(str, steps)])]
    for name in sorted(table):
        lines.append("\t".join([name, *(f"{table[name][step]:.6g}" if step in table[name] else "" for step in steps)]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{preset}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def distances(found: Table, kept: Table) -> dict[tuple[int, str], float]:
    """(step, curve) -> how far the two differ, as a share of the value; infinite where only one has it."""
    result = {}
    for name in found.keys() | kept.keys():
        one, other = found.get(name, {}), kept.get(name, {})
        for step in one.keys() | other.keys():
            distance = float("inf")
            if step in one and step in other:
                # cosines and projections may be near zero by themselves, and a share may be none
                size = 1.0 if name.startswith(("cosine_", "projection")) else abs(other[step]) + 1e-3
                distance = abs(one[step] - other[step]) / size
            result[step, name] = distance
    return result


def allowed(preset: str, step: int, name: str) -> float:
    """How far a value may be from the kept one."""
    losses, gradients = next((shares for last, shares in TOLERANCE[preset].items() if step <= last), (0.0, 0.0))
    return gradients if name.startswith(OF_GRADIENTS) else losses


def differences(preset: str, found: Table, kept: Table) -> list[str]:
    """What is further from the kept values than noise goes, a line each, in the order of the steps."""
    lines = []
    for (step, name), distance in sorted(distances(found, kept).items()):
        if distance > allowed(preset, step, name):
            now, before = (table.get(name, {}).get(step) for table in (found, kept))
            lines.append(f"step {step}: {name} is {now}, kept is {before} (off by {distance:.1e})")
    return lines


def nudge(world: World, preset: str, seed: int) -> None:
    """Move each weight of a base to the next float32 above or below, or leave it, at random."""
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / preset
        shutil.copytree(pipeline.REPOSITORY / "weights" / preset, source)
        weights = load_file(source / "model.safetensors")
        for name, tensor in weights.items():
            way = torch.randint(0, 3, tensor.shape, generator=generator) - 1.0
            weights[name] = torch.where(way == 0, tensor, torch.nextafter(tensor, way * torch.inf))
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        shutil.rmtree(world.base(preset))
        shard(source, world.base(preset))


def record_all(folder: Path, nudged: int = 0) -> dict[str, Table]:
    """The tables of all presets, in a world made below `folder`; `nudged`: the seed of a nudge, 0 for none."""
    world = World.prepare(folder)
    for preset in CASES:
        if nudged:
            nudge(world, preset, nudged)
    return {preset: record(preset, world, folder / preset) for preset in CASES}


def measure() -> None:
    """Print for each preset and source of noise how far its runs are from an undisturbed one: the largest distance of a loss and
    of a gradient, up to each step of TOLERANCE."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {"nothing": ({}, 0)} | {name: (environment, 0) for name, environment in NOISE.items()}
        runs |= {f"weights off by a bit ({seed})": ({}, seed) for seed in range(1, NUDGES + 1)}
        undisturbed: dict[str, Table] = {}
        for number, (name, (environment, seed)) in enumerate(runs.items()):
            out = Path(folder) / str(number)
            command = [sys.executable, "-m", "tests.golden_curves", "--record", str(out), "--nudged", str(seed)]
            subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
            for preset in CASES:
                table = read(preset, out)
                far = distances(table, undisturbed.setdefault(preset, table))
                parts = []
                for last in TOLERANCE[preset]:
                    of = {kind: [0.0] for kind in (True, False)}
                    for (step, curve), distance in far.items():
                        if step <= last:
                            of[curve.startswith(OF_GRADIENTS)].append(distance)
                    parts.append(f"to step {last}: {max(of[False]):.1e} {max(of[True]):.1e}")
                print(f"{preset:<10}{name:<36}{'   '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true", help="keep what the code does now")
    parser.add_argument("--measure", action="store_true", help="print how far noise goes")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="write the tables there")
    parser.add_argument("--nudged", type=int, default=0, metavar="SEED", help="with --record: of weights off by a bit")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
    elif arguments.renew or arguments.record:
        with tempfile.TemporaryDirectory() as folder:
            for preset, table in record_all(Path(folder), arguments.nudged).items():
                write(preset, table, arguments.record or FOLDER)
    else:
        parser.error("say --renew or --measure")


if __name__ == "__main__":
    main()
