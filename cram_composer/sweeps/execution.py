"""Where the runs of a sweep are trained: one on each device of this machine, or as an array of Slurm jobs.

Every run is a process of its own, so that one that fails does not take the others with it. A run that was stopped goes
on from its last checkpoint when the sweep is started again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError
from cram_composer.jobs import slurm
from cram_composer.jobs.processes import ENDS_WITH_PARENT
from cram_composer.storage.files import read_json, write_json
from cram_composer.sweeps.plan import Trial

_POLL_SECONDS = 1.0
_SAVING_SECONDS = 60.0  # what a run gets to save and end; it takes half of that itself at most
_SLURM_DEFAULTS = {"name": "cram-sweep", "cpus_per_task": 4, "mem_gb": 32, "gpus_per_node": 1}
_SLURM_MARGIN = 30  # minutes beyond the budget: data, compilation, the final evaluation


@dataclass(frozen=True)
class Place:
    """A device and the CPU cores that a run on it may use; `gpu` is None for a CPU."""

    gpu: str | None
    cores: tuple[int, ...]


@dataclass(frozen=True)
class Ended:
    """A run that is over: `error` says in a line why it failed, and is empty where it did not."""

    trial: Trial
    error: str


Running = Callable[[list[Trial]], None]  # told now and then which runs are being trained


def places_here(device: str, jobs: int | None) -> list[Place]:
    """A place for every GPU, or on a CPU `jobs` of them, one by default, which share out the cores.

    Raises:
        CramError: more jobs than there are GPUs or cores, or no GPU where there must be one.
    """
    import torch

    from cram_composer.device import device_kind

    cores = sorted(os.sched_getaffinity(0))
    gpus: list[str | None] = [None] * (jobs or 1)
    what = "CPU cores"
    most = len(cores)
    if device_kind(device, "without one, device=cpu") == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        all_of_them = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        gpus, what, most = [*all_of_them[:jobs]], "GPUs", len(all_of_them)
    if jobs is not None and not 1 <= jobs <= most:
        raise CramError(f"--jobs {jobs}: there are {most} {what} here; a run needs one at least")
    share = max(1, len(cores) // len(gpus))
    return [Place(gpu, tuple(cores[n * share : (n + 1) * share]) or tuple(cores)) for n, gpu in enumerate(gpus)]


def run_here(trials: Sequence[Trial], places: Sequence[Place], running: Running) -> Iterator[Ended]:
    """Train the runs in order, one on each place at a time."""
    waiting, ended = queue.SimpleQueue[Trial](), queue.SimpleQueue[Ended]()
    for trial in trials:
        waiting.put(trial)
    at_work: dict[Trial, subprocess.Popen[bytes]] = {}
    stop = threading.Event()
    slots = [
        threading.Thread(target=_slot, args=(place, waiting, ended, at_work, stop), daemon=True) for place in places
    ]
    for slot in slots:
        slot.start()
    try:
        left = len(trials)
        while left:
            running(list(at_work))
            with contextlib.suppress(queue.Empty):
                outcome = ended.get(timeout=_POLL_SECONDS)
                left -= 1
                yield outcome
    finally:
        stop.set()
        for process in list(at_work.values()):
            process.send_signal(signal.SIGTERM)
        for slot in slots:
            slot.join(_SAVING_SECONDS)


def _slot(
    place: Place,
    waiting: queue.SimpleQueue[Trial],
    ended: queue.SimpleQueue[Ended],
    at_work: dict[Trial, subprocess.Popen[bytes]],
    stop: threading.Event,
) -> None:
    """Train runs one after another on a place. What this thread starts has its cores, and ends when it does."""
    os.sched_setaffinity(0, place.cores)
    while not stop.is_set():
        try:
            trial = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            with _start(trial, place.gpu) as process:
                at_work[trial] = process
                status = process.wait()
            outcome = Ended(trial, failure(trial, status))
        except OSError as error:  # the disk is full, the folder is not ours: of this run only
            outcome = Ended(trial, f"{error.filename or trial.path}: {error.strerror or error}")
        at_work.pop(trial, None)
        ended.put(outcome)


def _start(trial: Trial, gpu: str | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, ENDS_WITH_PARENT: str(os.getpid())}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    with open(trial.log, "ab") as log:
        return subprocess.Popen(_command(trial), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _command(trial: Trial) -> list[str]:
    return [sys.executable, "-m", "cram_composer.cli", "train", str(trial.yaml), *trial.overrides]


def failure(trial: Trial, status: int) -> str:
    """Why a run's process ended with `status`, in a line; empty for 0."""
    if status == 0:
        return ""
    lines = trial.log.read_text(errors="replace").splitlines() if trial.log.is_file() else []
    said = next((line for line in reversed(lines) if line.strip()), "")
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"ended with {how}: {said.removeprefix('error: ')[:300]}"


def run_on_slurm(
    trials: Sequence[Trial], settings: dict[str, Any], cuda: bool, folder: Path, running: Running
) -> Iterator[Ended]:
    """Train the runs as one Slurm array.

    Args:
        trials: to train.
        settings: submitit's parameters, over 4 CPUs, 32 GB, one GPU and the longest budget with half an hour more.
        cuda: whether a job gets a GPU.
        folder: shared by all nodes, for the jobs' files and logs.
        running: told which runs are not over.

    Raises:
        CramError: Slurm is not there or refuses the array, has jobs of an earlier call in its queue, or budgets in
            tokens or steps give no time limit.
    """
    budgets = [trial.seconds for trial in trials]
    limit: dict[str, Any] = {}
    if "timeout_min" not in settings:
        known = [seconds for seconds in budgets if seconds is not None]
        if len(known) < len(budgets):
            raise CramError("--slurm: a budget in tokens or steps says nothing of time; add timeout_min=MINUTES")
        limit = {"timeout_min": int(max(known) / 60.0) + _SLURM_MARGIN}
    settings = {**_SLURM_DEFAULTS, **({} if cuda else {"gpus_per_node": 0}), **limit, **settings}
    earlier = folder / "jobs.json"
    if earlier.is_file() and (queued := slurm.still_queued(read_json(earlier))):
        listed = " ".join(queued)
        raise CramError(f"--slurm: jobs of this sweep are still in the queue ({listed}); wait, or scancel {listed}")
    jobs = slurm.submit(folder, settings, train_there, list(trials), asked_by="sweep")
    write_json(earlier, sorted({job.job_id.partition("_")[0] for job in jobs}))
    left = dict(zip(jobs, trials, strict=True))
    try:
        while left:
            running([trial for trial in left.values() if trial.log.is_file()])
            for job in [job for job in left if slurm.is_over(job)]:
                trial, error = left.pop(job), job.exception()
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                yield Ended(trial, job.result() if error is None else f"{reason[:300]}; logs in {folder}")
            time.sleep(_POLL_SECONDS)
    finally:
        if left:
            slurm.cancel(list(left))


def train_there(trial: Trial) -> str:
    """Train one run on a Slurm node; why it failed, or nothing."""
    return failure(trial, _start(trial).wait())
