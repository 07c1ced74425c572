"""`cram sweep` and `cram ablate`: confirm, train the unfinished runs, and compare the variants."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.looks import plan_looks
from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.config.units import format_duration
from cram_composer.errors import CramError
from cram_composer.jobs.local import LocalRunner
from cram_composer.jobs.runner import Runner
from cram_composer.sweeps.effects import REPORT, report_effects, variant_group
from cram_composer.sweeps.execution import local_slots, slurm_runner, train_all
from cram_composer.sweeps.plan import Trial, baseline_name, duplicate_variants, plan_trials
from cram_composer.sweeps.progress import SweepProgress, finished_record
from cram_composer.sweeps.tuning import all_points, better_half, mean_losses, tuned_sweep, tuning_suffix, tuning_sweep
from cram_composer.sweeps.warm_up import warm_up_trials

_WARM_UP_MINUTES = 60  # of a Slurm job


@dataclass(frozen=True)
class SweepResult:
    """The comparison of a sweep as text and as values for JSON, and one line for every run that failed."""

    text: str
    values: dict[str, Any]
    failures: list[str]


def sweep(
    config: SweepConfig,
    asked_by: str,
    folder: Path,
    *,
    jobs: int | None = None,
    slurm: dict[str, Any] | None = None,
    confirmed: bool = False,
    train: bool = True,
) -> SweepResult:
    """Train the unfinished runs of a sweep, one per device, and compare the variants with the baseline.

    Args:
        config: configuration of the sweep.
        asked_by: file of the sweep, named in errors.
        folder: folder of the runs, their logs and the report.
        jobs: parallel runs; default: one per GPU, or one on a CPU.
        slurm: submitit parameters, to train as a Slurm array.
        confirmed: train without asking for confirmation.
        train: if False, only compare the finished runs.

    Raises:
        CramError: a variant cannot be composed, or training was not confirmed.
    """
    if config.tune:
        return _tuned(config, asked_by, folder, jobs=jobs, slurm=slurm, confirmed=confirmed, train=train)
    trials = plan_trials(config, asked_by, folder)
    progress = SweepProgress(trials)
    if jobs is not None and slurm is not None:
        raise CramError("--jobs: has no effect with --slurm; use --slurm slurm_array_parallelism=N")
    if train and progress.left:
        left = progress.left
        device = left[0].composed.config.device
        slots = [] if slurm is not None else local_slots(device, jobs)
        print(_summary(trials, left, len(slots)), flush=True)
        for line in duplicate_variants(trials):
            print(f"note: {line}", flush=True)
        if not confirmed:
            _confirm()
        _prepare_data(left)

        def runner_of(block: Sequence[Trial], **settings: Any) -> Runner:
            if slurm is not None:
                return slurm_runner(block, settings | slurm, device != "cpu", folder / "slurm")
            return LocalRunner(slots)

        with _locked(folder):
            if config.warm_up_steps:
                _warm_up(left, config.warm_up_steps, folder, partial(runner_of, timeout_min=_WARM_UP_MINUTES))
            plan_looks(folder, config.seeds)
            with progress:
                for block in _undecided_blocks(left, trials, config) if config.stop_when_decided else [left]:
                    with runner_of(block) as runner:
                        for trial, error in train_all(block, runner, progress.running):
                            progress.ended(trial, error)
    failures = [*progress.failures, *(_incomplete_copies(trials, set(progress.left)) if train else [])]
    if config.factors:
        text, values = report_effects(config, trials, folder)
    else:
        text, values = write_report(trials, baseline_name(config, trials), folder / REPORT)
    return SweepResult(text, {**values, "failures": failures}, failures)


def _warm_up(left: Sequence[Trial], steps: int, folder: Path, runner_of: Callable[..., Runner]) -> None:
    """Train a few steps of every variant in `left`, whose kernels are then in the cache, and delete the runs."""
    with warm_up_trials(left, steps, folder) as short, runner_of(short) as runner:
        print(f"first, {steps} steps of {len(short)} variants, to compile kernels", flush=True)
        for trial, error in train_all(short, runner, lambda _: None):
            if error:
                print(f"note: warm-up of {trial.variant}: {error}", flush=True)


def _tuned(config: SweepConfig, asked_by: str, folder: Path, *, confirmed: bool, **options: Any) -> SweepResult:
    """Find the best values of every variant in a folder beside `folder`, then compare the variants at those."""
    final = plan_trials(config.model_copy(update={"tune": {}}), asked_by, folder)  # finds mistakes before any run
    points, told = all_points(config, asked_by), False
    losses: dict[str, float] = {}
    for halvings in reversed(range(config.tune_halvings + 1)):
        if losses:
            points = better_half(points, losses)
        budgets = {trial.variant: trial.composed.config.budget for trial in final}
        tuning = tuning_sweep(config, asked_by, points, budgets, halvings)
        beside = folder.with_name(f"{folder.name}{tuning_suffix(halvings)}")
        trials = plan_trials(tuning, asked_by, beside)
        asks = options["train"] and any(finished_record(trial) is None for trial in trials)
        if asks and not told:
            told = True
            print(_what_follows(len(points), halvings, final), flush=True)
        found = sweep(tuning, asked_by, beside, confirmed=confirmed, **options)
        if missing := [trial.path.name for trial in trials if finished_record(trial) is None]:
            text = f"tuning is not finished: {', '.join(missing)}; run the same command to resume"
            return SweepResult(text, {"tuned": [], "failures": found.failures}, found.failures)
        confirmed = confirmed or asks
        losses = mean_losses(trials)
    best, lines = tuned_sweep(config, asked_by, points, losses)
    result = sweep(best, asked_by, folder, confirmed=confirmed, **options)
    return SweepResult("\n".join([*lines, "", result.text]), {**result.values, "tuned": lines}, result.failures)


def _what_follows(variants: int, halvings: int, final: Sequence[Trial]) -> str:
    """Describe the runs after the first ones of tuning, which `_summary` describes."""
    known = sum(trial.seconds or 0.0 for trial in final) / 3600.0
    text = f"tuning {variants} variants, before {len(final)} runs of them at their best"
    text += f" with {known:.3g} device-hours" if known else ""
    return text + (f"; {halvings} more rounds of tuning have half as many runs of twice the budget" if halvings else "")


def _undecided_blocks(left: Sequence[Trial], trials: Sequence[Trial], config: SweepConfig) -> Iterator[list[Trial]]:
    """Yield the runs of each seed, once those before it have ended, as far as their variants have no verdict."""
    for seed in sorted({trial.seed for trial in left}):
        block = [trial for trial in left if trial.seed == seed]
        if undecided := _undecided(block, trials, baseline_name(config, trials)):
            yield undecided


def _undecided(block: Sequence[Trial], trials: Sequence[Trial], baseline: str) -> list[Trial]:
    """Return the runs of a block whose variants have no verdict yet; the baseline's only if others are left."""
    from cram_composer.analysis.compare.compare import compare
    from cram_composer.analysis.compare.looks import look

    groups, _ = _finished_groups(trials, baseline)
    decided: set[str] = set()
    if len(groups) > 1 and groups[0].name == baseline:
        pairs = compare(groups, groups[0], look(groups, groups[0]))
        decided = {pair.challenger.name for pair in pairs if pair.verdict.word in ("better", "worse")}
    # What was stopped stays stopped, whatever the others do to its verdict. A run that failed has at least a log.
    seed = min((trial.seed for trial in block), default=0)
    earlier = [trial for trial in trials if trial.seed < seed]
    decided |= {each.variant for each in earlier if not (each.path.exists() or each.log.exists())} - {baseline}
    left = [trial for trial in block if trial.variant not in decided]
    return left if any(trial.variant != baseline for trial in left) else []


