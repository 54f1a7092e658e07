"""Starting a module in the processes that `launch:` asks for, and ending them together.

Stages call `launch`. Where several machines take part, each runs `python -m ans.launch MODULE` for its own processes: SLURM starts it,
or people do, on machines 1 and up.
"""

import argparse
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ans.config import load
from ans.config.schema import Launch
from ans.errors import FAILURES, run
from ans.stage import dvc_process

LAUNCHER = "ANS_LAUNCHER"
"""Environment variable with the process id of the launcher, in the processes that it started."""

STOPPED = 128 + signal.SIGTERM
"""Exit status of a module that was asked to stop and did."""

ASKED_BY_SRUN = signal.SIGUSR1
"""What srun hands on to every process of its tasks, to ask them to stop: at a SIGTERM of its own it kills them at once."""

POLL = 0.1
"""Seconds between two looks at the processes."""

GRACE = 1.0
"""Seconds that the others have, after one has failed, to fail by themselves: an error of the settings is every process's."""


@contextmanager
def importing() -> Iterator[None]:
    """Import within what a process is made of, PyTorch and the like: a million objects that stay, among which Python would look for
    garbage again and again, now and later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def launch(module: str, settings: Launch, *arguments: str) -> None:
    """Run `python -m module` in every process of the run and wait. Raises `SystemExit` with its exit code on failure.

    SIGTERM and Ctrl-C are handed on to every process as SIGTERM, which a training answers by saving its state, however long its
    step takes. The same happens when the DVC that started this stage ends: nobody would make use of the results. When a process
    fails, the others, which would wait for it, are killed, and the error that came first is said once.
    """
    if settings.scheduler == "slurm":
        machines = ["srun", f"--nodes={settings.machines}", f"--ntasks={settings.machines}", "--ntasks-per-node=1"]
        # the job's script runs on its first machine, which is machine 0
        this = ["--main-address", socket.gethostname(), "--main-port", str(_free_port(""))]
        command = [*machines, "--kill-on-bad-exit=1", sys.executable, "-m", "ans.launch", *this, module, *arguments]
        together([(command, {})], ask=lambda srun: srun.send_signal(ASKED_BY_SRUN))
    else:
        start(module, settings, 0, arguments)


def start(module: str, settings: Launch, machine: int, arguments: Sequence[str]) -> None:
    """Run the module in the processes of one machine; see `launch`."""
    command = [sys.executable, "-m", module, *arguments]
    together([(command, places) for places in environments(settings, machine)])


def environments(settings: Launch, machine: int) -> list[dict[str, str]]:
    """Return what each process of a machine is told by its environment: threads, its place, and where the first one is met, as PyTorch
    reads it. On one machine the processes meet at a free port, so two runs there do not meet."""
    # Threads are ours to share out, or 8 processes would each take all cores.
    common = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads(settings.processes)))}
    world = settings.processes * settings.machines
    if world == 1:
        return [common]
    address, port = (
        (settings.main_address, settings.main_port) if settings.machines > 1 else ("127.0.0.1", _free_port("127.0.0.1"))
    )
    common |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(settings.processes)}
    ranks = [(machine * settings.processes + local, local) for local in range(settings.processes)]
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(local)} for rank, local in ranks]


def _terminate(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)


def together(
    commands: Sequence[tuple[list[str], dict[str, str]]], ask: Callable[[subprocess.Popen[bytes]], None] = _terminate
) -> None:
    """Run commands, each with what its environment has besides, until all have ended, stopped or failed together. `ask` asks one
    to stop."""
    processes: list[subprocess.Popen[bytes]] = []
    failed: list[tuple[int, int]] = []
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        for process in processes:
            ask(process)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, ASKED_BY_SRUN)}
    dvc = dvc_process()
    with tempfile.TemporaryDirectory(prefix="ans-failures-") as failures:
        here = {LAUNCHER: str(os.getpid())} | ({FAILURES: failures} if len(commands) > 1 else {})
        try:
            for command, environment in commands:
                processes.append(subprocess.Popen(command, env=os.environ | here | environment, start_new_session=True))
            if stopped:  # before all were there to be told
                stop()
            while running := [process for process in processes if process.poll() is None]:
                with suppress(subprocess.TimeoutExpired):
                    running[0].wait(POLL)
                if not stopped and dvc is not None and _ended(dvc):
                    stop()
                if not stopped and any(process.poll() for process in processes):
                    break
            failed = [(place, process.returncode) for place, process in enumerate(processes) if process.poll()]
            if any(process.poll() is None for process in processes):
                time.sleep(GRACE)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for process in processes:
                if process.poll() is None or stopped:  # what a process has started may outlive it
                    _signal(process, signal.SIGKILL)
                    process.wait()
        if failed and stopped:
            raise SystemExit(STOPPED)
        if failed:
            print(_first(failed, Path(failures)), file=sys.stderr, end="")
            raise SystemExit(next((code for _, code in failed if code > 0), 128 - failed[0][1]))


def threads(processes: int) -> int:
    """Compute threads of each process of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def _first(failed: Sequence[tuple[int, int]], failures: Path) -> str:
    """Return the message about the processes that failed first, each with its place and exit code: the error that came first. One
    that is no user's has printed its traceback itself."""
    place, code = failed[0]
    if all(code < 0 for _, code in failed):  # what others say, who lost it, is no reason
        why = "; the system does that when memory runs out" if code == -signal.SIGKILL else ""
        return f"error: process {place} of this machine was ended by {signal.Signals(-code).name}{why}\n"
    messages = sorted(failures.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return messages[0].read_text(encoding="utf-8") if messages else ""


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _free_port(address: str) -> int:
    with socket.socket() as listener:
        listener.bind((address, 0))
        return int(listener.getsockname()[1])


def _ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ans.launch", description="This machine's processes of a run on several.")
    place = os.environ.get("SLURM_NODEID")
    parser.add_argument("--machine", type=int, default=place, required=place is None, help="number of this machine, from 0")
    parser.add_argument("--main-address", help="address of machine 0; default: launch.main_address")
    parser.add_argument("--main-port", type=int, help="a free port of machine 0; default: launch.main_port")
    parser.add_argument("module", help="ans.training or ans.evaluation")
    parser.add_argument("arguments", nargs="*", help="of the module: for ans.evaluation the variant")
    given = parser.parse_args()
    settings = load().launch
    if not 0 <= given.machine < settings.machines:
        raise ValueError(f"--machine {given.machine}: must be below launch.machines, {settings.machines}")
    places = {"main_address": given.main_address, "main_port": given.main_port}
    settings = settings.model_copy(update={name: place for name, place in places.items() if place is not None})
    start(given.module, settings, given.machine, given.arguments)


if __name__ == "__main__":
    run(main)
