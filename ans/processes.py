"""The processes of a run, connected."""

import os
import signal
import threading
import time
from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from ans.launch import LAUNCHER

TIMEOUT = timedelta(hours=1)
"""After which a process that waits for the others gives up. The first one does some things alone, such as reading large indexes."""


def connect(precision: Literal["float32", "bf16"]) -> Accelerator:
    """Take this process' place among those that `ans.launch` started, on GPUs where there are any, else on CPUs by gloo. When the
    launcher ends, however it does, this process gets a SIGTERM.

    Raises `RuntimeError` when the processes did not find each other: each would do the whole work alone and overwrite the rest.
    """
    if LAUNCHER in os.environ:
        threading.Thread(target=_end_with, args=[int(os.environ[LAUNCHER])], daemon=True).start()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise RuntimeError(f"{started} processes were started, but this one sees {accelerator.num_processes}; see `launch:`")
    return accelerator


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
