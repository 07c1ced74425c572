"""Execution of a sweep: each run is a `cram train` process on a device of this machine or in a Slurm array."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError
from cram_composer.jobs.local import Slot, visible_gpus
from cram_composer.jobs.processes import available_cores, run_command
from cram_composer.jobs.runner import Runner
from cram_composer.jobs.slurm import SlurmRunner, left_over
from cram_composer.sweeps.plan import Trial

_SLURM_DEFAULTS = {"name": "cram-sweep", "cpus_per_task": 4, "mem_gb": 32}
_SLURM_MARGIN = 30  # minutes beyond the budget: data, compilation, the final evaluation


def local_slots(device: str, jobs: int | None) -> list[Slot]:
    """Return a slot for every GPU, or on a CPU `jobs` slots (default 1), which share the cores.

    Raises:
        CramError: more jobs than GPUs or cores, or a GPU is required and missing.
    """
    import torch

    from cram_composer.device import device_kind

    cores = available_cores()
    gpus: list[str | None] = [None] * (jobs or 1)
    unit, most = "CPU cores", len(cores)
    if device_kind(device, "set device=cpu") == "cuda":
        visible = visible_gpus(torch.cuda.device_count())
        gpus, unit, most = [*visible[:jobs]], "GPUs", len(visible)
    if jobs is not None and not 1 <= jobs <= most:
        raise CramError(f"--jobs {jobs}: must be between 1 and {most}, the number of {unit} of this machine")
    share = max(1, len(cores) // len(gpus))
    return [Slot(gpu, cores[n * share : (n + 1) * share] or cores) for n, gpu in enumerate(gpus)]


def slurm_runner(trials: Sequence[Trial], settings: dict[str, Any], cuda: bool, folder: Path) -> SlurmRunner:
    """Return the runner of a Slurm array whose time limit fits every run.

    Args:
        trials: runs to train.
        settings: submitit parameters. Defaults: 4 CPUs, 32 GB, one GPU if `cuda`, the longest budget plus 30 minutes.
        cuda: give each job a GPU.
        folder: folder on all nodes, for the files and logs of the jobs.

    Raises:
        CramError: Slurm still runs jobs of an earlier call, or a budget in tokens, steps or epochs gives no time limit.
    """
    settings = {**_SLURM_DEFAULTS, "gpus_per_node": int(cuda), **settings}
    if "timeout_min" not in settings:
        known = [trial.seconds for trial in trials if trial.seconds is not None]
        if len(known) < len(trials):
            raise CramError("--slurm: a budget in tokens, steps or epochs gives no time limit; add timeout_min=MINUTES")
        settings["timeout_min"] = int(max(known) / 60.0) + _SLURM_MARGIN
    if queued := left_over(folder):  # not cancelled, because they train these runs
        arrays = " ".join(sorted({job_id.partition("_")[0] for job_id in queued}))
        raise CramError(
            f"--slurm: jobs of this sweep are still in the queue ({arrays}); wait for them, or run scancel {arrays}"
        )
    return SlurmRunner(folder, settings, "sweep")


def train_all(
    trials: Sequence[Trial], runner: Runner, on_poll: Callable[[list[Trial]], None]
) -> Iterator[tuple[Trial, str]]:
    """Train the runs; yield each as it ends, with its error in one line or "".

    `on_poll` is called every second with the runs in training.
    """
    command = [sys.executable, "-m", "cram_composer.cli", "train"]
    calls = [partial(run_command, [*command, str(trial.yaml), *trial.overrides], trial.log) for trial in trials]

    def poll(running: Mapping[int, float]) -> None:
        on_poll([trials[index] for index in running if trials[index].log.is_file()])  # the others wait in Slurm's queue

    for result in runner.run(calls, on_poll=poll):
        yield trials[result.index], result.error
