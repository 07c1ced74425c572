"""Where the tasks of a phase run: in this process, in several on this machine, or as an array of Slurm jobs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import Any

from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.data.pipeline.progress import print_status
from cram_composer.data.pipeline.tasks import failure_file, run_task
from cram_composer.errors import CramError
from cram_composer.jobs import slurm
from cram_composer.jobs.processes import end_with_parent
from cram_composer.storage.files import read_json, write_json

# Not forked from this process, in which the tokenizers library has threads, but on Linux from one that has imported
# what the tasks need: once, and in memory that all of them share.
_START = "forkserver" if sys.platform == "linux" else "spawn"
_PRELOAD = ["streaming", "cram_composer.data.pipeline.tasks"]
_SUBMITTED = "slurm-jobs.json"
_SLURM_DEFAULTS = {"timeout_min": 24 * 60, "cpus_per_task": 2, "mem_gb": 4}


class Executor:
    """Runs tasks; a context manager that keeps its processes from phase to phase."""

    def __init__(self, config: DataBuildConfig, progress: bool) -> None:
        self._config = config
        self._progress = progress
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._jobs = min(config.jobs or cores, config.partitions)
        self._threads = max(cores // self._jobs, 1)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Executor:
        if self._jobs > 1 and self._config.executor == "local" and _START == "forkserver":
            forkserver.set_forkserver_preload(_PRELOAD)
            forkserver.ensure_running()  # it imports while this process does what comes before the first phase
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, root: Path, phase: str, partitions: list[int]) -> None:
        """Run a phase for the given partitions. Raises the CramError of the first task that fails."""
        if self._config.executor == "slurm":
            _slurm(root, phase, partitions, self._config, self._progress)
        elif self._jobs == 1:
            for partition in partitions:
                run_task(root, phase, partition, self._progress)
        else:
            self._processes(root, phase, partitions)

    def _processes(self, root: Path, phase: str, partitions: list[int]) -> None:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._jobs, get_context(_START), initializer=_begin, initargs=(self._threads,)
            )
        started = time.monotonic()
        waiting: set[Future] = set()
        try:
            for partition in partitions:
                waiting.add(self._pool.submit(run_task, root, phase, partition))
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                _tell(self._progress, phase, len(partitions) - len(waiting), len(partitions), started)
        except BrokenProcessPool:
            raise CramError(
                f"data build: a process of phase '{phase}' was killed (out of memory?); set jobs lower and start again"
            ) from None


def _tell(progress: bool, phase: str, done: int, total: int, started: float) -> None:
    print_status(progress, f"{phase}: {done} of {total} partitions done, {time.monotonic() - started:.0f} s")


def _begin(threads: int) -> None:
    """Set up a process: its threads, and that it ends with the one that started it."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    end_with_parent(signal.SIGTERM)
    build = parent_process()
    if build is None or not build.is_alive():  # it has ended already
        os._exit(1)


def _slurm(root: Path, phase: str, partitions: list[int], config: DataBuildConfig, progress: bool) -> None:
    settings: dict[str, Any] = {**_SLURM_DEFAULTS, "name": f"cram-data-{phase}", **config.slurm}
    arguments = [str(root)] * len(partitions), [phase] * len(partitions), partitions
    jobs = slurm.submit(root / "slurm", settings, _slurm_task, *arguments, asked_by="data build")
    write_json(root / _SUBMITTED, [job.job_id for job in jobs])
    print_status(progress, f"{phase}: {len(jobs)} Slurm jobs, {jobs[0].job_id} ...; logs in {root / 'slurm'}")
    try:
        _wait(root, phase, dict(zip(partitions, jobs, strict=True)), progress)
    except BaseException:
        slurm.cancel(jobs)
        raise
    (root / _SUBMITTED).unlink()


def cancel_left_over(root: Path, progress: bool) -> None:
    """Cancel the jobs that a coordinator which was killed has left in Slurm."""
    if not (root / _SUBMITTED).is_file():
        return
    from submitit import SlurmJob

    ids = read_json(root / _SUBMITTED)
    print_status(progress, f"cancelling {len(ids)} Slurm jobs of the last start")
    slurm.cancel([SlurmJob(folder=root / "slurm", job_id=job_id) for job_id in ids])
    (root / _SUBMITTED).unlink()


def _slurm_task(root: str, phase: str, partition: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    run_task(Path(root), phase, partition)


def _wait(root: Path, phase: str, jobs: dict[int, Any], progress: bool) -> None:
    total, started = len(jobs), time.monotonic()
    while jobs:
        finished = [p for p, job in jobs.items() if slurm.is_over(job)]
        for partition in finished:
            error = jobs.pop(partition).exception()
            if error is not None:
                raise _failed(root, phase, partition, error)
        if finished:
            _tell(progress, phase, total - len(jobs), total, started)
        time.sleep(1.0)


def _failed(root: Path, phase: str, partition: int, error: BaseException) -> CramError:
    try:
        return CramError(failure_file(root, phase, partition).read_text(encoding="utf-8"))
    except FileNotFoundError:
        lines = _lines(str(error).splitlines())
        reason = lines[-1] if lines else type(error).__name__
        return CramError(
            f"data build: partition {partition} of phase '{phase}' failed: {reason}; logs: {root / 'slurm'}"
        )


def _lines(lines: Iterable[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip().strip("-")]
