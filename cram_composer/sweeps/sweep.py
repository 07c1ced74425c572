"""`cram sweep` and `cram ablate`: ask, train what is not over yet, and compare what came out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.config.units import format_duration
from cram_composer.errors import CramError
from cram_composer.jobs.local import LocalRunner
from cram_composer.jobs.runner import Runner
from cram_composer.sweeps.execution import local_slots, slurm_runner, train_all
from cram_composer.sweeps.plan import Trial, baseline_of, plan_trials, same_settings
from cram_composer.sweeps.progress import SweepProgress, not_over, record_of

REPORT = "report.html"


def sweep(
    config: SweepConfig,
    asked_by: str,
    folder: Path,
    *,
    jobs: int | None = None,
    slurm: dict[str, Any] | None = None,
    agreed: bool = False,
    train: bool = True,
) -> tuple[str, list[str]]:
    """Train the runs of a sweep that are not over, one on each device, and compare the variants with the baseline.

    Args:
        config: what to train.
        asked_by: its file, for errors.
        folder: of the runs, their logs and the report.
        jobs: runs at a time; default: one for every GPU, or one on a CPU.
        slurm: submitit's parameters, to train as a Slurm array in place of here.
        agreed: do not ask whether to spend the device-hours.
        train: whether to train at all; otherwise only what is there is compared.

    Returns:
        The comparison as text, and a line for every run that failed.

    Raises:
        CramError: a variant that cannot be composed, nobody to ask, no agreement.
    """
    trials = plan_trials(config, asked_by, folder)
    progress = SweepProgress(trials)
    if jobs is not None and slurm is not None:
        raise CramError(
            "--jobs: how many jobs of an array run at a time, Slurm decides; slurm_array_parallelism=N limits it"
        )
    if train and progress.left:
        left = progress.left
        device = left[0].composed.config.device
        slots = [] if slurm is not None else local_slots(device, jobs)
        print(_announcement(trials, left, len(slots)), flush=True)
        for line in same_settings(trials):
            print(f"note: {line}", flush=True)
        if not agreed:
            _ask()
        _prepare_data(left)
        with _locked(folder), progress:
            runner: Runner = LocalRunner(slots)
            if slurm is not None:
                runner = slurm_runner(left, slurm, device != "cpu", folder / "slurm")
            with runner:
                for trial, error in train_all(left, runner, progress.running):
                    progress.ended(trial, error)
    failures = [*progress.failures, *(_incomplete_copies(trials, set(progress.left)) if train else [])]
    return compared(trials, baseline_of(config, trials), folder / REPORT), failures


def _incomplete_copies(trials: Sequence[Trial], left: set[Trial]) -> Iterator[str]:
    """A line for every run that is over and whose copy in `runs_remote` is not complete, after another try."""
    for trial in trials:
        uri = trial.composed.config.runs_remote
        if uri is None or trial in left:
            continue
        from cram_composer.runs.folder import RunFolder
        from cram_composer.runs.mirror import RunMirror

        copy = RunMirror(RunFolder(trial.path), uri, trial.composed.config.checkpoint.keep)
        if copy.upload_missing() != 0:
            yield f"{trial.path}: finished, but its copy in {copy.uri} is not complete"


def compared(trials: Sequence[Trial], baseline: str, report: Path) -> str:
    """The variants against the baseline: the page is written, the text returned."""
    from cram_composer.analysis.compare.compare import compare
    from cram_composer.analysis.compare.groups import make_group
    from cram_composer.analysis.compare.page import write_comparison
    from cram_composer.analysis.compare.text import overview
    from cram_composer.analysis.runs.run import load_run

    names = dict.fromkeys([baseline, *(trial.variant for trial in trials)])
    groups, absent = [], []
    for name in names:
        own = [trial for trial in trials if trial.variant == name]
        group = make_group(name, [load_run(trial.path) for trial in own if record_of(trial) is not None])
        # What is left out may be what went wrong: without a word, only the lucky seeds would be compared.
        group.notes += [f"left out {trial.path.name}: {why}" for trial in own if (why := not_over(trial))]
        if group.runs:
            groups.append(group)
        else:
            absent.append(name)
    missing = f"no finished run: {', '.join(absent)}" if absent else ""
    if baseline in absent or len(groups) < 2:
        return (
            f"{missing}\nnothing to compare yet; the same command goes on"
            if missing
            else "one variant: nothing to compare"
        )
    pairs = compare(groups, groups[0])
    path = write_comparison(groups, pairs, report)
    return "\n".join(filter(None, [overview(groups, pairs), "", missing, f"page: {path}"]))


def _announcement(trials: Sequence[Trial], left: Sequence[Trial], places: int) -> str:
    """What is going to be spent."""
    variants = len({trial.variant for trial in trials})
    seeds = len({trial.seed for trial in trials})
    known = [trial.seconds for trial in left if trial.seconds is not None]
    lines = [
        f"{len(trials)} runs, {variants} variants with {seeds} seed{'s' * (seeds != 1)}, {len(left)} of them to train"
    ]
    if len(known) < len(left):
        lines.append(
            f"{len(left) - len(known)} have budgets in tokens or steps: how long these take is not known before"
        )
    if known:
        lines.append(f"budgets together: {sum(known) / 3600.0:.3g} device-hours")
        if places:
            lines[-1] += f"; {places} at a time, {format_duration(max(sum(known) / places, *known))} or more"
        lines[-1] += "; setup, compilation and the final evaluation of every run come on top"
    return "\n".join(lines)


def _ask() -> None:
    if not sys.stdin.isatty():
        raise CramError("nobody to ask whether this may be spent; add --yes")
    try:
        answer = input("train them? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CramError("not started")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep another sweep out of the folder. Raises CramError where one is at work."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CramError(f"{folder}: another sweep is at work there; wait for it, or give --output") from None
    try:
        yield
    finally:
        lock.release()


def _prepare_data(trials: Sequence[Trial]) -> None:
    """Build or check every data set once, before several runs at a time would."""
    from cram_composer.data.loading.prepare import prepare_dataset

    for config in {repr(trial.composed.config.data): trial.composed.config.data for trial in trials}.values():
        prepare_dataset(config, True, lambda: None)
