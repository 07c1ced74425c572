"""Progress of a sweep: a live table on a terminal, otherwise a line for every run that ends."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cram_composer.budget.trace import TRACE
from cram_composer.config.units import format_duration
from cram_composer.errors import CramError
from cram_composer.runs.folder import FINISHED, RunFolder
from cram_composer.sweeps.plan import Trial
from cram_composer.train.launch import check_same

_TAIL_BYTES = 4096  # more than a line of the trace
_LINE_EVERY_SECONDS = 60.0


def finished_record(trial: Trial) -> dict[str, Any] | None:
    """Return the record of a run that has finished or was stopped early; None for any other, also a damaged one.

    Raises:
        CramError: the folder holds a run with another configuration, such as one of another sweep.
    """
    try:
        record = RunFolder(trial.path).read_record()
    except CramError:
        return None  # training it reports the error
    if record is None:
        return None
    try:
        check_same(record, trial.composed, str(trial.path))
    except CramError as error:
        said = str(error).partition(";")[0]
        raise CramError(f"{said}; give this sweep another folder with --output") from None
    return record if record["status"] in FINISHED else None


def unfinished_reason(trial: Trial) -> str:
    """Return why a run has no result yet; empty if it has one."""
    if finished_record(trial) is not None:
        return ""
    try:
        record = RunFolder(trial.path).read_record()
    except CramError as error:
        return str(error)
    if record is None:
        return "not trained"
    reason = f" ({record['reason']})" if record.get("reason") else ""
    return f"{record['status']}{reason}"


def progress(run: Path) -> float:
    """Return the share of the budget used at the start of a run's newest step; 0 before the first step."""
    try:
        with open(run / TRACE, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            *lines, _being_written = file.read().split(b"\n")
        return min(1.0, float(json.loads(lines[-1])["progress"]))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return 0.0


class SweepProgress:
    """State of every run of a sweep, printed as it changes."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = list(trials)
        self._results: dict[Trial, float | None] = {}  # held-out loss; None if stopped early
        self._failed: dict[Trial, str] = {}
        self._running: list[Trial] = []
        self._started = self._last_line = 0.0
        self._earlier = 0.0  # progress of unfinished runs at the start
        self._live: Any = None
        for trial in trials:
            self._read_record(trial)
        self._results_before = len(self._results)

    @property
    def left(self) -> list[Trial]:
        """Runs without a result, failed ones included."""
        return [trial for trial in self._trials if trial not in self._results]

    @property
    def failures(self) -> list[str]:
        """One line for every run that failed."""
        return [f"{trial.path}: {error}; log in {trial.log}" for trial, error in self._failed.items()]

    def __enter__(self) -> SweepProgress:
        self._started = self._last_line = time.monotonic()
        self._earlier = sum(progress(trial.path) for trial in self.left)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self._table(), console=Console(stderr=True), auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, at)

    def running(self, trials: list[Trial]) -> None:
        """Show the runs in training."""
        self._running = trials
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS:
            names = ", ".join(f"{trial.path.name} {progress(trial.path):.0%}" for trial in trials)
            self._print_line(f"{self._count()}; now {names or 'nothing'}{self._time_left()}")

    def ended(self, trial: Trial, error: str) -> None:
        """Record and print the outcome of a run; `error` is empty if it did not fail."""
        if error:
            self._failed[trial] = error
            self._print_line(f"{self._count()}: {trial.path.name}: failed: {error}")
            return
        self._read_record(trial)
        loss = self._results.get(trial)
        message = "stopped early" if loss is None else f"held-out loss {loss:.4f}"
        if trial not in self._results:  # finished on another machine, with the record only in runs_remote
            message = self._failed[trial] = "finished earlier, but its record is only in runs_remote"
        self._print_line(f"{self._count()}: {trial.path.name}: {message}")

    def _read_record(self, trial: Trial) -> None:
        record = finished_record(trial)
        if record is not None:
            finished = record["status"] == "finished"
            self._results[trial] = (record.get("metrics") or {}).get("validation_loss") if finished else None

    def _count(self) -> str:
        return f"{len(self._results) + len(self._failed)} of {len(self._trials)}"

    def _time_left(self) -> str:
        """Estimate the remaining time from the pace so far."""
        done = len(self._results) + len(self._failed) - self._results_before
        shares = sum(progress(trial.path) for trial in self._running)
        trained = done + shares - self._earlier
        if trained < 0.05:
            return ""
        pace = (time.monotonic() - self._started) / trained
        return f", about {format_duration(pace * (len(self.left) - len(self._failed) - shares))} left"

    def _print_line(self, line: str) -> None:
        self._last_line = time.monotonic()
        if self._live is None:
            print(f"sweep: {line}", file=sys.stderr, flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(title=f"{self._count()} runs done{self._time_left()}", title_justify="left")
        for name in ("variant", "runs", "held-out loss", "from", "to"):
            table.add_column(name, justify="left" if name in ("variant", "runs") else "right")
        for variant in dict.fromkeys(trial.variant for trial in self._trials):
            own = [trial for trial in self._trials if trial.variant == variant]
            losses = [loss for trial in own if (loss := self._results.get(trial)) is not None]
            numbers = (
                [f"{value:.4f}" for value in (statistics.fmean(losses), min(losses), max(losses))] if losses else []
            )
            table.add_row(variant, "  ".join(self._state(trial) for trial in own), *numbers)
        return table

    def _state(self, trial: Trial) -> str:
        if trial in self._failed:
            return "failed"
        if trial in self._results:
            return "done" if self._results[trial] is not None else "stopped early"
        return f"{progress(trial.path):.0%}" if trial in self._running else "-"
