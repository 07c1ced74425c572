"""Callbacks that write the run folder while the loop runs: the clock's heartbeat, the trace, the metrics."""

from __future__ import annotations

import contextlib
import math
import threading
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from cram_composer.budget.budget import Budget
from cram_composer.budget.callback import BudgetCallback
from cram_composer.budget.ledger import Ledger
from cram_composer.budget.trace import TRACE, BatchShape, JsonLines, TraceStep
from cram_composer.errors import CramError
from cram_composer.runs.folder import METRICS, RunFolder

_HEARTBEAT_SECONDS = 5.0


class Heartbeat(Callback):
    """Write the clock every few seconds from a thread, since a kill may come in the middle of a long compilation."""

    def __init__(self, folder: RunFolder, ledger: Ledger) -> None:
        self._folder = folder
        self._ledger = ledger
        self._step = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start beating, on rank 0."""
        self._step = int(state.timestamp.batch)
        if dist.get_global_rank() != 0:
            return
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self._thread.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Remember the step for the next beat."""
        self._step = int(state.timestamp.batch)

    def stop(self) -> None:
        """Stop beating; waits for a beat under way."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self) -> None:
        """Write the clock now, on rank 0."""
        if dist.get_global_rank() != 0:
            return
        with contextlib.suppress(OSError):  # a full disk must not end the run here: the next checkpoint says so
            self._folder.write_clock(self._ledger, self._step, clean=False)

    def _run(self) -> None:
        while not self._done.wait(_HEARTBEAT_SECONDS):
            self.beat()


class TraceWriter(Callback):
    """Write a trace line per step and hand throughput and stall to the loggers."""

    def __init__(
        self, folder: RunFolder, budget: Budget, clock: BudgetCallback, ledger: Ledger, shape: BatchShape
    ) -> None:
        self._file = JsonLines(folder.path / TRACE)
        self._budget = budget
        self._clock = clock
        self._ledger = ledger
        self._shape = shape
        self._tokens_before = 0
        self._rows_before = 0
        self.recent_losses: list[float] = []
        self.last_step_seconds: float | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Drop what an earlier process wrote after its last checkpoint."""
        self._tokens_before = int(state.timestamp.token)
        self._rows_before = int(state.timestamp.sample)
        if dist.get_global_rank() == 0:
            self._file.cut(int(state.timestamp.batch))

    def batch_end(self, state: State, logger: Logger) -> None:
        """Record the step that has just ended."""
        tokens, rows = int(state.timestamp.token), int(state.timestamp.sample)
        loss = (state.total_loss_dict or {}).get("loss/train/total", math.nan)
        seconds = self._ledger.elapsed() - self._clock.step_started
        if math.isfinite(loss):
            self.recent_losses = [*self.recent_losses[-99:], loss]
        self.last_step_seconds = seconds
        line = TraceStep(
            step=int(state.timestamp.batch) - 1,
            elapsed=self._budget.elapsed,
            progress=self._budget.progress,
            tokens=tokens,
            batch_size=rows - self._rows_before,
            seq_length=self._shape.seq_length,
            mlm_probability=self._shape.mlm_probability,
            lr=self._clock.lr,
            loss=loss if math.isfinite(loss) else None,
            step_seconds=seconds,
            data_seconds=self._clock.data_seconds,
        )
        if dist.get_global_rank() == 0:
            self._file.append(line)
        logger.log_metrics(
            {
                "throughput/tokens_per_second": (tokens - self._tokens_before) / max(seconds, 1e-9),
                "throughput/stall": self._clock.data_seconds / max(seconds, 1e-9),
                "budget/progress": self._budget.progress,
                "budget/elapsed": self._budget.elapsed,
                "lr": self._clock.lr,
                "batch/rows": rows - self._rows_before,
                "batch/seq_length": self._shape.seq_length,
                "batch/mlm_probability": self._shape.mlm_probability,
            }
        )
        self._check_replay(line)
        self._tokens_before, self._rows_before = tokens, rows

    def _check_replay(self, line: TraceStep) -> None:
        if self._budget.replay is None:
            return
        original = self._budget.replay[line.step]
        for name in ("batch_size", "seq_length"):
            then, now = getattr(original, name), getattr(line, name)
            if then != now:
                raise CramError(
                    f"budget.replay: step {line.step} had {name} {then} in the trace and has {now} here: the data, the "
                    "batch settings or the number of devices differ"
                )

    def state_dict(self) -> dict[str, Any]:
        """The recent losses."""
        return {"recent_losses": self.recent_losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.recent_losses = list(state["recent_losses"])

    def close(self, state: State, logger: Logger) -> None:
        """Close the file."""
        self._file.close()


class MetricsFile(LoggerDestination):
    """metrics.jsonl: what is measured now and then (evaluation, above all); the trace has what every step has."""

    def __init__(self, folder: RunFolder, budget: Budget) -> None:
        self._file = JsonLines(folder.path / METRICS)
        self._budget = budget
        self._state: State | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Drop what an earlier process wrote after its last checkpoint."""
        self._state = state
        self._file.cut(int(state.timestamp.batch))

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write the evaluation's results."""
        found = {
            name.removeprefix("metrics/"): float(value)
            for name, value in metrics.items()
            if name.startswith("metrics/")
        }
        if found and self._state is not None:
            timestamp = self._state.timestamp
            where = {
                "step": max(0, int(timestamp.batch) - 1),
                "elapsed": self._budget.elapsed,
                "tokens": int(timestamp.token),
            }
            self._file.append(where | found)

    def post_close(self) -> None:
        """Close the file."""
        self._file.close()
