"""Every benchmark runs to its end, and its last line is one JSON object with the keys that its docstring explains.

`--smoke` is the code of `--quick` on less data, so the intervals below are wide: they hold the sense of a number (a ratio's
direction, a share below 1, bytes and not kilobytes), not its value.
"""

import json
import math
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests import forked

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]

ALONE = ("video", "serve")
"""Benchmarks of the memory that their process takes, which a forked one has taken already; and one that starts a process itself."""

SANE = {
    "step": {
        "dual_over_parts": (0.5, 2),
        "surgery_ema_share": (0, 0.5),
        "peak_dual_over_allowed": (0.1, 1),
        "teacher_extra_over_trained": (0.9, 2),
        "gumbel_k512_over_k8": (0.9, 1.5),
        "gumbel_k512_over_k8_seconds": (0.2, 5),
    },
    "evaluation": {
        "seven_over_ideal": (0.2, 100),
        "seven_over_single": (1, 100),
        "one_over_single": (0.2, 100),
        "n_masks_differ": (0, 0),
        "worst_logit": (0, 0),
        "n_masks": (28, 28),  # 4 images of 7 expressions
        "peak_bytes": (10**5, 10**9),
        "peak_over_quarter": (0.2, 10),
    },
    "evaluation --size medium": {
        "seven_over_ideal": (0.2, 20),
        "one_over_single": (0.2, 20),
        "describe_one": (0.2, 20),
        "describe_seven": (0.2, 20),
        "of_limit": (0.005, 1.2),
    },
    "index": {
        "sa1b_over_bare": (0.05, 20),
        "sa1b_over_tuned": (0.05, 20),
        "two_core_speedup": (0.05, 4),
        "peak_over_tenth": (0.2, 10),
        "listing_slope": (-20_000, 20_000),
        "open_ms": (0, 1000),
        "sample_ms": (0, 1000),
        "decode_over_bare": (0.05, 2),
        "damaged": (40, 40),
        "unnamed": (0, 0),
    },
    "damage": {
        "damaged": (2000, 2000),
        "kept": (100, 1000),
        "said": (10, 500),
        "refused": (1000, 1900),
        "tracebacks": (0, 0),
        "unnamed": (0, 0),
        "changed": (0, 0),
    },
    "loader": {"over_bare": (0.1, 10), "images_per_s": (0.2, 100), "need_per_s": (5, 30), "cores": (0.1, 50)},
    "convert": {
        "anon_over_largest_shard": (0, 100),
        "anon_gb": (0, 1),
        "anon_total_gb": (0.01, 2),
        "largest_shard_gb": (0.0005, 0.01),  # the largest tensor is 1 MB in the base's bf16, 2 MB as written in float32
        "written_gb": (0.005, 0.05),
        "seconds": (0, 300),
    },
    "masks": {"encode_over_native": (0.1, 10), "decode_over_native": (0.1, 10), "differ": (0, 1e-4)},
    "serve": {"same_over_single": (0.1, 100), "other_over_single": (0.1, 100)},
    "video": {
        "peak_long": (-(10**8), 10**9),  # so small a clip needs less than the allocator keeps
        "peak_ratio": (-4, 1.5),
        "shared_over_single": (0.1, 0.7),
        "masks_differ": (0, 0),
    },
    "scale dual": {
        "seconds": (0, 300),
        "peak_gib": (0.1, 4),
        "finite": (1, 1),
        "moved": (100, 1000),
        "said_tokens": (1, 16),
        "grad_norm": (1e-6, 1e6),
        "loop1_mask": (1e-6, 100),
        "loop2_mask": (1e-6, 100),
    },
}


@pytest.mark.parametrize("name", SANE)
def test_benchmark(name: str) -> None:
    bench, *arguments = name.split()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if bench in ALONE:
        command = [sys.executable, "-m", f"tests.bench.{bench}", *arguments, "--smoke"]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    else:
        done = forked.run(f"tests.bench.{bench}", *arguments, "--smoke", cwd=REPOSITORY, env=environment)
    assert not done.returncode, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    explained = import_module(f"tests.bench.{bench}").__doc__
    assert explained is not None
    for key, value in result.items():
        words = rf"\b({re.escape(key)}\b|{key.partition('_')[0]}_\*)"
        assert re.search(words, explained), f"{key} is not in the docstring"
        assert math.isfinite(value), (key, value)
    for key, (low, high) in SANE[name].items():
        assert low <= result[key] <= high, (key, result[key])
