"""Jobs as arrays of Slurm jobs, through submitit."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError
from cram_composer.jobs.runner import POLL_SECONDS, Call, JobResult, Runner
from cram_composer.storage.files import read_json, write_json

_CANCEL_SECONDS = 120.0
_QUEUE_SECONDS = 30  # between calls of squeue
_IDS = "jobs.json"  # in the folder of a runner: the ids of its jobs


_LARGE = "compare cpus_per_task, gpus_per_node, mem_gb and timeout_min with what sinfo shows of the partition"
_CHOOSE = "check slurm_partition, slurm_account and slurm_qos"
_NEEDS_HELP = {  # Slurm's reasons why a job waits that a user must do something about
    "BadConstraints": _LARGE,
    "PartitionConfig": _LARGE,
    "PartitionNodeLimit": _LARGE,
    "PartitionTimeLimit": _LARGE,
    "ReqNodeNotAvail": _LARGE,
    "InvalidAccount": _CHOOSE,
    "InvalidQOS": _CHOOSE,
    "PartitionDown": _CHOOSE,
    "PartitionInactive": _CHOOSE,
    "JobHeldAdmin": "ask the cluster's administrators",
    "JobHeldUser": "scontrol release lets them start",
}
_warned: set[str] = set()


class SlurmRunner(Runner):
    """Submits all ready jobs as one array."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], asked_by: str) -> None:
        """Prepare arrays in `folder`, which all nodes share, with submitit's `settings`, such as timeout_min."""
        self._folder = folder
        self._settings = settings
        self._asked_by = asked_by
        self._ids: list[str] = []
        self._jobs: dict[int, Any] = {}

    def running(self) -> dict[int, float]:
        return dict.fromkeys(self._jobs, 0.0)

    def start(self, ready: Mapping[int, Call]) -> list[int]:
        """Submit an array. Raises CramError if Slurm is missing or rejects it."""
        if not ready:
            return []
        import submitit

        _watch_queue()
        try:
            executor = submitit.AutoExecutor(folder=self._folder, cluster="slurm")
            executor.update_parameters(**self._settings)
            jobs = executor.submit_array(list(ready.values()))
        except Exception as error:  # of several types: no Slurm, an unknown setting or partition, too large an array
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise CramError(f"{self._asked_by}: Slurm cannot be used: {reason} (array of {len(ready)} jobs)") from error
        self._jobs.update(zip(ready, jobs, strict=True))
        self._ids += [job.job_id for job in jobs]
        write_json(self._folder / _IDS, self._ids)
        return list(ready)

    def finished(self) -> list[JobResult]:
        # The result file appears before the job has left the queue.
        ended = [index for index, job in self._jobs.items() if job.paths.result_pickle.exists() or job.done()]
        if not ended:
            time.sleep(POLL_SECONDS)
        return [self._result(index, self._jobs.pop(index)) for index in ended]

    def _result(self, index: int, job: Any) -> JobResult:
        import submitit

        error = job.exception()
        if error is None:
            return JobResult(index, job.result())
        # Keep the text after the frames of the job's traceback, or its log; drop submitit's advice that follows.
        lines = re.split(r"\n[ \t].*", str(error).partition("You can check")[0])[-1].strip("-\n")
        reason = " ".join(lines.split()).removeprefix(f"{CramError.__module__}.{CramError.__name__}: ")[:300]
        killed = not isinstance(error, submitit.core.utils.FailedJobError)
        return JobResult(index, error=f"{reason}; logs in {self._folder}", killed=killed)

    def cancel(self) -> None:
        _cancel(list(self._jobs.values()))
        self._jobs = {}


@cache
def _watch_queue() -> None:
    """Let submitit ask squeue for the states of jobs, not sacct, which without accounting never says that one ended."""
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class QueueWatcher(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            if not self._registered - self._finished:
                return None
            return ["squeue", "--noheader", "--array", "--format=%i %T %r", f"--user={getpass.getuser()}"]

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            queued = {
                job_id: (state, why) for job_id, state, why in (line.split(maxsplit=2) for line in text.splitlines())
            }
            waiting = self._registered & queued.keys()
            _warn_of_reasons({queued[job_id][1].partition(",")[0] for job_id in waiting})
            gone = ("ENDED", "")
            return {
                job_id: {"JobID": job_id, "State": _state(queued.get(job_id, gone)[0])} for job_id in self._registered
            }

    SlurmJob.watcher = QueueWatcher(delay_s=_QUEUE_SECONDS)
    logging.getLogger("submitit").setLevel(logging.ERROR)  # a failed call is repeated after the delay


def _warn_of_reasons(reasons: set[str]) -> None:
    """Print a line, once, for each reason why jobs wait that does not pass by itself."""
    for reason in sorted(reasons & _NEEDS_HELP.keys() - _warned):
        _warned.add(reason)
        print(f"warning: Slurm does not start jobs: {reason}; {_NEEDS_HELP[reason]}", file=sys.stderr, flush=True)


def _state(state: str) -> str:
    """Return a state that submitit knows: of the states of a job that has not ended, it takes some for an end."""
    return state if state in ("ENDED", "PENDING") else "RUNNING"


def allotted_cpus() -> int:
    """Return the number of CPUs of the Slurm job that runs this process."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))


def left_over(folder: Path) -> list[str]:
    """Return the ids of jobs that a killed SlurmRunner of `folder` left in Slurm's queue.

    Raises:
        CramError: squeue fails.
    """
    if not (folder / _IDS).is_file():
        return []
    command = ["squeue", "--noheader", "--format=%F", f"--user={getpass.getuser()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603 - fixed
        queued = done.stdout.split()
    except OSError:  # no Slurm on this machine
        return []
    except subprocess.SubprocessError as error:
        raise CramError(f"{folder}: may have jobs in Slurm's queue: {error}; try again when squeue works") from error
    return [job_id for job_id in read_json(folder / _IDS) if job_id.partition("_")[0] in queued]


def cancel_left_over(folder: Path) -> int:
    """Cancel the jobs of `left_over`; return their number."""
    ids = left_over(folder)
    if ids:
        from submitit import SlurmJob

        _watch_queue()
        _cancel([SlurmJob(folder=folder, job_id=job_id) for job_id in ids])
    return len(ids)


def _cancel(jobs: Sequence[Any]) -> None:
    """Cancel submitit's jobs and wait until they have ended, so that no two write the same files."""
    with contextlib.suppress(OSError):  # scancel is not installed
        for job in jobs:
            job.cancel(check=False)
        ends = time.monotonic() + _CANCEL_SECONDS
        while time.monotonic() < ends and not all(job.done(force_check=True) for job in jobs):
            time.sleep(2.0)
