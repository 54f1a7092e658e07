"""One step of a full-size Sa2VA-1B with random weights on this CPU: its time, and its peak of resident memory (bar: 20 GiB).

python -m tests.bench.scale supervised|dual [--smoke]      # four to five minutes each on one core; --smoke: a tiny model instead

seconds, peak_gib     of the step, and of the process until its end
finite, moved         whether all of the step's losses are finite; how many trained tensors it changed
said_tokens           length of the teacher's captions; 0 where no loop is run
loss, lr, grad_norm, loop1_*, loop2_*, ref_*, norm1_*, norm2_*, cosine_*, along_*    the step's values, as training logs them
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch

from ans.model.config import ModelConfig
from tests.bench import sizes
from tests.bench.gpu import micro_batches
from tests.bench.trainer import Trainer, preset


def one_step(objective: str, smoke: bool) -> dict[str, float]:
    """One step of Sa2VA-1B (`smoke`: of a tiny model) in float32, because few CPUs compute in bf16; one tile and short texts."""
    torch.manual_seed(0)
    size = ModelConfig.from_folder(sizes.REPOSITORY / "weights" / "tiny") if smoke else sizes.official("sa2va-1b")
    config = preset("tiny" if smoke else "sa2va-1b", precision="float32", referring={"objects_per_image": 1})
    trainer = Trainer.of_size(size, config)
    parameters = trainer.stepper.parameters
    before = [p.detach().clone() for p in parameters]
    start = time.perf_counter()
    values = trainer.step(micro_batches(trainer, (objective, 1, 16), 1))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
    return {
        "seconds": time.perf_counter() - start,
        "peak_gib": peak / 2**20,
        "finite": all(math.isfinite(value) for value in values.values()),
        "moved": sum(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)),
        "said_tokens": values.get("loop1_teacher_length", 0.0),
        **values,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objective", choices=("supervised", "dual"))
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    result = one_step(arguments.objective, arguments.smoke)
    print(json.dumps(result))
    sys.exit(0 if result["peak_gib"] < 20 and result["finite"] and result["moved"] else 1)
