"""One step of a full-size Sa2VA-1B with random weights on this CPU: its time, and its peak of resident memory (bar: 20 GiB).

python -m tests.bench.scale supervised|dual      # four to five minutes each on one core
"""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import torch

from ans.config import load
from tests.bench import sizes
from tests.bench.gpu import Trainer, micro_batches

REPOSITORY = Path(__file__).parents[2]


def one_step(objective: str) -> dict[str, float]:
    """One step of a full-size Sa2VA-1B on the CPU, in float32, because few CPUs compute in bf16; one tile and short texts."""
    torch.manual_seed(0)
    config = load(REPOSITORY / "params.yaml")
    preset = dataclasses.replace(config.presets["sa2va-1b"].train, precision="float32", objects_per_image=1)
    trainer = Trainer(sizes.official("sa2va-1b"), config, preset, torch.device("cpu"))
    before = [p.detach().clone() for p in trainer.parameters]
    start = time.perf_counter()
    values = trainer.step(micro_batches(trainer, (objective, 1, 16), 1))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
    return {
        "seconds": time.perf_counter() - start,
        "peak_gib": peak / 2**20,
        "finite": all(math.isfinite(value) for value in values.values()),
        "moved": sum(not torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True)),
        "said_tokens": values.get("loop1_teacher_length", 0.0),
        **values,
    }


if __name__ == "__main__":
    result = one_step(sys.argv[1])
    print(json.dumps(result))
    sys.exit(0 if result["peak_gib"] < 20 and result["finite"] and result["moved"] else 1)
