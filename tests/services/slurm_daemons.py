"""A Slurm of one node without accounting, in a folder and on ports of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.servers import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
_SECONDS = 60.0  # to start

_CONFIGURATION = """\
ClusterName=cram
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Return what is not installed: slurmctld, slurmd and munged are often outside a user's PATH."""
    return [program for program in PROGRAMS if _path_of(program) is None]


def _path_of(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextlib.contextmanager
def slurm(folder: Path, cpus: int) -> Iterator[dict[str, str]]:
    """Run Slurm in `folder`, as root; yield the environment variables that its commands need."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o711)  # munged refuses a socket that others could replace
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    controller, daemon = free_ports(2)
    configuration = _CONFIGURATION.format(
        host=host, controller_port=controller, daemon_port=daemon, folder=folder, cpus=cpus
    )
    (folder / "slurm.conf").write_text(configuration)
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "pid-file", "log-file")]
    commands = [
        ["munged", "--force", "--foreground", f"--key-file={key}", f"--seed-file={folder}/munge.seed", *files],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context(open(folder / f"{command[0]}.out", "wb"))
            program = _path_of(command[0])
            assert program is not None
            process = subprocess.Popen([program, *command[1:]], env=os.environ | environment, stdout=log, stderr=log)
            stack.callback(_end, process)
            if command[0] == "munged":
                _wait_until(lambda: (folder / "munge.socket").exists(), folder)
        _wait_until(lambda: "idle" in _output(["sinfo", "--noheader", "--format=%T"], environment), folder)
        yield environment
        _output(["scancel", "--user=root"], environment)


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stdout


def _wait_until(is_true, folder: Path) -> None:
    ends = time.monotonic() + _SECONDS
    while not is_true():
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
        assert time.monotonic() < ends, f"Slurm does not start: {logs}"
        time.sleep(0.2)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