def _incomplete_copies(trials: Sequence[Trial], left: set[Trial]) -> Iterator[str]:
    """Complete the `runs_remote` copies of finished runs; yield a line for every copy that stays incomplete."""
    for trial in trials:
        uri = trial.composed.config.runs_remote
        if uri is None or trial in left:
            continue
        from cram_composer.runs.folder import RunFolder
        from cram_composer.runs.mirror import RunMirror
        from cram_composer.train.complete import complete

        folder = RunFolder(trial.path)
        copy = RunMirror(folder, uri, trial.composed.config.checkpoint.keep)
        if complete(folder, copy) != 0:
            yield f"{trial.path}: finished, but its copy in {copy.uri} is not complete"


def write_report(trials: Sequence[Trial], baseline: str, report: Path) -> tuple[str, dict[str, Any]]:
    """Compare the variants with the baseline and write the HTML report; return the comparison as text and values."""
    from cram_composer.analysis.compare.compare import compare
    from cram_composer.analysis.compare.looks import look
    from cram_composer.analysis.compare.page import write_comparison
    from cram_composer.analysis.compare.text import as_json, overview

    groups, missing_names = _finished_groups(trials, baseline)
    missing = f"no finished run: {', '.join(missing_names)}" if missing_names else ""
    values: dict[str, Any] = {"unfinished": missing_names, "page": None}
    if baseline in missing_names or len(groups) < 2:
        waiting = f"{missing}\nnothing to compare yet; run the same command to resume"
        return waiting if missing else "only one variant: nothing to compare", {**as_json(groups, []), **values}
    pairs = compare(groups, groups[0], look(groups, groups[0]))
    path = write_comparison(groups, pairs, report)
    text = "\n".join(filter(None, [overview(groups, pairs), "", missing, f"page: {path}"]))
    return text, {**as_json(groups, pairs), **values, "page": str(path)}


