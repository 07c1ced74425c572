"""Callbacks of a run: heartbeat, trace, and the ordered list of all callbacks."""

from __future__ import annotations

import contextlib
import math
import threading
from dataclasses import dataclass
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.algorithms.averaging.swa import with_swa
from cram_composer.budget.budget import Budget
from cram_composer.budget.callback import BudgetCallback
from cram_composer.budget.early_stop import EarlyStop
from cram_composer.budget.forecast import EpochForecast
from cram_composer.budget.ledger import Ledger
from cram_composer.budget.schedules import build_schedule
from cram_composer.budget.trace import TRACE, BatchShape, JsonLines, TraceStep
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.units import parse_duration
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.device import DeviceChoice
from cram_composer.errors import CramError
from cram_composer.runs.branch_points import BranchPointSaver
from cram_composer.runs.folder import RunFolder
from cram_composer.runs.mirror import RunMirror
from cram_composer.scaleout.strategy import Strategy
from cram_composer.train.checkpointing import DataPosition, RollingCheckpoints
from cram_composer.train.cpu_share import CpuShare
from cram_composer.train.signals import Signals

_HEARTBEAT_SECONDS = 5.0
_TEN_MINUTES = 600.0


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks of a run, the signals they react to and the mirror they feed.

    Attributes:
        ordered: all callbacks, in the order in which Composer runs them.
        mirror: present on rank 0 if `runs_remote` is set.
    """

    ordered: list[Callback]
    heartbeat: Heartbeat
    trace: TraceWriter
    checkpoints: RollingCheckpoints
    clock: BudgetCallback
    early_stop: EarlyStop | None
    cpu_share: CpuShare
    signals: Signals
    mirror: RunMirror | None

    def stop_clocks(self) -> None:
        """Stop the budget and the heartbeat."""
        self.clock.close_clock()
        self.heartbeat.stop()


def build_callbacks(
    config: RunConfig,
    device: DeviceChoice,
    folder: RunFolder,
    budget: Budget,
    ledger: Ledger,
    loader: TrainLoader,
    strategy: Strategy,
) -> RunCallbacks:
    """Build the callbacks that enforce the budget and write the run folder."""
    heartbeat = Heartbeat(folder, ledger)
    signals = Signals(heartbeat.beat)
    mirror = None
    if config.runs_remote is not None and dist.get_global_rank() == 0:
        mirror = RunMirror(folder, config.runs_remote, config.checkpoint.keep)
    checkpoints = RollingCheckpoints(
        folder,
        budget,
        ledger,
        interval=_checkpoint_interval(config, budget),
        keep=config.checkpoint.keep,
        strategy=strategy,
        branch_points=BranchPointSaver(folder.path, config.checkpoint.branch_at),
        on_saved=mirror.enqueue if mirror is not None else None,
    )
    schedule = with_swa(build_schedule(config.schedule), config.algorithms.swa)
    clock = BudgetCallback(
        budget, ledger, schedule, lambda: loader.stream.epochs, lambda: signals.received, checkpoints.save
    )
    cpu_share = CpuShare(device.threads, device.adapts_threads, budget.replay)
    trace = TraceWriter(folder, budget, clock, ledger, loader, cpu_share)
    # A step of 8,192 rows takes half a minute on a slow card.
    signals.grace_seconds = lambda: 2.0 * (trace.last_step_seconds or 0.0) + checkpoints.full_seconds
    early_stop = None
    if config.train.early_stop:
        early_stop = EarlyStop(config.train.early_stop, budget, lambda: trace.recent_losses)
    ordered = [
        heartbeat,
        cpu_share,
        trace,
        EpochForecast(budget, ledger, loader.stream.rows_per_epoch, loader.data_seq_length),
        *([early_stop] if early_stop else []),
        DataPosition(loader),
        checkpoints,
        clock,  # last, so that the work of the others counts for their step
    ]
    return RunCallbacks(ordered, heartbeat, trace, checkpoints, clock, early_stop, cpu_share, signals, mirror)


def _checkpoint_interval(config: RunConfig, budget: Budget) -> float:
    """Return the interval in seconds; by default ten minutes or a tenth of the budget, whichever is shorter."""
    if config.checkpoint.interval is not None:
        return parse_duration(config.checkpoint.interval)
    return min(_TEN_MINUTES, (budget.limits.seconds or math.inf) / 10.0)


class Heartbeat(Callback):
    """Write the clock every few seconds from a thread, because a kill may happen during a long compilation."""

    def __init__(self, folder: RunFolder, ledger: Ledger) -> None:
        self._folder = folder
        self._ledger = ledger
        self._step = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the thread on rank 0."""
        self._step = int(state.timestamp.batch)
        if dist.get_global_rank() != 0:
            return
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self._thread.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Remember the step for the next beat."""
        self._step = int(state.timestamp.batch)

    def stop(self) -> None:
        """Stop the thread after any write in progress."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self) -> None:
        """Write the clock now, on rank 0."""
        if dist.get_global_rank() != 0:
            return
        with contextlib.suppress(OSError):  # such as a full disk, which the next checkpoint reports
            self._folder.write_clock(self._ledger, self._step, clean=False)

    def _run(self) -> None:
        while not self._done.wait(_HEARTBEAT_SECONDS):
            self.beat()


class TraceWriter(Callback):
    """Write a trace line per step and log throughput and data stall.

    Attributes:
        recent_losses: finite losses of the last 100 steps.
        last_step_seconds: duration of the latest step, None before the first.
    """

    def __init__(
        self,
        folder: RunFolder,
        budget: Budget,
        clock: BudgetCallback,
        ledger: Ledger,
        shape: BatchShape,
        cpu_share: CpuShare,
    ) -> None:
        self._file = JsonLines(folder.path / TRACE)
        self._budget = budget
        self._clock = clock
        self._ledger = ledger
        self._shape = shape
        self._cpu_share = cpu_share
        self._tokens_before = 0
        self._rows_before = 0
        self.recent_losses: list[float] = []
        self.last_step_seconds: float | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Drop lines that an earlier attempt wrote after its last checkpoint."""
        self._tokens_before = int(state.timestamp.token)
        self._rows_before = int(state.timestamp.sample)
        if dist.get_global_rank() == 0:
            self._file.cut(int(state.timestamp.batch))

    def batch_end(self, state: State, logger: Logger) -> None:
        """Record the completed step."""
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
            threads=self._cpu_share.threads,
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
                    f"budget.replay: step {line.step} has {name} {now}, but {then} in the trace; use the data, batch "
                    "settings and number of devices of the original run"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the recent losses."""
        return {"recent_losses": self.recent_losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self.recent_losses = list(state["recent_losses"])

    def close(self, state: State, logger: Logger) -> None:
        """Close the file."""
        self._file.close()
