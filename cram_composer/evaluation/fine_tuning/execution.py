"""Run fine-tuning jobs on the devices of this machine or as Slurm arrays."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from cram_composer.device import set_up_cpu
from cram_composer.evaluation.fine_tuning.jobs import Job, run_job
from cram_composer.evaluation.fine_tuning.results import Result
from cram_composer.jobs.local import LocalRunner, Slot, report_progress, visible_gpus
from cram_composer.jobs.processes import available_cores
from cram_composer.jobs.runner import Runner
from cram_composer.jobs.slurm import SlurmRunner, allotted_cpus, cancel_left_over

_PRELOAD = ["cram_composer.evaluation.fine_tuning.jobs", "transformers.models.auto.modeling_auto"]
_SLURM_DEFAULTS = {"name": "cram-eval", "timeout_min": 12 * 60, "cpus_per_task": 4, "mem_gb": 16}


def run_jobs(
    jobs: Sequence[Job],
    device: str,
    processes: int | None,
    slurm: Mapping[str, Any] | None,
    folder: Path,
    report: Callable[[float], None],
) -> Generator[tuple[Job, list[Result], str], None, None]:
    """Run jobs and yield each as it finishes, with its results or a one-line error.

    A job that continues from another's model starts after it. Closing the generator cancels the running jobs.

    Args:
        jobs: to run.
        device: "cuda", for all GPUs of this machine, or "cpu".
        processes: jobs at a time on a CPU; default: one per core, up to 8.
        slurm: submitit's parameters, to run the jobs as Slurm arrays; see `_SLURM_DEFAULTS`.
        folder: shared by all nodes, for the files and logs of Slurm jobs.
        report: called every second with the number of jobs done, counting running jobs by their share of steps done.

    Raises:
        CramError: Slurm is missing or rejects the array.
    """
    cores = len(available_cores())
    if device == "cuda":
        slots = [Slot(gpu) for gpu in visible_gpus(torch.cuda.device_count())]
    else:
        slots = [Slot()] * min(processes or min(cores, 8), len(jobs))
    threads = threads_per_job(cores, len(slots)) if slurm is None else 0
    runner: Runner = LocalRunner(slots, _PRELOAD)
    if slurm is not None:
        cancel_left_over(folder)
        runner = SlurmRunner(folder, {**_SLURM_DEFAULTS, "gpus_per_node": int(device == "cuda"), **slurm}, "eval")
    calls = [partial(_run, job, device, threads) for job in jobs]
    saved_by = {job.save_to: index for index, job in enumerate(jobs) if job.save_to is not None}
    after = {index: saved_by[job.init_from] for index, job in enumerate(jobs) if job.init_from in saved_by}
    done = 0

    def poll(running: Mapping[int, float]) -> None:
        report(done + sum(running.values()))

    with runner:
        for result in runner.run(calls, after=after, on_poll=poll):
            done += 1
            job, error = jobs[result.index], result.error
            if error and slurm is not None and not result.killed:
                error += f"; logs in {folder}"
            yield job, result.value or [], error and f"{job.title}: {error}"


def threads_per_job(cores: int, jobs: int) -> int:
    """Return the CPU threads of each of `jobs` jobs at a time: its share of the cores, at most OMP_NUM_THREADS.

    Two threads that meet at every operation are many times slower than one if another process keeps a core busy.
    """
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores // jobs)
    return min(share, max(1, int(allowed))) if allowed.isdecimal() else share


def _run(job: Job, device: str, threads: int) -> list[Result]:
    _set_up_process(device, threads or allotted_cpus())
    return run_job(job, torch.device(device), report_progress)


@functools.cache
def _set_up_process(device: str, threads: int) -> None:
    set_up_cpu(threads, trains_here=device == "cpu")
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    transformers.logging.set_verbosity_error()  # otherwise warns about the new head in every job
    warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef`")
