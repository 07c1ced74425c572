"""Arrays of Slurm jobs through submitit, with one clear line for what Slurm refuses."""

from __future__ import annotations

import contextlib
import getpass
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError

_CANCEL_SECONDS = 120.0


def submit(
    folder: Path, settings: dict[str, Any], function: Callable[..., Any], *arguments: Sequence[Any], asked_by: str
) -> list[Any]:
    """Submit one array with a job for each set of arguments, and return submitit's jobs.

    Args:
        folder: shared by all nodes; gets the jobs' files and logs.
        settings: submitit's parameters, such as timeout_min or slurm_partition.
        function: importable; called with one item of every sequence.
        arguments: sequences of the same length.
        asked_by: what an error is blamed on.

    Raises:
        CramError: there is no Slurm, it has no such setting, or takes no such array.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(**settings)
    except Exception as error:  # submitit raises several types for a missing Slurm and for unknown settings
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CramError(f"{asked_by}: executor=slurm cannot be used: {reason}") from error
    try:
        return list(executor.map_array(function, *arguments))
    except Exception as error:  # what sbatch said: an unknown partition, a larger array than is allowed
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CramError(f"{asked_by}: Slurm takes no array of {len(arguments[0])} jobs: {reason[:300]}") from error


def still_queued(ids: Sequence[str]) -> list[str]:
    """Those of the array jobs `ids` that wait or run; none where Slurm cannot be asked."""
    asked = ["squeue", "--noheader", "--format=%F", f"--user={getpass.getuser()}"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [one for one in ids if one in said]


def is_over(job: Any) -> bool:
    """Whether a job has ended; one that has left its result is over before Slurm, asked once a minute, says so."""
    return bool(job.paths.result_pickle.exists() or job.done())


def cancel(jobs: Sequence[Any]) -> None:
    """Cancel jobs and wait until they are over, so that no two write the same files."""
    with contextlib.suppress(OSError):  # no scancel here
        for job in jobs:
            job.cancel(check=False)
        ends = time.monotonic() + _CANCEL_SECONDS
        while time.monotonic() < ends and not all(job.done(force_check=True) for job in jobs):
            time.sleep(2.0)
