"""Where jobs run: on the devices of this machine, one process for each, or as an array of Slurm jobs.

A job that fails, or whose process is killed, does not take the others with it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from cram_composer.device import set_up_cpu
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.jobs import Job, run_job
from cram_composer.evaluation.fine_tuning.results import Result
from cram_composer.jobs import slurm
from cram_composer.jobs.processes import end_with_parent

_START = "forkserver" if sys.platform == "linux" else "spawn"
_PRELOAD = ["cram_composer.evaluation.fine_tuning.jobs", "transformers.models.auto.modeling_auto"]
_SLURM_DEFAULTS = {"name": "cram-eval", "timeout_min": 12 * 60, "cpus_per_task": 4, "mem_gb": 16, "gpus_per_node": 1}
_POLL_SECONDS = 0.5


class Ended(NamedTuple):
    """A job that is over: its results, or the line that says why there are none."""

    job: Job
    results: list[Result]
    error: str


Report = Callable[[float], None]  # told the number of jobs that are done, running ones by the share of their steps


def run_here(jobs: Sequence[Job], devices: Sequence[str], threads: int, report: Report) -> Iterator[Ended]:
    """Run jobs on `devices`, such as ["cuda:0", "cuda:1"] or ["cpu", "cpu"], with `threads` CPU threads each.

    Jobs are taken in order, but one that goes on from another's model waits for it.
    """
    if _START == "forkserver":
        forkserver.set_forkserver_preload(_PRELOAD)
    shares = [get_context(_START).Value("d", 0.0) for _ in devices]
    ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
    board = _Board(jobs)
    slots = [
        threading.Thread(target=_slot, args=(board, device, threads, share, ended), daemon=True)
        for device, share in zip(devices, shares, strict=True)
    ]
    for slot in slots:
        slot.start()
    count = 0
    try:
        while count < len(jobs):
            try:
                outcome = ended.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                report(count + sum(share.value for share in shares))
                continue
            count += 1
            yield outcome
            report(count + sum(share.value for share in shares))
    finally:
        board.stop()


class _Board:
    """The jobs that wait for a slot, and the processes of the slots."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = list(jobs)
        self._making = {job.keep for job in jobs if job.keep is not None}
        self._changed = threading.Condition()
        self._processes: dict[int, int] = {}  # by thread
        self._stopped = False

    def take(self) -> Job | None:
        """The next job whose start is there; None when no more will come."""
        with self._changed:
            while not self._stopped:
                ready = next((job for job in self._waiting if job.start not in self._making), None)
                if ready is not None:
                    self._waiting.remove(ready)
                    return ready
                if not self._waiting:
                    return None
                self._changed.wait()
            return None

    def over(self, job: Job) -> None:
        """A job has ended, well or not."""
        with self._changed:
            self._making.discard(job.keep)
            self._changed.notify_all()

    def process(self, number: int) -> None:
        """The process of the calling thread's slot."""
        with self._changed:
            self._processes[threading.get_ident()] = number

    def stop(self) -> None:
        """Give no more jobs, and end the processes of the slots."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            for number in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)


def _slot(
    board: _Board, device: str, threads: int, share: Synchronized[float], ended: queue.SimpleQueue[Ended]
) -> None:
    """Run jobs one after another in a process of its own, which is started anew where one is killed."""
    pool: ProcessPoolExecutor | None = None
    while (job := board.take()) is not None:
        try:
            if pool is None:
                pool = ProcessPoolExecutor(
                    1, get_context(_START), initializer=_begin, initargs=(threads, device, share)
                )
                board.process(pool.submit(os.getpid).result())
            outcome = Ended(job, pool.submit(_run, job, device).result(), "")
        except BrokenProcessPool:
            pool = None
            outcome = Ended(job, [], f"{job.title}: its process was killed (out of memory?)")
        except CramError as error:
            outcome = Ended(job, [], f"{job.title}: {error}")
        except Exception as error:  # of any library below; the other jobs go on
            outcome = Ended(job, [], f"{job.title}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        share.value = 0.0
        board.over(job)
        ended.put(outcome)
    if pool is not None:
        pool.shutdown()


_share: Synchronized[float] | None = None  # of the steps that the job of this process has done


def _begin(threads: int, device: str, share: Synchronized[float]) -> None:
    """Set up a process: its threads, its progress, and that it ends with the one that started it."""
    global _share
    end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what an interrupt means
    set_up_cpu(threads, trains_here=device == "cpu")
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    _share = share
    transformers.logging.set_verbosity_error()  # that a head is new, for every job
    warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef`")


def _run(job: Job, device: str) -> list[Result]:
    def report(progress: float) -> None:
        assert _share is not None
        _share.value = progress

    return run_job(job, torch.device(device), report)


def run_on_slurm(
    jobs: Sequence[Job], settings: dict[str, Any], device: str, folder: Path, report: Report
) -> Iterator[Ended]:
    """Run jobs as Slurm arrays: first those that others go on from, then the others.

    Args:
        jobs: to run.
        settings: submitit's parameters, over 4 CPUs, 16 GB, one GPU and 12 hours for a job.
        device: "cuda" or "cpu".
        folder: shared by all nodes, for the jobs' files and logs.
        report: told how many jobs are over.

    Raises:
        CramError: Slurm is not there or refuses the array.
    """
    settings = {**_SLURM_DEFAULTS, **({} if device == "cuda" else {"gpus_per_node": 0}), **settings}
    count = 0
    for wave in ([job for job in jobs if job.start is None], [job for job in jobs if job.start is not None]):
        if not wave:
            continue
        submitted = slurm.submit(folder, settings, _run_there, wave, [device] * len(wave), asked_by="eval")
        running = dict(zip(submitted, wave, strict=True))
        try:
            while running:
                for one in [one for one in running if slurm.is_over(one)]:
                    job = running.pop(one)
                    error = one.exception()
                    count += 1
                    if error is None:
                        yield Ended(job, one.result(), "")
                    else:
                        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                        yield Ended(job, [], f"{job.title}: {reason[:300]}; logs in {folder}")
                    report(count)
                time.sleep(_POLL_SECONDS)
        finally:
            if running:
                slurm.cancel(list(running))


def _run_there(job: Job, device: str) -> list[Result]:
    set_up_cpu(int(os.environ.get("SLURM_CPUS_PER_TASK", "1")), trains_here=device == "cpu")
    return run_job(job, torch.device(device))
