"""Starting a module in the processes that `launch:` asks for."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

from ans.config.schema import Launch
from ans.stage import dvc_process

STOPPED = 128 + signal.SIGTERM
"""Exit status of a module that was asked to stop and did."""

PATIENCE = 3600
"""Seconds after SIGTERM in which a step may end and its state be saved; PyTorch's launcher kills what lives longer."""


def launch(module: str, settings: Launch, *arguments: str) -> None:
    """Run `python -m module` in every process and wait. Raises `SystemExit` with its exit code on failure.

    One process is started as it is, several by PyTorch's launcher; a user's `accelerate config` has no say. SIGTERM and Ctrl-C
    are handed on to every process as SIGTERM, which a training answers by saving its state. The same happens when the DVC that
    started this stage ends: nobody would make use of the results.
    """
    command = [sys.executable, "-m", module, *arguments]
    if settings.processes * settings.machines > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--shutdown_timeout", str(PATIENCE)]
        launcher += ["--nproc_per_node", str(settings.processes)]
        if settings.machines == 1:
            launcher.append("--standalone")  # they meet at a free port, so two runs on one machine do not meet
        else:
            launcher += ["--nnodes", str(settings.machines), "--node_rank", str(settings.machine_rank)]
            launcher += ["--master_addr", settings.main_address, "--master_port", str(settings.main_port)]
        command = [*launcher, "--module", module, *arguments]
    # Threads are ours to share out, or 8 processes would each take all cores.
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads(settings.processes)))}
    process: subprocess.Popen[bytes] | None = None
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        if process is not None and _alive(process.pid):
            os.killpg(process.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    dvc = dvc_process()
    try:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        if stopped:  # before there was a process to hand it to
            stop()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            if dvc is not None and not stopped and _ended(dvc):
                stop()
        while stopped and _alive(process.pid):  # a launcher may end before what it started
            time.sleep(0.1)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code := process.returncode:
        raise SystemExit(STOPPED if stopped else code)


def _ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def threads(processes: int) -> int:
    """Compute threads of each process of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
