"""The processes of a run, connected."""

import os
from typing import Literal

import torch
from accelerate import Accelerator


def connect(precision: Literal["float32", "bf16"]) -> Accelerator:
    """This process' place among those that `ans.launch` started, on GPUs where there are any, else on CPUs by gloo.

    Raises `RuntimeError` when the processes did not find each other: each would do the whole work alone and overwrite the rest.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if precision == "bf16" else "no")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise RuntimeError(f"{started} processes were started, but this one sees {accelerator.num_processes}; see `launch:`")
    return accelerator
