"""Starting a module under `accelerate launch`, with the processes that `launch:` asks for."""

import os
import signal
import subprocess
import sys
import time

from ans.config import Launch


def launch(module: str, settings: Launch, *arguments: str) -> None:
    """Run `python -m module` in every process and wait. Raises `SystemExit` with its exit code on failure.

    SIGTERM and Ctrl-C are handed on to every process as SIGTERM, which a training answers by saving its state.
    """
    total = settings.processes * settings.machines
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(total)]
    command += ["--num_machines", str(settings.machines), "--machine_rank", str(settings.machine_rank)]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--module"]
    if total > 1:
        # accelerate's own CPU launcher wants MPI; its torchrun launcher works for gloo just as well.
        command += ["--multi_gpu", "--main_process_ip", settings.main_address, "--main_process_port", str(settings.main_port)]
    else:
        command += ["--quiet"]  # the process says itself what failed; the launcher would add a traceback of its own
    # An index of 8 GPUs per machine is accelerate's to see; threads are ours, or 8 processes would each take all cores.
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads(settings.processes)))}
    process = subprocess.Popen([*command, module, *arguments], env=environment, start_new_session=True)
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        os.killpg(process.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
        while stopped and _alive(process.pid):  # a launcher does not wait for what it started
            time.sleep(0.1)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code:
        raise SystemExit(128 + signal.SIGTERM if stopped else code)


def threads(processes: int) -> int:
    """Compute threads of each process of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
