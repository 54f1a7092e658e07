"""Starting a module under `accelerate launch`, with the processes that `launch:` asks for."""

import os
import subprocess
import sys

from ans.config import Launch


def launch(module: str, settings: Launch, *arguments: str) -> None:
    """Run `python -m module` in every process and wait. Raises `SystemExit` with its exit code on failure."""
    total = settings.processes * settings.machines
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(total)]
    command += ["--num_machines", str(settings.machines), "--machine_rank", str(settings.machine_rank)]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if total > 1:
        # accelerate's own CPU launcher wants MPI; its torchrun launcher works for gloo just as well.
        command += ["--multi_gpu", "--main_process_ip", settings.main_address, "--main_process_port", str(settings.main_port)]
    # An index of 8 GPUs per machine is accelerate's to see; threads are ours, or 8 processes would each take all cores.
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads(settings.processes)))}
    code = subprocess.run([*command, "--module", module, *arguments], env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def threads(processes: int) -> int:
    """Compute threads of each process of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // processes)