def _finished_groups(trials: Sequence[Trial], baseline: str) -> tuple[list[Group], list[str]]:
    """Return the variants with finished runs, the baseline first, and the names of the others."""
    groups, missing = [], []
    for name in dict.fromkeys([baseline, *(trial.variant for trial in trials)]):
        group = variant_group(name, [trial for trial in trials if trial.variant == name])
        if group.runs:
            groups.append(group)
        else:
            missing.append(name)
    return groups, missing


def _summary(trials: Sequence[Trial], left: Sequence[Trial], slots: int) -> str:
    """Describe the runs to train and their budgets."""
    variants = len({trial.variant for trial in trials})
    seeds = len({trial.seed for trial in trials})
    known = [trial.seconds for trial in left if trial.seconds is not None]
    lines = [
        f"{len(trials)} runs, {variants} variants with {seeds} seed{'s' * (seeds != 1)}, {len(left)} of them to train"
    ]
    if len(known) < len(left):
        lines.append(f"{len(left) - len(known)} have budgets in tokens, steps or epochs, so their time is unknown")
    if known:
        lines.append(f"total budget: {sum(known) / 3600.0:.3g} device-hours")
        if slots:
            lines[-1] += f", at least {format_duration(max(sum(known) / slots, *known))} with {slots} at a time"
        lines[-1] += ", plus set-up, compilation and the final evaluation of every run"
    return "\n".join(lines)


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise CramError("no terminal to ask for confirmation; add --yes")
    try:
        answer = input("train them? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CramError("not confirmed; nothing was started")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other sweeps. Raises CramError if another one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CramError(
            f"{folder}: another sweep is running there; wait for it, or choose another folder with --output"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _prepare_data(trials: Sequence[Trial]) -> None:
    """Build or check every data set once, before parallel runs do."""
    from cram_composer.data.loading.prepare import prepare_dataset

    for config in {repr(trial.composed.config.data): trial.composed.config.data for trial in trials}.values():
        prepare_dataset(config, True, lambda: None)
