"""Run the tasks of a phase: in this process, in several on this machine, or as an array of Slurm jobs."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.data.pipeline.progress import print_status
from cram_composer.data.pipeline.tasks import run_task
from cram_composer.errors import CramError
from cram_composer.jobs.local import LocalRunner, Slot
from cram_composer.jobs.processes import available_cores
from cram_composer.jobs.runner import Runner
from cram_composer.jobs.slurm import SlurmRunner, allotted_cpus

SLURM_FOLDER = "slurm"  # in the work folder
_PRELOAD = ["streaming", "cram_composer.data.pipeline.tasks"]
_SLURM_DEFAULTS = {"timeout_min": 24 * 60, "cpus_per_task": 2, "mem_gb": 4}


class Executor:
    """Runs tasks; a context manager that keeps its processes from phase to phase."""

    def __init__(self, config: DataBuildConfig, progress: bool) -> None:
        self._config = config
        self._progress = progress
        self._on_slurm = config.executor == "slurm"
        cores = len(available_cores())
        self._jobs = min(config.jobs or cores, config.partitions)
        self._threads = max(cores // self._jobs, 1)
        self._local = LocalRunner([Slot()] * self._jobs, _PRELOAD)

    def __enter__(self) -> Executor:
        if self._jobs > 1 and not self._on_slurm:
            self._local.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._local.__exit__(*exception)

    def run(self, root: Path, phase: str, partitions: list[int]) -> None:
        """Run a phase for the given partitions. Raises the CramError of the first task that fails."""
        if self._on_slurm:
            settings = {**_SLURM_DEFAULTS, "name": f"cram-data-{phase}", **self._config.slurm}
            logs = root / SLURM_FOLDER
            print_status(self._progress, f"{phase}: {len(partitions)} Slurm jobs; ids and logs in {logs}")
            with SlurmRunner(logs, settings, "data build") as runner:
                self._run(runner, root, phase, partitions)
        elif self._jobs > 1:
            self._run(self._local, root, phase, partitions)
        else:
            for partition in partitions:
                run_task(root, phase, partition, self._progress)

    def _run(self, runner: Runner, root: Path, phase: str, partitions: list[int]) -> None:
        threads = 0 if self._on_slurm else self._threads
        calls = [partial(_run_task, root, phase, partition, threads) for partition in partitions]
        started, done, failure = time.monotonic(), 0, ""
        for result in runner.run(calls, fail_fast=True):
            if not result.error:
                done += 1
                seconds = time.monotonic() - started
                print_status(self._progress, f"{phase}: {done} of {len(partitions)} partitions done, {seconds:.0f} s")
                continue
            failure = failure or result.error
            if result.killed:
                hint = "" if self._on_slurm else "; lower jobs and run the same command again"
                failure = f"data build: partition {partitions[result.index]} of phase '{phase}': {result.error}{hint}"
            if self._on_slurm:
                break  # cancels the other jobs; local tasks may finish, so that they need not be repeated
        if failure:
            raise CramError(failure)


def _run_task(root: Path, phase: str, partition: int, threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads or allotted_cpus())
    run_task(root, phase, partition)
