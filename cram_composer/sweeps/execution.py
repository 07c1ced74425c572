"""The runs of a sweep as jobs: each is a `cram train` process, on a device of this machine or in a Slurm array."""

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
        CramError: more jobs than there are GPUs or cores, or no GPU where there must be one.
    """
    import torch

    from cram_composer.device import device_kind

    cores = available_cores()
    gpus: list[str | None] = [None] * (jobs or 1)
    unit, most = "CPU cores", len(cores)
    if device_kind(device, "without one, device=cpu") == "cuda":
        visible = visible_gpus(torch.cuda.device_count())
        gpus, unit, most = [*visible[:jobs]], "GPUs", len(visible)
    if jobs is not None and not 1 <= jobs <= most:
        raise CramError(f"--jobs {jobs}: there are {most} {unit} here, and every run needs one")
    share = max(1, len(cores) // len(gpus))
    return [Slot(gpu, cores[n * share : (n + 1) * share] or cores) for n, gpu in enumerate(gpus)]


def slurm_runner(trials: Sequence[Trial], settings: dict[str, Any], cuda: bool, folder: Path) -> SlurmRunner:
    """Return the runner of a Slurm array in which every run fits.

    Args:
        trials: to train.
        settings: submitit's parameters. Defaults: 4 CPUs, 32 GB, one GPU if `cuda`, the longest budget plus 30 minutes.
        cuda: give each job a GPU.
        folder: shared by all nodes, for the jobs' files and logs.

    Raises:
        CramError: an earlier call has jobs in Slurm's queue, or budgets in tokens or steps give no time limit.
    """
    settings = {**_SLURM_DEFAULTS, "gpus_per_node": int(cuda), **settings}
    if "timeout_min" not in settings:
        known = [trial.seconds for trial in trials if trial.seconds is not None]
        if len(known) < len(trials):
            raise CramError("--slurm: a budget in tokens or steps gives no time limit; add timeout_min=MINUTES")
        settings["timeout_min"] = int(max(known) / 60.0) + _SLURM_MARGIN
    if queued := left_over(folder):  # not cancelled: they train these runs
        arrays = " ".join(sorted({job_id.partition("_")[0] for job_id in queued}))
        raise CramError(f"--slurm: jobs of this sweep are still in the queue ({arrays}); wait, or scancel {arrays}")
    return SlurmRunner(folder, settings, "sweep")


def train_all(
    trials: Sequence[Trial], runner: Runner, on_poll: Callable[[list[Trial]], None]
) -> Iterator[tuple[Trial, str]]:
    """Train the runs and yield each as it ends, with why it failed in one line (empty if it did not).

    `on_poll` is called every second with the runs that are being trained.
    """
    command = [sys.executable, "-m", "cram_composer.cli", "train"]
    calls = [partial(run_command, [*command, str(trial.yaml), *trial.overrides], trial.log) for trial in trials]

    def poll(running: Mapping[int, float]) -> None:
        on_poll([trials[index] for index in running if trials[index].log.is_file()])  # others are in Slurm's queue

    for result in runner.run(calls, on_poll=poll):
        yield trials[result.index], result.error
