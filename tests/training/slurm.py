"""A SLURM on this machine, as Debian's package slurm-wlm has it: a controller and two nodes, for tests."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel")
NODES = ("m0", "m1")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=m0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=m1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=m0,m1 Default=YES State=UP
"""


def missing() -> str | None:
    """Why there can be no SLURM here, or None."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        return f"no {', '.join(absent)} on this machine: apt-get install --no-install-recommends slurm-wlm munge"
    return None if os.geteuid() == 0 else "SLURM's daemons are started as root"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """What the environment of SLURM's commands needs. Raises `RuntimeError` with the daemons' messages where they do not work."""
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    key, configuration = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    text = CONFIGURATION.format(host=socket.gethostname().split(".")[0], user=getpass.getuser(), folder=folder, ports=_ports(3))
    configuration.write_text(text, encoding="utf-8")
    environment = {"SLURM_CONF": str(configuration), "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin"}
    places = {name: folder / f"munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={places.pop('socket')}"]
    daemons = [
        [*munged, *(f"--{name}={path}" for name, path in places.items())],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in NODES),
    ]
    started = []
    try:
        with open(folder / "daemons.txt", "wb") as said:
            for daemon in daemons:
                started.append(subprocess.Popen(daemon, env=os.environ | environment, stdout=said, stderr=said))
                while daemon is daemons[0] and not (folder / "munge.socket").exists() and started[0].poll() is None:
                    time.sleep(0.05)
        deadline = time.monotonic() + 30
        while command(environment, "sinfo", "--noheader", "--format=%D %t").stdout.strip() != f"{len(NODES)} idle":
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "daemons.txt").read_text(encoding="utf-8", errors="replace")[-4000:])
            time.sleep(0.2)
        yield environment
    finally:
        command(environment, "scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(30)


def command(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60)


def _ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
